from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from hatrack.cli import main
from hatrack.experiments import read_result

QUICK = [
    "--epochs",
    "2",
    "--set",
    "hidden=20,20",
    "--limit",
    "100",
    "--set",
    "num_tasks=2",
    "--threads",
    "1",
    "--quiet",
]


@pytest.mark.slow
def test_a_run_can_be_followed(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    assert main(["run", "demo", "--method", "hat", *QUICK, "--log", "tensorboard", "--out", str(out)]) == 0
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
