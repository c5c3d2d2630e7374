"""Carrying out many runs: the same results however often, wherever and with whatever interruptions they are made."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hatrack.errors import InputError
from hatrack.experiments import (
    Comparison,
    ComparisonPlan,
    DaskExecutor,
    Executor,
    Job,
    JobDone,
    JobEvent,
    JobFailed,
    LocalExecutor,
    RunRequest,
    RunResult,
    SlurmExecutor,
    compare,
    jobs_of,
    prepare,
    run,
)
from hatrack.experiments.comparison import SUMMARY
from hatrack.experiments.tuning import Candidate, GridSearch, best, outcomes, tune
from hatrack.storage.locks import locked

TINY = {"epochs": "1", "limit": "60", "hidden": "20", "num_tasks": "2"}
WORKS, DIES, FAILS = "works", "dies", "fails"


def carry_out(plan: ComparisonPlan, folder: Path, executor: Executor) -> list[JobEvent]:
    return list(compare(plan, folder, jobs_of(plan, folder), executor))


def ends(events: list[JobEvent]) -> list[tuple[str, str]]:
    """Return the outcome of every run, in no order of meaning."""
    return sorted((event.job.name, type(event).__name__) for event in events if isinstance(event, (JobDone, JobFailed)))


def hashes(result: RunResult | None) -> list[list[str]]:
    assert result is not None
    return result.matrix("logits_sha256")


def oracle(plan: ComparisonPlan, method: str, seed: int) -> RunResult:
    """The run as this process makes it."""
    prepared = prepare(RunRequest(plan.experiment, method, seed, overrides=plan.overrides(method)))
    for _ in run(prepared):
        pass
    return prepared.result


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.slow
def test_runs_in_processes_are_the_runs_of_one_process(tmp_path: Path) -> None:
    plan = ComparisonPlan.make("demo", ["hat"], [0], TINY)
    assert torch.get_num_threads() == 1
    events = carry_out(plan, tmp_path, LocalExecutor(2))
    assert ends(events) == [("hat seed 0", "JobDone"), ("joint seed 0", "JobDone"), ("random seed 0", "JobDone")]
    found = Comparison.read(tmp_path)
    for method in plan.methods:
        assert hashes(found.run(method, 0)) == hashes(oracle(plan, method, 0))
    summary = json.loads((tmp_path / SUMMARY).read_text())["methods"]
    ratio = found.forgetting_ratio("hat", 0)
    assert ratio is not None
    assert summary["hat"]["forgetting_ratio"] == {"mean": ratio[-1], "sd": None, "by_seed": {"0": ratio[-1]}}
    assert summary["joint"]["forgetting_ratio"]["mean"] == 0.0

    before = contents(tmp_path)
    assert carry_out(plan, tmp_path, LocalExecutor(2)) == [], "what is finished is never made again"
    assert contents(tmp_path) == before


@pytest.fixture
def unreliable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module with networks of its own, whose behaviour a file decides on."""
    monkeypatch.chdir(tmp_path)
    mood = tmp_path / "mood"
    Path("unreliable.py").write_text(
        "import os, pathlib, signal, torch\n"
        "def build(shape):\n"
        "    print('printing does no harm')\n"
        "    mood = pathlib.Path('mood').read_text()\n"
        "    if mood == 'dies':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    if mood == 'fails':\n"
        "        raise RuntimeError('no luck today')\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 8), torch.nn.ReLU())\n"
    )
    mood.write_text(WORKS)
    yield mood
    sys.modules.pop("unreliable", None)


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_what_fails_is_recorded_and_stops_nothing_else(unreliable: Path, tmp_path: Path) -> None:
    plan = ComparisonPlan.make("demo", ["sgd"], [0], {**TINY, "sgd.network": "unreliable:build"})
    folder = tmp_path / "out"
    others = [("joint seed 0", "JobDone"), ("random seed 0", "JobDone")]
    unreliable.write_text(DIES)
    assert ends(carry_out(plan, folder, LocalExecutor(1))) == [*others, ("sgd seed 0", "JobFailed")]
    found = Comparison.read(folder)
    assert "was killed (SIGKILL)" in found.failures["sgd", 0]
    assert found.missing == (("sgd", 0),)
    assert "SIGKILL" in json.loads((folder / SUMMARY).read_text())["methods"]["sgd"]["failures"]["0"]

    unreliable.write_text(FAILS)
    assert ends(carry_out(plan, folder, LocalExecutor(1))) == [("sgd seed 0", "JobFailed")]
    assert "no luck today" in Comparison.read(folder).failures["sgd", 0]

    unreliable.write_text(WORKS)
    assert ends(carry_out(plan, folder, LocalExecutor(1))) == [("sgd seed 0", "JobDone")]
    found = Comparison.read(folder)
    assert found.failures == {}
    assert found.missing == ()
    assert hashes(found.run("sgd", 0)) == hashes(oracle(plan, "sgd", 0))


@pytest.mark.slow
def test_stopping_ends_the_workers(tmp_path: Path) -> None:
    plan = ComparisonPlan.make(
        "demo", ["sgd"], [0], {**TINY, "epochs": "10000", "lr_min": "0", "lr_patience": "100000"}
    )
    others = children(os.getpid())
    events = compare(plan, tmp_path, jobs_of(plan, tmp_path), LocalExecutor(1))
    next(events)
    (worker,) = set(children(os.getpid())) - set(others)
    events.close()
    assert not Path(f"/proc/{worker}").exists()
    with locked(tmp_path, 0.0):
        pass  # the folder is free again


