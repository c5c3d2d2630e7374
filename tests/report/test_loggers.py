"""Curves of a run while it goes on: what loggers are told, and where they write."""

from __future__ import annotations

import re
import sys
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hatrack.cli import main
from hatrack.errors import CheckpointError, InputError
from hatrack.experiments import RunRequest, TaskLearned, forget_in_run, prepare, read_result
from hatrack.experiments.folder import LOG_FOLDERS, LOGS, note_logs, noted_logs
from hatrack.experiments.forgetting import WANDB_SERVER
from hatrack.report.loggers import LOGGERS, require_logger, with_logs
from hatrack.train import EpochDone

SETTINGS: dict[str, Any] = {"epochs": 2, "hidden": (8,), "limit": 20, "num_tasks": 2}
QUICK = [
    *("--epochs", "2", "--set", "hidden=8", "--limit", "20", "--set", "num_tasks=2", "--threads", "1"),
]


class Kept:
    """A logger that keeps what it is told."""

    def __init__(self, place: str = "memory://here") -> None:
        self.place = place
        self.settings: dict[str, Any] = {}
        self.points: list[tuple[int, dict[str, float]]] = []
        self.closed: list[bool] = []

    def describe(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.points.append((step, dict(values)))

    def close(self, *, complete: bool) -> None:
        self.closed.append(complete)

    def curve(self, name: str) -> list[tuple[int, float]]:
        return [(step, values[name]) for step, values in self.points if name in values]


def request(out: Path | None) -> RunRequest:
    return RunRequest("demo", "hat", 0, out, overrides=SETTINGS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Kept]:
    """The folder of a run, and what a logger of it was told."""
    folder, kept = tmp_path_factory.mktemp("runs") / "run", Kept()
    for _ in with_logs(prepare(request(folder)), kept):
        pass
    return folder, kept


def test_a_logger_is_told_all_epochs_and_tasks(finished: tuple[Path, Kept]) -> None:
    folder, kept = finished
    result = read_result(folder / "run.json")
    losses = [(epoch + 1, loss) for epoch, loss in enumerate(sum((h.valid_loss for h in result.history), ()))]
    assert kept.curve("epochs/valid_loss") == [(step, pytest.approx(loss, abs=1e-5)) for step, loss in losses]
    assert kept.curve("epochs/task") == [(1, 1), (2, 1), (3, 2), (4, 2)]
    for number, task in enumerate(result.tasks):
        scores = [(row + 1, result.scores[row][number].value) for row in range(number, 2)]
        assert kept.curve(f"tasks/{task.name}") == scores
    figures = result.metrics()
    assert kept.curve("average_accuracy")[-1] == (2, figures["average_accuracy"])
    assert kept.curve("forgetting")[-1] == (2, figures["forgetting"])
    assert kept.curve("in_use")[-1] == (2, result.capacity["units"])  # type: ignore[index]
    assert {"method": "hat", "seed": 0, "epochs": 2}.items() <= kept.settings.items()
    assert kept.closed == [True]


@pytest.mark.parametrize("until", [EpochDone, TaskLearned])
def test_epochs_are_counted_on_after_an_interruption(
    tmp_path: Path, finished: tuple[Path, Kept], until: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hatrack.experiments.folder.SHARE", 1e9)  # every epoch is kept
    folder, first, second = tmp_path / "run", Kept(), Kept()
    events = with_logs(prepare(request(folder)), first)
    for event in events:
        if isinstance(event, until):
            break
    events.close()
    assert first.closed == [False]
    for _ in with_logs(prepare(request(folder)), second):
        pass
    told = dict(first.curve("epochs/valid_loss")) | dict(second.curve("epochs/valid_loss"))
    assert sorted(told.items()) == finished[1].curve("epochs/valid_loss")
    again = {step for step, _ in first.curve("epochs/lr")} & {step for step, _ in second.curve("epochs/lr")}
    assert len(again) <= 1  # the one that was under way


def test_places_outside_of_the_folder_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    note_logs(folder, [str(folder / "tensorboard"), str(folder)])
    assert noted_logs(folder) == ()
    assert not folder.exists()
    note_logs(folder, ["https://example.org/curves", str(folder / "mlflow")])
    note_logs(folder, [str(tmp_path / "curves")])
    assert set(noted_logs(folder)) == {"https://example.org/curves", str(tmp_path / "curves")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        note_logs(folder, ["https://example.org/from-inside"])
    assert "https://example.org/from-inside" in noted_logs(folder)
    (folder / LOGS).write_text("{}")
    with pytest.raises(CheckpointError, match=r"logs\.json"):
        note_logs(folder, ["https://example.org"])


def test_a_task_that_is_forgotten_is_told_to_be_in_logs_elsewhere(
    finished: tuple[Path, Kept], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished[0]
    assert noted_logs(folder) == ("memory://here",)
    for name in LOG_FOLDERS:
        (folder / name / "offline-run-1-a").mkdir(parents=True)
        (folder / name / "offline-run-1-a" / "run-a.wandb.synced").write_text("coat-sandal")
    assert main(["forget", str(folder), "--task", "tshirt-trouser"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    (removed,) = re.findall(r"removed: ((?:[\w.]+, )*[\w.]+)", said)
    assert {"mlflow", "tensorboard", "wandb"} <= set(removed.split(", "))
    assert "outside of its folder: memory://here; remove them" in said
    assert WANDB_SERVER in said
    assert not any((folder / name).exists() for name in LOG_FOLDERS)
    assert set(forget_in_run(folder, "pullover-dress").elsewhere) == {"memory://here", WANDB_SERVER}


def test_loggers_have_folders_of_their_names() -> None:
    assert tuple(LOGGERS) == LOG_FOLDERS


@pytest.mark.parametrize("name", LOGGERS)
def test_a_package_that_is_missing_is_said_before_anything_is_learned(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "")
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["run", "demo", "--method", "hat", *QUICK, "--log", name, "--out", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert f"pip install 'hatrack[{name}]'" in captured.err
    assert not captured.out
    assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))  # as of a folder of that name
    with pytest.raises(InputError, match="mere folder"):
        require_logger(name)


def test_an_unknown_logger_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "demo", "--method", "hat", "--log", "tensorbord"]) == 2
    assert 'Did you mean "tensorboard"' in capsys.readouterr().err
    with pytest.raises(InputError, match="did you mean 'mlflow'"):
        require_logger("mlflo")


@pytest.mark.slow
def test_a_run_can_be_followed_in_tensorboard(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    words = [*QUICK, "--quiet", "--log", "tensorboard", "--out", str(out)]
    assert main(["run", "demo", "--method", "hat", *words]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the reader's own dependencies
        events = reader.EventAccumulator(str(out / "tensorboard"))
        events.Reload()
    result = read_result(out / "run.json")
    names = set(events.Tags()["scalars"])
    assert {f"tasks/{task.name}" for task in result.tasks} <= names
    assert {"epochs/train_loss", "epochs/lr", "average_accuracy", "forgetting", "in_use"} <= names
    assert [event.step for event in events.Scalars("epochs/valid_accuracy")] == [1, 2, 3, 4]
    written = [event.value for event in events.Scalars(f"tasks/{result.tasks[0].name}")]
    assert written == pytest.approx([row[0].value for row in result.scores])
    assert not (out / LOGS).exists()


def test_a_logger_that_fails_ends_the_run_in_one_line_and_it_goes_on_without(tmp_path: Path) -> None:
    class Full(Kept):
        def log(self, values: Mapping[str, float], step: int) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"memory://here cannot be written.*No space left on device.*goes on if it is"):
        for _ in with_logs(prepare(request(tmp_path)), Full()):
            pass
    for _ in with_logs(prepare(request(tmp_path))):
        pass
    assert read_result(tmp_path / "run.json").metrics()["average_accuracy"] is not None
