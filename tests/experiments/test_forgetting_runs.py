"""Forgetting a task of a run: nothing in its folder reveals it, the rest stands, and interruptions are made good."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from hatrack.cli import main
from hatrack.errors import CheckpointError, GuaranteeError, InputError
from hatrack.experiments import (
    Comparison,
    RunRequest,
    TaskLearned,
    export_run,
    forget_in_run,
    open_run,
    prepare,
    read_result,
    run,
    verify,
)
from hatrack.experiments.comparison import write_failure
from hatrack.experiments.jobs import Job, JobFailed, carry_out
from hatrack.experiments.plan import ComparisonPlan, write_plan
from hatrack.report.runs import Runs
from hatrack.storage import atomic

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {"epochs": 1, "hidden": (24, 20), "limit": 60, "num_tasks": 3}
TASKS = ("tshirt-trouser", "pullover-dress", "coat-sandal")


def request(method: str, out: Path) -> RunRequest:
    return RunRequest("demo", method, 0, out, overrides=QUICK)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs of three small tasks, by method."""
    made = {}
    for method in ("hat", "packnet", "pmask", "sgd"):
        made[method] = tmp_path_factory.mktemp("runs") / method
        for _ in run(prepare(request(method, made[method]))):
            pass
    return made


@pytest.fixture(params=["hat", "packnet"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders[request.param], tmp_path / request.param))


def files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path, path.read_bytes()


def secrets(folder: Path, task: str) -> set[bytes]:
    """The task's name, and every two neighbouring numbers of its own tensors and logits; the hash of its logits."""
    result = read_result(folder / "run.json")
    index = [each.name for each in result.tasks].index(task)
    tensors = safetensors.torch.load_file(folder / "net.hat")
    own = [
        value for name, value in tensors.items() if name.startswith((f"tasks.{index}.head", f"tasks.{index}.choice"))
    ]
    own.append(safetensors.torch.load_file(folder / "logits.safetensors")[task])
    found = {task.encode(), *(row[index].logits_sha256.encode() for row in result.scores[index:])}
    for value in own:
        content = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        found |= {content[at : at + 8] for at in range(0, len(content) - 7, 8)}
    return found - {bytes(8)}


@pytest.mark.parametrize("task", TASKS)
def test_no_file_of_the_folder_reveals_it(folder: Path, task: str) -> None:
    hidden = secrets(folder, task)
    before, logits = read_result(folder / "run.json"), safetensors.torch.load_file(folder / "logits.safetensors")
    copies = ("epoch1.hat", "training.safetensors", "net.previous.hat", "training.previous.safetensors")
    for copy in (*copies, ".net.hat.a1b2", ".net.previous.hat.77"):
        shutil.copy(folder / "net.hat", folder / copy)
    shutil.copy(folder / "run.json", folder / "run.previous.json")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events.out").write_bytes(b"\0tasks/" + task.encode())
    write_failure(folder, f"loss of {task} is nan")
    (folder / "mine.txt").write_text("a file of my own")
    assert all(any(secret in content for _, content in files(folder)) for secret in hidden)

    done = forget_in_run(folder, task)

    assert done.report is not None
    assert done.report.task == task
    assert not done.remaining
    assert {path.name for path in done.rewritten} == {"epoch1.hat", "net.hat", "logits.safetensors", "run.json"}
    for path, content in files(folder):
        assert not [secret for secret in hidden if secret in content], path
    assert {path.name for path, _ in files(folder)} == {
        *(".lock", "epoch1.hat", "net.hat", "logits.safetensors", "run.json", "mine.txt"),
    }
    after = read_result(folder / "run.json")
    others = [name for name in TASKS if name != task]
    kept = [TASKS.index(name) for name in others]
    assert [each.name for each in after.tasks] == others
    assert after.forgotten == 1
    assert after.scores == tuple(tuple(before.scores[row][column] for column in kept if column <= row) for row in kept)
    assert after.epochs == tuple(before.epochs[index] for index in kept)
    assert [history.valid_loss for history in after.history] == [before.history[index].valid_loss for index in kept]
    first = TASKS.index(task)  # what was measured of the whole network from then on says how large the task was
    assert [bool(history.used) for history in after.history] == [index < first for index in kept]
    assert [history.capacity is None for history in after.history[:-1]] == [index >= first for index in kept[:-1]]
    assert after.capacity == after.history[-1].capacity
    now = safetensors.torch.load_file(folder / "logits.safetensors")
    assert now.keys() == set(others)
    assert all(torch.equal(now[name], logits[name]) for name in others)


