"""One run on several processes, and with mixed precision: the law holds, and all processes have the same weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hatrack.experiments import RunRequest, RunResult, prepare, read_result, run, verify
from hatrack.train.parallel import ALONE, Ranks
from support.marks import slow_but
from support.warm import run_warm

TINY = {"epochs": "2", "limit": "61", "hidden": "20", "num_tasks": "3"}


def columns(result: RunResult) -> list[set[str]]:
    """The hashes of every task's test logits during the run."""
    matrix = result.matrix("logits_sha256")
    return [{row[task] for row in matrix[task:]} for task in range(len(matrix))]


def in_two_processes(out: Path, method: str, **settings: str) -> list[subprocess.CompletedProcess[str]]:
    words = [word for key, value in {**TINY, **settings}.items() for word in ("--set", f"{key}={value}")]
    command = [
        sys.executable,
        "-m",
        "hatrack",
        "run",
        "demo",
        "--method",
        method,
        *words,
        "--threads",
        "1",
        "--out",
        str(out),
    ]
    return run_warm(out.parent, command, command, env=environments())


def environments() -> list[dict[str, str]]:
    """The environments of two processes, as torch's launcher sets them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    return [{**os.environ, **there, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


@pytest.mark.slow
def test_the_law_holds_in_two_processes(tmp_path: Path) -> None:
    first, second = in_two_processes(tmp_path, "hat")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "task 3/3" in first.stdout
    assert second.stdout == "", "one process speaks for both"
    result = read_result(tmp_path / "run.json")
    assert [len(hashes) for hashes in columns(result)] == [1, 1, 1], "old logits keep their bits"
    assert result.command.startswith("torchrun --nproc-per-node 2 -m hatrack run demo")
    assert verify(tmp_path).holds


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(tmp_path: Path) -> None:
    """Without dropout, only the order of sums differs: the gradients of two halves are those of the whole."""
    exact = {"dropout_late": "0", "num_tasks": "1"}
    first, second = in_two_processes(tmp_path, "sgd", **exact)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    alone = prepare(RunRequest("demo", "sgd", overrides={**TINY, **exact}))
    for _ in run(alone):
        pass
    theirs = json.loads((tmp_path / "run.json").read_text())["loss"][0][0]
    assert theirs == pytest.approx(alone.result.scores[0][0].loss, rel=1e-5)


OPTIMIZING = """
import torch
from pathlib import Path
from hatrack.train.parallel import joined

threads = lambda: sorted(path.name for path in Path("/proc/self/task").iterdir())
torch.set_num_threads(1)
torch.ones(3).sum()
before = threads()
with joined(torch.device("cpu")) as ranks:
    torch.optim.SGD([torch.ones(3, requires_grad=True)], 0.1).step()
    ranks.wait()
print(threads() == before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_no_thread_outlives_the_group() -> None:
    """One that still lets go of a tensor when the interpreter stops would abort the process."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPTIMIZING], env=its, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for its in environments()
    ]
    for process, (said, errors) in [(each, each.communicate(timeout=100)) for each in processes]:
        assert (process.returncode, said) == (0, "True\n"), errors


LOOKING = """
import sys
import torch
from hatrack.errors import InputError
from hatrack.train.parallel import joined

with joined(torch.device("cpu")) as ranks:
    ranks.require_same_data(["a: files"], torch.device("cpu"))
    try:
        ranks.require_same_data([f"a: {'files' if ranks.rank else 'pictures'}"], torch.device("cpu"))
    except InputError as error:
        print(error)
"""


@pytest.mark.slow
def test_processes_that_find_different_data_do_not_share_batches() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOOKING], env=its, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for its in environments()
    ]
    for rank, (said, errors) in enumerate([each.communicate(timeout=100) for each in processes]):
        found = f"found different data (a: {'files' if rank else 'pictures'} in process {rank}); give all of them the"
        assert found in said, errors
    ALONE.require_same_data([], torch.device("cpu"))


@pytest.mark.parametrize("method", slow_but(["hat"], ["hat", "pmask"]))
def test_the_law_holds_in_mixed_precision(method: str) -> None:
    results = {}
    for precision in ("float32", "bfloat16"):
        prepared = prepare(RunRequest("demo", method, overrides={**TINY, "precision": precision}))
        for _ in run(prepared):
            pass
        results[precision] = prepared.result
    assert [len(hashes) for hashes in columns(results["bfloat16"])] == [1, 1, 1]
    assert columns(results["bfloat16"]) != columns(results["float32"]), "the precision makes a difference"


def test_shares_of_a_batch_are_the_batch() -> None:
    rows = torch.arange(7)
    shares = [Ranks(rank, 3).share(rows) for rank in range(3)]
    assert sorted(torch.cat([own for own, _ in shares]).tolist()) == list(range(7))
    values = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0])
    weighted = sum(weight * float(values[own].mean()) for own, weight in shares)
    assert weighted == pytest.approx(float(values.mean()))
    assert [Ranks(rank, 9).share(rows)[1] for rank in range(9)] == [pytest.approx(1 / 9)] * 9
    assert torch.equal(Ranks(8, 9).share(rows)[0], rows), "too small a batch is everybody's"
    own, weight = ALONE.share(rows)
    assert torch.equal(own, rows)
    assert weight == 1.0
