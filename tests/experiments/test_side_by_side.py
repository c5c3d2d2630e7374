"""Runs that are compared have seen the same data and have the settings of now: else every command refuses at once."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hatrack.cli import main
from hatrack.data import DATASETS, PackedPart, write_packed
from hatrack.data.arrays import ImageArrays
from hatrack.errors import InputError
from hatrack.experiments import (
    Comparison,
    ComparisonPlan,
    Job,
    JobDone,
    JobEvent,
    JobFailed,
    RunRequest,
    compare,
    jobs_of,
    prepare,
    read_result,
    run,
    verify,
)
from hatrack.experiments.jobs import carry_out
from hatrack.experiments.recorded import Verification
from hatrack.experiments.tuning import GridSearch, tune
from hatrack.storage.checked_json import write_checked_json

QUICK = {"network": "mlp", "hidden": "4", "epochs": "1", "limit": "16", "num_tasks": "2", "validation": "0"}
SETTINGS = [f"--set={key}={value}" for key, value in QUICK.items()]
PRESET = "split-cifar10"
GRID = {"lr": ("0.05", "0.1")}


class Here:
    """Executor of this process."""

    def execute(self, jobs: Sequence[Job]) -> Generator[JobEvent, None, None]:
        for job in jobs:
            yield from carry_out(Job.from_json(job.to_json()))


def part(folder: Path, seed: int) -> Path:
    """A folder with a packed part of CIFAR-10, of random pictures."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator) for count in (80, 20)]
    labels = [torch.arange(count) % 10 for count in (80, 20)]
    identity = DATASETS["cifar10"].packed.identity
    arrays = ImageArrays(images[0], labels[0], images[1], labels[1])
    write_packed(folder / "cifar10.packed", PackedPart(identity, "free", "noise", (9,) * 10, (9,) * 10, arrays))
    return folder


def table(path: Path, seed: int) -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed)).tolist()
    rows = "".join(f"{a:.3f},{b:.3f},{c:.3f},{'no' if i % 2 else 'yes'}\n" for i, (a, b, c) in enumerate(x))
    path.write_text("a,b,c,answer\n" + rows)


def finish(request: RunRequest, tasks: int = 2) -> None:
    prepared = prepare(request)
    for _ in run(prepared):
        if len(prepared.result.scores) == tasks:
            break


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two forms of a data set, and runs on the first: a comparison, a search, runs."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        patch.delenv("HATRACK_DATA", raising=False)
        data, _ = part(root / "one", 1), part(root / "other", 2)
        (root / "none").mkdir()
        finish(RunRequest(PRESET, "sgd", 0, root / "run", data, QUICK))
        finish(RunRequest(PRESET, "sgd", 0, root / "begun", data, QUICK), tasks=1)
        plan = ComparisonPlan.make(PRESET, ["sgd"], [0], QUICK)
        jobs = jobs_of(plan, root / "compared", data=data)
        assert all(not isinstance(event, JobFailed) for event in compare(plan, root / "compared", jobs, Here()))
        search = GridSearch.make(PRESET, "sgd", 0, QUICK, {"lr": ("0.1",)})
        assert [*tune(search, root / "tuned", search.jobs(root / "tuned", data=data), Here())]
        for name in ("one", "two"):
            table(root / f"{name}.csv", 0)
        tasks = '[[task]]\npath = "{}.csv"\nlabel = "answer"\ntest_share = 0.25\n'
        (root / "tasks.toml").write_text("".join(map(tasks.format, ("one", "two"))))
        own = ComparisonPlan.make("", ["sgd"], [0], OWN, [root / "tasks.toml"])
        assert [*compare(own, root / "own", jobs_of(own, root / "own"), Here())]
    return root


OWN = {"hidden": "4", "epochs": "1"}


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HATRACK_DATA", raising=False)
    monkeypatch.setenv("HATRACK_OFFLINE", "1")
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