def test_what_is_left_is_verified_shown_asked_and_exported_and_does_not_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    method = read_result(folder / "run.json").method
    assert main(["forget", str(folder), "--task", TASKS[0]]) == 0
    assert "entries were drawn anew" in capsys.readouterr().out
    verification = verify(folder)
    assert verification.bitwise
    assert verification.holds
    assert [verdict.task for verdict in verification.verdicts] == [*TASKS[1:]]
    assert all(verdict.constant for verdict in verification.verdicts)
    for words in (["verify", str(folder)], ["report", str(folder), "--format", "csv", "--table", "accuracy"]):
        assert main(words) == 0
    shown = capsys.readouterr().out
    assert TASKS[1] in shown
    assert TASKS[0] not in shown
    assert main(["rerun", str(folder)]) == 2
    assert "a task was forgotten, so that the run cannot be made again" in capsys.readouterr().err
    assert [task.name for task in open_run(folder)[1]] == [*TASKS[1:]]
    assert export_run(folder, TASKS[2], tmp_path / "a.safetensors").samples > 0
    with pytest.raises(InputError, match=f"in {folder} a task was forgotten, so that this run is over"):
        prepare(request(method, folder))
    assert forget_in_run(folder, TASKS[1]).report is not None
    with pytest.raises(InputError, match="2 tasks were forgotten"):
        prepare(request(method, folder))
    forget_in_run(folder, TASKS[2])
    assert read_result(folder / "run.json").scores == ()
    with pytest.raises(InputError, match="all tasks that were learned have been forgotten"):
        verify(folder)


def writes(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    """Let so many files be written, and then interrupt."""
    replace_file, done = atomic._replace, 0

    def counted(path: Path, content: bytes) -> None:
        nonlocal done
        if done == allowed:
            raise KeyboardInterrupt
        done += 1
        replace_file(path, content)

    monkeypatch.setattr(atomic, "_replace", counted)


def test_the_same_command_finishes_what_was_interrupted_between_any_two_writes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "net.hat", folder / "epoch1.hat")
    whole = shutil.copytree(folder, tmp_path / "whole")
    assert len(forget_in_run(whole, TASKS[1]).rewritten) == 4
    expected = {path.name: content for path, content in files(whole) if path.name != ".lock"}
    method = read_result(folder / "run.json").method
    for allowed in range(5):
        part = shutil.copytree(folder, tmp_path / f"{allowed} writes")
        with pytest.MonkeyPatch.context() as monkeypatch:
            writes(monkeypatch, allowed)
            with pytest.raises(KeyboardInterrupt):
                forget_in_run(part, TASKS[1])
        if allowed:  # nothing takes the folder for what it is not
            for words in (["verify", str(part)], ["forget", str(part), "--task", TASKS[2]]):
                assert main(words) == 1
                assert f"--task {TASKS[1]}" in capsys.readouterr().err
            with pytest.raises(CheckpointError, match="forgetting a task was interrupted; finish it first"):
                prepare(request(method, part))
        else:
            assert verify(part).holds
        assert main(["forget", str(part), "--task", TASKS[1]]) == 0
        assert {path.name: content for path, content in files(part) if path.name != ".lock"} == expected


def test_nothing_is_written_if_other_tasks_would_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise GuaranteeError("forgetting would change the outputs of others")

    monkeypatch.setattr("hatrack.models.base.MaskedNetwork.forget", refuse)
    before = dict(files(folder))
    with pytest.raises(GuaranteeError):
        forget_in_run(folder, TASKS[0])
    assert {path: content for path, content in files(folder) if path.name != ".lock"} == before


def test_a_damaged_copy_stops_it_before_anything_is_written(folder: Path) -> None:
    (folder / "epoch1.hat").write_bytes((folder / "net.hat").read_bytes()[:-8])
    before = dict(files(folder))
    with pytest.raises(CheckpointError, match=r"epoch1\.hat is damaged"):
        forget_in_run(folder, TASKS[0])
    assert {path: content for path, content in files(folder) if path.name != ".lock"} == before


