"""What holds on a GPU and how fast it is: gates, the law, steps against plain steps, and runs, one after the other.

python benchmarks/gpu.py --data DATA [--minutes 10] [--out benchmarks/results/gpu.json]
python benchmarks/gpu.py --data DATA --device cpu --small              all but CUDA graphs, in minutes

Every section has a share of the time and stops when it is over; the file is written after every finding, and says what
was left out. Nothing but the source tree, torch and the data is needed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recording import command, write_record
from step_time import at_third_task, plain_step
from torch import Tensor, nn

from hatrack import HATNetwork, keep_freed_memory
from hatrack.backbones import MLP, AlexNet, ResNet18, ViT
from hatrack.experiments import RunRequest, TaskLearned, prepare, run
from hatrack.functional import GATE_FLUSH, Compensation, GateFunction, compensated_gate
from hatrack.gating.gate_kernels import gate_in_training
from hatrack.support.environment import describe_environment, deterministic_cuda
from hatrack.train import BatchDone
from hatrack.train.capture import Capture, CapturedSteps, as_cuda_graph, one_by_one

HERE = Path(__file__).parent
Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Size:
    """Sizes of everything: those to measure, or small ones that try every line.

    Attributes:
        batch: samples of a step.
        width: factor on the layers of networks whose steps are timed.
        steps: steps of a task whose bits are compared, and of a block that is timed.
        blocks: blocks that are timed, of every way in turns.
        backend: of torch.compile.
        experiment: what is run in the end.
    """

    batch: int = 64
    width: float = 1.0
    steps: int = 20
    blocks: int = 7
    backend: str = "inductor"
    experiment: str = "mixture-seven"


SMALL = Size(batch=8, width=0.05, steps=2, blocks=2, backend="eager", experiment="demo")


class Recurrent(nn.Module):
    """Last outputs of a recurrent layer over the rows of a picture."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.layer = kind(32, 48, batch_first=True)
        self.dense = nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Return features, ``(N, 32)``."""
        return self.dense(self.layer(x.mean(1))[0][:, -1]).relu()


def attention() -> nn.Module:
    """Return an encoder of attention over the rows of a picture."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(
        nn.Flatten(1, 2), nn.Unflatten(1, (96,)), encoder, nn.Flatten(), nn.Linear(96 * 32, 64), nn.ReLU()
    )