COMMANDS = {
    "a finished run": ["run", PRESET, "--method=sgd", "--out=run", *SETTINGS],
    "a run that was begun": ["run", PRESET, "--method=sgd", "--out=begun", *SETTINGS],
    "a comparison": ["compare", PRESET, "--methods=sgd", "--out=compared", *SETTINGS],
    "a comparison to look at": ["compare", PRESET, "--methods=sgd", "--out=compared", "--dry-run", *SETTINGS],
    "a comparison with a further seed": [
        "compare",
        PRESET,
        "--methods=sgd",
        "--seeds=0-1",
        "--out=compared",
        *SETTINGS,
    ],
    "a comparison of another seed": ["compare", PRESET, "--methods=sgd", "--seeds=1", "--out=compared", *SETTINGS],
    "a comparison of another method": ["compare", PRESET, "--methods=ewc", "--seeds=1", "--out=compared", *SETTINGS],
    "a search": ["tune", PRESET, "--method=sgd", "--grid=lr=0.1", "--out=tuned", *SETTINGS],
    "a search with a larger grid": ["tune", PRESET, "--method=sgd", "--grid=lr=0.1,0.2", "--out=tuned", *SETTINGS],
    "a run to be made again": ["rerun", "run"],
    "a run to be made again in a folder": ["rerun", "run", "--out=again"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_other_data_is_refused_before_anything_is_written(
    command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    before = contents(folder)
    assert main([*command, "--data=other"]) == 2
    said = capsys.readouterr().err
    there = json.loads((folder / "run" / "run.json").read_text())["data"][0]
    now = DATASETS["cifar10"].load(folder / "other").origin
    assert f"holds a run on other data ({there} there, cifar10: {now} now)" in said
    assert "give that data (--data DIR)" in said
    assert said.count("\n") == 1
    assert contents(folder) == before


@pytest.mark.parametrize("data", ["one", "none", "gone"])
@pytest.mark.parametrize("name", ["a finished run", "a comparison", "a comparison to look at", "a search"])
def test_what_is_finished_needs_no_data(
    name: str, data: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main([*COMMANDS[name], f"--data={data}"]) == 0, capsys.readouterr().err


def test_a_worker_that_sees_other_data_does_not_train(folder: Path) -> None:
    plan = ComparisonPlan.make(PRESET, ["sgd"], [0, 1], QUICK)
    for out in (folder / "compared", folder / "new"):
        job = next(job for job in jobs_of(plan, out, data=folder / "one") if job.request.seed == 1)
        sent = Job.from_json(job.to_json())
        elsewhere = replace(sent, request=replace(sent.request, data=folder / "other"))
        (failed,) = carry_out(elsewhere)
        assert isinstance(failed, JobFailed)
        assert "the runs beside this one are on other data (cifar10: packed" in failed.error
        assert not (job.folder / "run.json").exists()
        assert isinstance([*carry_out(sent)][-1], JobDone)


def test_workers_are_told_of_recorded_data_that_this_machine_lacks(folder: Path) -> None:
    plan = ComparisonPlan.make(PRESET, ["sgd"], [1], QUICK)
    (job, *_) = jobs_of(plan, folder / "compared", data=folder / "none")
    (failed,) = carry_out(replace(job, request=replace(job.request, data=folder / "other")))
    assert isinstance(failed, JobFailed)
    assert "on other data" in failed.error


def mixed(folder: Path) -> None:
    """Put a run on other data in the place of a comparison's."""
    there = folder / "compared" / "sgd" / "seed0"
    shutil.rmtree(there)
    finish(RunRequest(PRESET, "sgd", 0, there, folder / "other", QUICK))


@pytest.mark.parametrize(
    "command",
    [
        ["report", "compared"],
        *(COMMANDS[name] for name in ("a comparison", "a comparison of another seed")),
    ],
    ids=lambda command: str(command[0]),
)
@pytest.mark.parametrize("data", ["one", "other", "none"])
def test_a_mixture_is_not_shown(
    command: list[str],
    data: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    mixed(folder)
    assert main([*command, *([f"--data={data}"] if command[0] == "compare" else [])]) == 2
    assert "data" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1
    with pytest.raises(InputError, match=r"hold runs on different data \(cifar10: .*; cifar10: .*\), which cannot be"):
        Comparison.read(folder / "compared")


# --- verifying


def verified(folder: Path, data: str, change: Callable[[Any], None] = lambda content: None) -> Verification:
    edited(folder / "run" / "run.json", change)
    return verify(folder / "run", folder / data)


def edited(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    del content["sha256"]
    change(content)
    write_checked_json(path, content)


def test_a_verdict_names_other_data(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert verified(folder, "one").verdict == "verified"
    said = verified(folder, "other").verdict
    assert said.startswith("not verified: this is other data than the run's (cifar10: packed")
    assert said.endswith("which says nothing of the network; give the run's data (`data_dir`)")
    assert main(["verify", "run", "--data=other"]) == 1
    assert "other data than the run's" in capsys.readouterr().out.splitlines()[-1]
    found = verified(folder, "one", lambda content: content.update(data=["cifar10: pictures"]))
    assert (found.holds, found.bitwise) == (True, False)
    assert found.verdict.startswith(
        "verified, but on other data than the run's (cifar10: pictures there, cifar10: packed"
    )
    assert verified(folder, "one", lambda content: content.update(data=[])).verdict.startswith(
        "verified, but on data unknown to the run;"
    )


# --- settings


def other_lr(content: Any) -> None:
    content["config"]["lr"] = 0.3


SETTLED = [name for name in COMMANDS if name.split()[1] in ("finished", "comparison", "search")]


@pytest.mark.parametrize("name", SETTLED)
def test_other_settings_than_those_of_now_are_refused(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a default has changed: the plan says nothing of it, and finished runs are not made again."""
    monkeypatch.chdir(folder)
    for path in ("run", "compared/sgd/seed0", "tuned/lr=0.05", "compared/joint/seed0"):
        edited(folder / path / "run.json", other_lr)
    before = contents(folder)
    assert main([*COMMANDS[name], "--data=one"]) == 2
    assert "holds a run with other settings: lr (0.3 there, " in (said := capsys.readouterr().err)
    assert said.count("\n") == 1
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["a comparison", "a comparison of another seed", "a search"])
@pytest.mark.parametrize("change", [{"seed": 5}, {"experiment": "demo"}, {"method": "er"}], ids=str)
def test_another_run_in_the_place_of_one(
    change: dict[str, Any], name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for path in ("compared/sgd/seed0", "tuned/lr=0.05"):
        edited(folder / path / "run.json", lambda content: content.update(change))
    assert main([*COMMANDS[name], "--data=one"]) == 2
    (key,) = change
    assert f"holds a run with other settings: {key} ({change[key]} there" in capsys.readouterr().err


# --- one's own files


def own(*more: str) -> list[str]:
    return ["compare", "tasks.toml", "--methods=sgd", "--out=own", *(f"--set={k}={v}" for k, v in OWN.items()), *more]


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--seeds=0-1"], ["--seeds=1"]], ids=" ".join)
def test_files_of_ones_own_that_have_changed(
    more: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved_to(folder, monkeypatch)
    assert main(own("--dry-run")) == 0
    assert "0 of 3 runs to do" in capsys.readouterr().out
    table(folder / "two.csv", 7)
    before = contents(folder)
    assert main(own(*more)) == 2
    said = capsys.readouterr().err
    assert "seed0 holds a run on other data (two: table, SHA-256" in said
    assert "its files have changed since; choose another folder (--out)" in said
    assert contents(folder) == before


@pytest.mark.parametrize("changed", ["one", "two"])
def test_a_run_on_files_that_have_changed_is_not_made_again(
    changed: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that was stopped after its first task only that counts."""
    moved_to(folder, monkeypatch)
    finish(RunRequest("", "sgd", 0, folder / "first", None, OWN, sources=(folder / "tasks.toml",)), tasks=1)
    table(folder / f"{changed}.csv", 7)
    assert main(["rerun", "first"]) == (2 if changed == "one" else 0)
    said = capsys.readouterr().err
    assert ("first holds a run on other data (one: table, SHA-256" in said) == (changed == "one")


def test_a_further_task_of_ones_own_is_for_all_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved_to(folder, monkeypatch)
    table(folder / "three.csv", 3)
    with (folder / "tasks.toml").open("a") as toml:
        toml.write('[[task]]\npath = "three.csv"\nlabel = "answer"\ntest_share = 0.25\n')
    assert main(own("--dry-run")) == 0
    assert "3 of 3 runs to do" in capsys.readouterr().out
    assert main(own("--seeds=1", "--dry-run")) == 2
    said = capsys.readouterr().err
    assert "seed0 holds a run of 2 tasks, and there are 3 now; compare it, too (--methods and --seeds)" in said


def moved_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the copied comparison of one's own tasks be about the copied files."""
    monkeypatch.chdir(folder)
    for path in [folder / "own" / "comparison.json", *folder.glob("own/*/*/run.json")]:
        edited(path, lambda content: content.update(sources=[str(folder / "tasks.toml")]))
    assert read_result(folder / "own" / "sgd" / "seed0" / "run.json").sources == (str(folder / "tasks.toml"),)


# --- tables of benchmarks


def test_rows_of_a_table_are_on_the_same_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    tables = importlib.import_module("tables")
    line = read_result(folder / "run" / "run.json").data[0]
    record = folder / "record.json"
    rows = [{"experiment": "demo", "data": ["cifar10: pictures"]}, {"experiment": PRESET}]
    record.write_text(json.dumps({"runs": [*rows, {"experiment": PRESET, "data": [line]}]}))
    tables.require_same_data(record, PRESET, folder / "one")
    tables.require_same_data(folder / "new.json", PRESET, folder / "other")
    with pytest.raises(InputError, match=r"record.json has rows on other data \(cifar10: .* there, cifar10: .* now\)"):
        tables.require_same_data(record, PRESET, folder / "other")