def test_a_run_that_is_not_finished(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    prepared = prepare(request("hat", folder))
    learned = 0
    for event in run(prepared):
        learned += isinstance(event, TaskLearned)
        if learned == 2:
            break
    with pytest.raises(InputError, match=f"{TASKS[2]}' has not been learned yet"):
        forget_in_run(folder, TASKS[2])
    forget_in_run(folder, TASKS[0])
    assert verify(folder).holds
    result = read_result(folder / "run.json")
    assert [task.name for task in result.tasks] == [*TASKS[1:]]
    assert len(result.scores) == 1


@pytest.mark.parametrize(
    "settings", [{"capacity": "grow", "growth_threshold": 0.9}, {"hard": False}], ids=["grown", "soft"]
)
def test_networks_that_grew_and_soft_masks(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in run(prepare(RunRequest("demo", "hat", 0, folder, overrides={**QUICK, **settings}))):
        pass
    hidden = secrets(folder, TASKS[1])
    forget_in_run(folder, TASKS[1])
    assert not [path for path, content in files(folder) if any(secret in content for secret in hidden)]
    assert verify(folder).holds


def test_what_cannot_be_forgotten_says_why(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["forget", str(folders["hat"]), "--task", "absent"]) == 2
    assert "there is no task 'absent'" in capsys.readouterr().err
    assert main(["forget", str(folders["sgd"]), "--task", TASKS[0]]) == 2
    assert "does not know what belongs to one task alone" in capsys.readouterr().err
    assert main(["forget", str(tmp_path), "--task", TASKS[0]]) == 2
    assert "holds no run.json" in capsys.readouterr().err


def test_files_of_ones_own_that_name_the_task_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "notes.txt").write_text(f"remember {TASKS[0]}")
    (folder / "others.txt").write_text(f"remember not-{TASKS[0]}")
    (folder / "another run").mkdir()
    shutil.copy(folder / "run.json", folder / "another run")
    assert main(["forget", str(folder), "--task", TASKS[0]]) == 1
    said = capsys.readouterr().out
    assert "notes.txt is not of the run and still names it" in said
    assert "others.txt" not in said
    assert "another run" not in said


def test_own_tasks_leave_neither_path_nor_digest_and_their_data_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 2
    for name in ("alpha", "beta", "gamma"):
        np.savez(f"{name}.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    quick = ["--epochs", "1", "--set", "hidden=8", "--set", "num_tasks=3", "--quiet", "--out", "run"]
    assert main(["run", "--tasks", "alpha.npz", "beta.npz", "gamma.npz", "--method", "hat", *quick]) == 0
    Path("beta.npz").unlink()
    assert main(["forget", "run", "--task", "beta"]) == 0
    assert not [path for path, content in files(Path("run")) if b"beta" in content]
    result = read_result(Path("run/run.json"))
    assert [Path(source).stem for source in result.sources] == ["alpha", "gamma"]
    assert "num_tasks=2" in result.command
    assert result.config["num_tasks"] == 2
    assert verify(Path("run")).holds
    alone = ["--epochs", "1", "--set", "hidden=8", "--quiet", "--out", "alone"]
    assert main(["run", "alpha.npz", "--method", "hat", *alone]) == 0
    assert read_result(Path("alone/run.json")).experiment == "alpha"
    assert main(["forget", "alone", "--task", "alpha"]) == 0
    assert not [path for path, content in files(Path("alone")) if b"alpha" in content]


def test_comparisons_leave_it_out(folders: dict[str, Path], tmp_path: Path) -> None:
    plan = ComparisonPlan.make("demo", ["hat", "pmask"], [0], QUICK)
    write_plan(tmp_path, plan, {})
    for method in ("hat", "pmask"):
        shutil.copytree(folders[method], tmp_path / method / "seed0")
    place = tmp_path / "hat" / "seed0"
    job = Job(RunRequest("demo", "hat", 0, place, overrides=QUICK))
    assert job.finished() is not None
    forget_in_run(place, TASKS[0])
    assert job.finished() is None
    comparison = Comparison.read(tmp_path)
    assert comparison.run("hat", 0) is None
    assert comparison.run("pmask", 0) is not None
    runs = Runs.of(comparison.results.values())
    assert runs.labels == ("pmask",)
    assert runs.left_out == ("hat, seed 0: a task of it was forgotten",)
    (failed,) = carry_out(job)
    assert isinstance(failed, JobFailed)
    assert "this run is over" in failed.error
    alone = Runs.of([read_result(place / "run.json")])
    assert alone.task_names == TASKS[1:]