def convolutions(norm: Callable[[int], nn.Module]) -> nn.Module:
    """Return three convolutions with a norm behind each."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise((3, 16, 24, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), norm(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


NETWORKS: Mapping[str, Build] = {
    "dense": lambda: MLP((3, 32, 32), (256, 256), (0.2, 0.5)),
    "alexnet": lambda: AlexNet(width=0.25),
    "resnet18": lambda: ResNet18((3, 32, 32), 16),
    "resnet18 without norms": lambda: ResNet18((3, 32, 32), 16, batch_norm=False),
    "vision transformer": lambda: ViT((3, 32, 32)),
    "group norms": lambda: convolutions(lambda width: nn.GroupNorm(4, width)),
    "instance norms": lambda: convolutions(lambda width: nn.InstanceNorm2d(width, affine=True)),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "channels_last": lambda: AlexNet(width=0.25).to(memory_format=torch.channels_last),
}


@dataclass(frozen=True)
class Way:
    """How a network is trained and asked."""

    optimizer: Callable[..., torch.optim.Optimizer]
    compiled: bool = False
    mixed: bool = False
    captured: bool = False


WAYS: Mapping[str, Way] = {
    "momentum": Way(lambda of: torch.optim.SGD(of, lr=0.05, momentum=0.9)),
    "captured": Way(lambda of: torch.optim.SGD(of, lr=0.05, momentum=0.9), captured=True),
    "adamw, bfloat16": Way(lambda of: torch.optim.AdamW(of, lr=1e-3), mixed=True),
    "captured AdamW": Way(lambda of: torch.optim.AdamW(of, lr=1e-3, capturable=of[0].is_cuda), captured=True),
    "compiled": Way(lambda of: torch.optim.SGD(of, lr=0.05, momentum=0.9), compiled=True),
}


def wait(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def learn(net: HATNetwork, ask: Any, task: str, way: Way, size: Size, x: Tensor, y: Tensor) -> None:
    """Train a network on the last of its tasks, and consolidate that."""
    optimizer = net.protect(way.optimizer(net.task_parameters(task)))
    mixed: AbstractContextManager[Any] = nullcontext()
    if way.mixed:
        mixed = torch.autocast(x.device.type, torch.bfloat16)

    def step(rows: Tensor, progress: float | Tensor, /) -> None:
        net.anneal(progress)
        with mixed:
            loss = nn.functional.cross_entropy(ask(x[rows], task), y[rows]) + 0.75 * net.regularization()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    order = torch.arange(size.batch * size.steps, device=x.device) % len(x)
    make = one_by_one(step, order, size.batch)
    if way.captured:
        make = CapturedSteps(size.batch, capture_for(x.device)).of_epoch(step, order)
    net.train()
    for number in range(size.steps):
        make(number)
    net.consolidate(task)
    net.eval()


def law(build: Build, way: Way, size: Size, device: torch.device) -> dict[str, Any]:
    """Learn three tasks; say whether earlier ones kept their bits, and of the last how far it is from itself extracted.

    Groups of units that extraction could not cut are counted: networks that are left whole agree with themselves.
    """
    torch.manual_seed(0)
    x, y = torch.randn(size.batch, 3, 32, 32, device=device), torch.arange(size.batch, device=device) % 2
    net = HATNetwork(build().to(device), x[:1])
    ask: Any = torch.compile(net, backend=size.backend) if way.compiled else net
    said: dict[str, Tensor] = {}
    same = True
    for task in ("first", "second", "third"):
        net.add_task(task, num_classes=2)
        learn(net, ask, task, way, size, x, y)
        with torch.no_grad():
            same &= all(torch.equal(ask(x, earlier), bits) for earlier, bits in said.items())
            said[task] = ask(x, task).clone()
            extracted = net.extract(task)
            away = float((extracted(x) - said[task]).abs().max())
    return {
        "same_bits": same,
        "extracted_differ_by": away,
        "groups_left_whole": len(extracted.summary.whole),
        "largest_logit": float(said["third"].abs().max()),
    }


def laws(size: Size, device: torch.device) -> Iterator[tuple[str, Any]]:
    """Yield what :func:`law` finds of every network in every way, or the error that came up; slow ways last."""
    for (how, way), (name, build) in itertools.product(WAYS.items(), NETWORKS.items()):
        start = time.monotonic()
        try:
            found = law(build, way, size, device)
        except Exception as error:  # each is a finding, and the others are to be made none the less
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        torch.compiler.reset()
        yield f"{name}, {how}", {**found, "seconds": round(time.monotonic() - start, 1)}


def gates(device: torch.device) -> Iterator[tuple[str, Any]]:
    """Yield how far gates and their gradients on a device are from those of float64, relative to these."""
    points = torch.linspace(-6, 6, 100_001)
    for scale in (1 / 400, 1.0, 8.0, 50.0, 400.0):
        e, exact = points.to(device, copy=True).requires_grad_(), points.double().requires_grad_()
        chosen = 400.0, Compensation.EXACT, GateFunction.SIGMOID
        a = gate_in_training(e, torch.tensor(scale, dtype=torch.float64, device=device), *chosen)
        b = compensated_gate(exact, scale, *chosen)
        a.sum().backward()
        b.sum().backward()
        assert e.grad is not None
        assert exact.grad is not None
        yield (
            f"scale {scale:g}",
            {
                "one_kernel": "FusedGate" in type(a.grad_fn).__name__,
                "gate": _farthest(a.detach(), b.detach(), GATE_FLUSH),
                "gradient": _farthest(e.grad, exact.grad, 1e-30),
            },
        )


def _farthest(found: Tensor, exact: Tensor, least: float) -> float:
    """Return the largest relative difference where either is more than twice the least number that is kept."""
    found = found.double().cpu()
    kept = (exact > 2 * least) | (found > 2 * least)
    return float(((found - exact).abs() / exact.clamp_min(least))[kept].max())


def capture_for(device: torch.device) -> Capture:
    """Return what captures work on a device: on GPUs a CUDA graph; elsewhere it is done as it is."""
    return as_cuda_graph if device.type == "cuda" else lambda work: work


def as_graph(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return a step as a CUDA graph, after a few to warm up; on other devices as it is."""
    order = torch.zeros(1 << 20, dtype=torch.int64, device=device)  # of more steps than there will be
    make = CapturedSteps(1, capture_for(device)).of_epoch(lambda rows, progress: step(), order)
    return lambda: make(0)


FORMS = ("as it is", "graph", "compiled", "compiled graph")
"""Forms of steps; slow ones last."""


def steps_of(build: Build, shape: tuple[int, ...], how: str, size: Size, device: torch.device) -> dict[str, Any]:
    """Time plain steps and those of HAT's third task in one of the forms; SGD with momentum.

    In a graph the scale of the gates is that of the moment in which it was captured.
    """
    x, y = torch.randn(size.batch, *shape, device=device), torch.arange(size.batch, device=device) % 2
    optimizer_of = WAYS["momentum"].optimizer

    def plain(compiled: bool) -> Callable[[], None]:
        body = build().to(device)
        model = nn.Sequential(body, nn.Linear(body(x[:2]).shape[1], 2, device=device))
        optimizer = optimizer_of(model.parameters())
        ask: Any = torch.compile(model, backend=size.backend) if compiled else model
        return lambda: plain_step(ask, optimizer, x, y)

    def hat(compiled: bool) -> Callable[[], None]:
        net, optimizer = at_third_task(build().to(device), shape, optimizer_of)
        net.train()
        ask: Any = torch.compile(net, backend=size.backend) if compiled else net

        def step() -> None:
            net.anneal(0.5)
            loss = nn.functional.cross_entropy(ask(x, "third"), y) + 0.75 * net.regularization()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    compiled = how.startswith("compiled")
    try:
        pair = {"plain": plain(compiled), "hat": hat(compiled)}
        if how.endswith("graph"):
            pair = {name: as_graph(step, device) for name, step in pair.items()}
        return timed(pair, size, device)
    except Exception as error:  # as above
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    finally:
        torch.compiler.reset()