def test_one_folder_is_for_one_comparison_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatrack.experiments.comparison._PATIENCE", 0.0)
    plan = ComparisonPlan.make("demo", ["sgd"], [0], TINY)
    with locked(tmp_path, 0.0), pytest.raises(InputError, match=f"in use by process {os.getpid()} on"):
        carry_out(plan, tmp_path, LocalExecutor(1))


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_a_killed_comparison_goes_on_to_the_same_results(tmp_path: Path) -> None:
    settings = [word for key, value in {**TINY, "num_tasks": "3"}.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "hatrack", "compare", "demo", "--methods", "hat", "--workers", "1", *settings]
    process = subprocess.Popen([*command, "--out", str(tmp_path)], stdout=subprocess.DEVNULL, cwd=tmp_path)
    wait_for(lambda: (tmp_path / "hat" / "seed0" / "net.hat").exists())
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert len(workers) == 1
    wait_for(lambda: not Path(f"/proc/{workers[0]}").exists() or state(workers[0]) == "Z", seconds=10)

    plan = ComparisonPlan.make("demo", ["hat"], [0], {**TINY, "num_tasks": "3"})
    carry_out(plan, tmp_path, LocalExecutor(1))
    found = Comparison.read(tmp_path)
    assert found.missing == ()
    assert hashes(found.run("hat", 0)) == hashes(oracle(plan, "hat", 0))


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
@pytest.mark.parametrize("engine", ["dask", "slurm"])
def test_engines_give_the_same_results(engine: str, tmp_path: Path) -> None:
    plan = ComparisonPlan.make("demo", ["random"], [0], TINY)
    distributed = pytest.importorskip("distributed") if engine == "dask" else None
    if engine == "slurm":
        pytest.importorskip("submitit")
        events = carry_out(plan, tmp_path, SlurmExecutor(tmp_path / "slurm", cluster="local", pause=0.1))
    else:
        assert distributed is not None
        with distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", dashboard_address=None
        ) as cluster:
            events = carry_out(plan, tmp_path, DaskExecutor(cluster.scheduler_address, pause=0.1))
    assert ends(events) == [("joint seed 0", "JobDone"), ("random seed 0", "JobDone")]
    found = Comparison.read(tmp_path)
    assert hashes(found.run("joint", 0)) == hashes(oracle(plan, "joint", 0))


def test_an_engine_that_is_not_there_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ComparisonPlan.make("demo", ["random"], [0], TINY)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'hatrack\[dask\]'"):
        carry_out(plan, tmp_path, DaskExecutor("tcp://127.0.0.1:1"))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"pip install 'hatrack\[slurm\]'"):
        carry_out(plan, tmp_path, SlurmExecutor(tmp_path / "slurm"))


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_searching_settings(tmp_path: Path) -> None:
    settings = {**TINY, "num_tasks": "1"}
    search = GridSearch.make("demo", "sgd", 0, settings, {"lr": ["0.1", "1e-30"]})
    assert search.candidates() == ({"lr": 0.1}, {"lr": 1e-30}), "the preset's own comes first, and once"
    jobs = search.jobs(tmp_path)
    assert len(list(tune(search, tmp_path, jobs, LocalExecutor(1)))) >= 4
    found = outcomes(search, jobs)
    chosen = best(found)
    assert chosen is not None
    assert chosen.settings == {"lr": 0.1}, "a rate that moves nothing learns nothing"
    record = json.loads((tmp_path / "tuning.json").read_text())
    assert record["best"] == {"lr": 0.1}
    assert [row["average_accuracy"] for row in record["candidates"]] == [c.score for c in found]

    assert list(tune(search, tmp_path, jobs, LocalExecutor(1))) == [], "finished runs are not made again"
    assert json.loads((tmp_path / "tuning.json").read_text()) == record
    larger = GridSearch.make("demo", "sgd", 0, settings, {"lr": ["0.1", "1e-30", "0.2"]})
    stopped = tune(larger, tmp_path, larger.jobs(tmp_path), LocalExecutor(1))
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]
    assert json.loads((tmp_path / "tuning.json").read_text())["best"] == {"lr": 0.1}, "what was found is not forgotten"
    with pytest.raises(InputError, match=r"another search: seed \(0 there, 1 now\)"):
        list(tune(GridSearch.make("demo", "sgd", 1, settings, {"lr": ["1"]}), tmp_path, jobs, LocalExecutor(1)))


def test_the_best_candidate() -> None:
    first, second = Candidate({"a": 1}, 0.5, None), Candidate({"a": 2}, 0.5, None)
    assert best([Candidate({"a": 0}, None, "failed"), first, second]) is first
    assert best([Candidate({"a": 0}, None, None)]) is None


def test_grids_are_checked() -> None:
    with pytest.raises(InputError, match="sgd has no recorded grid"):
        GridSearch.make("demo", "sgd", 0)
    with pytest.raises(InputError, match="did you mean 'lr'"):
        GridSearch.make("demo", "sgd", 0, {}, {"lrr": ["1"]})
    with pytest.raises(InputError, match="leave out `lr`"):
        GridSearch.make("demo", "sgd", 0, {"lr": "1"}, {"lr": ["1"]})
    assert len(GridSearch.make("demo", "lwf", 0).candidates()) >= 28


def test_a_job_is_one_line_and_back(tmp_path: Path) -> None:
    request = RunRequest("demo", "ewc", 3, tmp_path, tmp_path / "data", {"hidden": [3, 4], "strength": 0.5})
    line = Job(request, 2).to_json()
    assert "\n" not in line
    assert Job.from_json(line) == Job(request, 2)


def children(parent: int) -> list[int]:
    text = "".join(path.read_text() for path in Path(f"/proc/{parent}/task").glob("*/children"))
    return [int(word) for word in text.split()]


def state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for(condition: object, seconds: float = 60.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
