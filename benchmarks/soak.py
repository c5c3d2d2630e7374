"""Many tasks in a row: memory, time and files after every ten of them.

    python benchmarks/soak.py --data DIR --out benchmarks/results/soak.json      # 200 tasks of permuted digits
    python benchmarks/soak.py --tasks 1000 --tiny               # a tiny network in a program, no files

The first is a run as ``hatrack run tasks.toml`` makes it: each task a permutation of 200 digits, one epoch, a network
of two layers of 100 units, all files after every task. Processor time is reported, since others may use the machine.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import write_record
from torch import nn
from torch.nn import functional as F

import hatrack
from hatrack import HATNetwork
from hatrack.data import load_dataset
from hatrack.experiments import RunRequest, TaskBegun, TaskLearned, prepare, run, running
from hatrack.experiments.folder import CHECKPOINT, LOGITS, RESULT
from hatrack.support.environment import describe_environment

EVERY = 10
PER_CLASS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--method", default="hat")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.tasks < 2 * EVERY:
        parser.error(f"--tasks: at least {2 * EVERY}, since growth is measured between a tenth task and a later one")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "task .* has switched off")  # the network is full after some tens of tasks
    if options.tiny:
        report: dict[str, Any] = tiny(options.tasks)
    else:
        with tempfile.TemporaryDirectory() as folder:
            report = soak(options.tasks, options.method, options.data, Path(folder))
    if options.out is not None:
        earlier = json.loads(options.out.read_text()) if options.out.exists() else {}
        name = f"tiny network, {options.tasks} tasks" if options.tiny else f"permuted digits, {options.method}"
        report["environment"] = describe_environment()
        write_record(options.out, {**earlier, name: report})


def permuted_digits(tasks: int, data: Path | None, folder: Path) -> Path:
    """The tasks as a person's own files."""
    digits = load_dataset("mnist", data, download=False)
    rng = np.random.default_rng(0)
    lines = ['name = "soak"']
    parts = {
        "train": (digits.x_train, digits.y_train),
        "test": (digits.x_test, digits.y_test),
    }
    rows = {
        part: torch.cat([(y == c).nonzero().flatten()[:PER_CLASS] for c in range(10)]) for part, (_, y) in parts.items()
    }
    for number in range(tasks):
        order = rng.permutation(784)
        arrays = {}
        for part, (x, y) in parts.items():
            arrays[f"x_{part}"] = x[rows[part]].reshape(-1, 784).numpy()[:, order].reshape(-1, 28, 28)
            arrays[f"y_{part}"] = y[rows[part]].numpy()
        np.savez(folder / f"p{number:03}.npz", **arrays)
        lines += ["[[task]]", f'path = "p{number:03}.npz"']
    lines += ["[training]", "epochs = 1", "batch_size = 20", "[network]", "hidden = [100, 100]"]
    (folder / "tasks.toml").write_text("\n".join(lines) + "\n")
    return folder / "tasks.toml"


def soak(tasks: int, method: str, data: Path | None, folder: Path) -> dict[str, Any]:
    out = folder / "run"
    prepared = prepare(RunRequest("soak", method, 0, out, sources=(permuted_digits(tasks, data, folder),)))
    clock = Clock()
    running.write_result = clock.timing("run.json", running.write_result)
    running.write_checkpoint = clock.timing("logits", running.write_checkpoint)
    running.last_logits = clock.timing("testing", running.last_logits)
    prepared.method.save = clock.timing("net.hat", prepared.method.save)  # type: ignore[method-assign]
    rows: list[dict[str, Any]] = []
    began = time.process_time()
    for event in run(prepared):
        if isinstance(event, TaskBegun):
            began = time.process_time()
        if isinstance(event, TaskLearned):
            clock.seconds["task"] = time.process_time() - began
            if (event.index + 1) % EVERY == 0 or event.index == 0:
                files = {name: (out / name).stat().st_size for name in (RESULT, CHECKPOINT, LOGITS)}
                row = {"tasks": event.index + 1, **memory(), "files": files, "seconds": clock.rounded()}
                rows.append(row)
                print(json.dumps(row), flush=True)
    first, last = rows[1], rows[-1]
    between = last["tasks"] - first["tasks"]
    constant = all(
        len({row[task].logits_sha256 for row in prepared.result.scores[task:]}) == 1 for task in range(tasks)
    )
    per_task = {
        "memory": round((last["resident"] - first["resident"]) / between),
        **{name: round((last["files"][name] - first["files"][name]) / between) for name in last["files"]},
    }
    explained = state_of(prepared) if hasattr(prepared.method, "network") else {}
    return {"rows": rows, "bytes per task": per_task, "of these": explained, "every hash stayed": constant}


def state_of(prepared: Any) -> dict[str, int]:
    """Bytes that the last task has in memory."""
    network, result = prepared.method.network, prepared.result
    task = network.tasks[-1]
    own = sum(value.nbytes for value in (*task.parameters(), *task.buffers(), task.packed))
    score = result.scores[-1][-1]
    kept = sum(part.__sizeof__() for part in (score, score.loss, score.value, score.logits_sha256)) + 16
    return {"parameters and mask": own, "a score; a row has as many as there are tasks": kept}


def memory() -> dict[str, int]:
    """Bytes in use, after the allocator gave back what it keeps for later, if it can be asked to; and the most ever."""
    gc.collect()
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident": pages * resource.getpagesize(),
        "largest": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


class Clock:
    """Processor seconds of functions, the last call of each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timing(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds[name] = time.process_time() - began

        return timed

    def rounded(self) -> dict[str, float]:
        return {name: round(seconds, 4) for name, seconds in self.seconds.items()}


@contextmanager
def measured(name: str, into: dict[str, float]) -> Iterator[None]:
    began = time.process_time()
    yield
    into[name] = round(time.process_time() - began, 4)


def tiny(tasks: int) -> dict[str, Any]:
    """A thousand tasks on 32 units: what grows with the number of tasks shows."""

    def backbone() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())

    torch.manual_seed(0)
    net = HATNetwork(backbone(), torch.zeros(1, 4))
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    rows: list[dict[str, Any]] = []
    promised = None
    began = time.process_time()
    for number in range(1, tasks + 1):
        name = f"t{number}"
        net.train()
        net.add_task(name, 2)
        optimizer = net.protect(torch.optim.SGD(net.task_parameters(name), lr=0.1))
        for progress in (0.0, 1.0):
            net.anneal(progress)
            optimizer.zero_grad()
            (F.cross_entropy(net(x, name), y) + net.regularization()).backward()
            optimizer.step()
        net.consolidate(name)
        if promised is None:
            promised = net.eval()(x, name)
        if number % (tasks // 10) == 0:
            row = {
                "tasks": number,
                **memory(),
                "seconds per task": round((time.process_time() - began) / (tasks // 10), 4),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
            began = time.process_time()
    last: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        with measured("save", last):
            net.save(Path(folder) / "net.hat")
        with measured("load", last):
            again = hatrack.load(Path(folder) / "net.hat", backbone()).eval()
        size = (Path(folder) / "net.hat").stat().st_size
    with measured("ask all tasks", last), torch.no_grad():
        net.eval()
        for name in net.task_names:
            net(x, name)
    with measured("capacity and reuse", last):
        net.capacity(), net.reuse()
    print(last, size)
    same = all(torch.equal(asked.eval()(x, "t1"), promised) for asked in (net, again))
    return {"rows": rows, "seconds at the end": last, "file": size, "the first task's answers stayed": same}


if __name__ == "__main__":
    main()