def timed(steps: Mapping[str, Callable[[], None]], size: Size, device: torch.device) -> dict[str, float]:
    """Return milliseconds of steps, block by block in turns, and the median ratio of the second to the first."""
    blocks: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(-1, size.blocks):
        for name, step in steps.items():
            wait(device)
            start = time.perf_counter()
            for _ in range(size.steps):
                step()
            wait(device)
            if block >= 0:
                blocks[name].append(1e3 * (time.perf_counter() - start) / size.steps)
    plain, hat = blocks.values()
    ratios = [ours / theirs for theirs, ours in zip(plain, hat, strict=True)]
    medians = {f"{name}_ms": round(statistics.median(times), 4) for name, times in blocks.items()}
    return {**medians, "ratio": round(statistics.median(ratios), 3)}


def step_times(size: Size, device: torch.device) -> Iterator[tuple[str, Any]]:
    """Yield the times of steps of three networks in all forms."""
    hidden, width = max(1, round(2000 * size.width)), max(1, round(64 * size.width))
    networks: dict[str, tuple[Build, tuple[int, ...]]] = {
        "2×2000": (lambda: MLP((1, 28, 28), (hidden, hidden), (0.2, 0.5)), (1, 28, 28)),
        "AlexNet": (lambda: AlexNet(width=size.width), (3, 32, 32)),
        "ResNet-18": (lambda: ResNet18((3, 32, 32), width), (3, 32, 32)),
    }
    for how, (name, network) in itertools.product(FORMS, networks.items()):
        yield f"{name}, {how}", steps_of(*network, how, size, device)


def runs(size: Size, device: torch.device, data: Path, until: float) -> Iterator[tuple[str, Any]]:
    """Yield what whole runs at the paper's settings come to, seed by seed, each as far as the time allows."""
    for seed in itertools.count():
        if time.monotonic() >= until or (size is SMALL and seed):
            return
        with tempfile.TemporaryDirectory() as folder:
            overrides: dict[str, Any] = {"epochs": 1, "limit": 50} if size is SMALL else {"schedule": "paper"}
            overrides["captured"] = device.type == "cuda"
            prepared = prepare(RunRequest(size.experiment, "hat", seed, Path(folder) / "run", data, overrides, device))
            start, steps, learned = time.monotonic(), 0, 0  # steps of whole epochs
            for event in run(prepared):
                if isinstance(event, BatchDone) and event.done == event.total:
                    steps += event.total
                learned += isinstance(event, TaskLearned)
                if time.monotonic() >= until:
                    break
            wait(device)
            seconds = time.monotonic() - start
            scores = [round(score.value, 4) for score in prepared.result.scores[-1]] if learned else []
        whole = learned == len(prepared.stream)
        yield (
            f"seed {seed}",
            {
                "whole": whole,
                "tasks": learned,
                "steps": steps,
                "seconds": round(seconds, 1),
                "ms_per_step": round(1e3 * seconds / max(steps, 1), 3),
                "accuracies": scores,
            },
        )
        if not whole:
            return


def main() -> None:
    """Measure one section after the other, and write the record after every finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all of it")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="try everything with small sizes")
    parser.add_argument(
        "--out", type=Path, help="record; benchmarks/results/gpu.json for all of it on a GPU, else none"
    )
    arguments = parser.parse_args()
    is_whole = arguments.device == "cuda" and not arguments.small
    out: Path | None = arguments.out or (HERE / "results" / "gpu.json" if is_whole else None)
    start = time.monotonic()
    keep_freed_memory()
    torch.set_num_threads(1)  # of a CPU, which hands a GPU its work, or is tried itself
    device = deterministic_cuda() if arguments.device == "cuda" else torch.device("cpu")
    size = SMALL if arguments.small else Size()
    until = start + 60 * arguments.minutes
    record: dict[str, Any] = {
        "command": command(),
        "minutes": arguments.minutes,
        "environment": describe_environment(device),
    }
    sections = {
        "gates": (0.1, lambda end: gates(device)),
        "law": (0.3, lambda end: laws(size, device)),
        "steps": (0.5, lambda end: step_times(size, device)),
        "runs": (1.0, lambda end: runs(size, device, arguments.data, end)),
    }
    for name, (share, section) in sections.items():
        end = start + share * (until - start)
        found = record[name] = {}
        for what, value in section(end):
            found[what] = value
            print(name, what, value, flush=True)
            if out is not None:
                write_record(out, record)
            if time.monotonic() >= end:
                record.setdefault("stopped_for_want_of_time", []).append(f"{name}, after {what}")
                break
    record["seconds"] = round(time.monotonic() - start, 1)
    if out is not None:
        write_record(out, record)


if __name__ == "__main__":
    main()
