"""The files that a task was read from are printed by a run and kept in ``run.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hatrack.cli import main
from hatrack.errors import CheckpointError
from hatrack.experiments.results import TaskSummary, read_result, write_result
from hatrack.storage.checked_json import write_checked_json
from hatrack.streams import Scaling, Task
from support.own_sources import archive, pictures
from support.records import of_a_run

QUICK = ["--method", "sgd", "--epochs", "1", "--set", "hidden=4", "--set", "batch_size=8"]


def run(capsys: pytest.CaptureFixture[str], out: Path, *arguments: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Make a run; return what it printed of its tasks, and what it recorded of them."""
    assert main(["run", *arguments, *QUICK, "--out", str(out)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("task ")]
    return lines, json.loads((out / "run.json").read_text())["tasks"]


def test_a_folder_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "test"):
        pictures(tmp_path / "set" / part, {"a": 8, "b": 8})
    (tmp_path / "set" / "train" / "a" / ".DS_Store").write_bytes(b"?")
    (tmp_path / "set" / "README").write_bytes(b"?")
    for path in (tmp_path / "set" / "train").glob("*/*.png"):
        Image.fromarray(np.arange(10, 40, dtype=np.uint8).reshape(6, 5)).save(path)
    lines, (task,) = run(capsys, tmp_path / "run", "--tasks", str(tmp_path / "set"))
    assert lines == [
        "task set: 32 files read, 2 passed over (1 hidden or left by the system, 1 of other kinds); 2 classes (a, b); "
        "samples (1, 6, 5), values 10 to 39; scaling: mean and deviation of each channel, over 16 samples"
    ]
    assert task["classes"] == 2
    assert task["class_names"] == ["a", "b"]
    assert task["files"] == {
        "read": 32,
        "passed_over": 2,
        "reasons": {"hidden or left by the system": 1, "of other kinds": 1},
    }
    assert (task["shape"], task["range"]) == ([1, 6, 5], [10, 39])
    assert (task["scaled_over"], task["train"] + task["valid"]) == (16, 16)
    assert task["scaling"] == "mean and deviation of each channel"


def test_arrays_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.linspace(-1.5, 2, 120).reshape(30, 4)
    archive(tmp_path / "arrays.npz", x_train=x, x_test=x[:9])
    rows = [f"{size},{size % 3},{1 - 2 * (size % 2)}" for size in range(30)]
    for name in ("all", "held"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["size,kind,sign", *rows]))
    (tmp_path / "tasks.toml").write_text(
        '[stream]\nvalidation = 0\n[[task]]\npath = "all.csv"\nlabel = "kind"\ntest = "held.csv"\n'
    )
    lines, (task,) = run(capsys, tmp_path / "table", str(tmp_path / "tasks.toml"))
    assert lines == [
        "task all: 2 files read, 0 passed over; 3 classes (0, 1, 2); samples (2,), values -1 to 29; "
        "scaling: mean and deviation of each feature"
    ]
    assert task["files"] == {"read": 2, "passed_over": 0}
    lines, (task,) = run(capsys, tmp_path / "npz", str(tmp_path / "arrays.npz"), "--set", "validation=0")
    assert lines == [
        "task arrays: 1 file read, 0 passed over; 3 classes (0, 1, 2); samples (4,), values -1.5 to 2; "
        "scaling: mean and deviation of each feature"
    ]
    assert task["range"] == [-1.5, 2]


def test_presets_are_recorded_and_files_of_one_s_own_alone_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, tasks = run(capsys, tmp_path / "run", "demo", "--limit", "20", "--set", "num_tasks=1")
    assert lines == []
    (task,) = tasks
    assert "files" not in task
    assert len(task["class_names"]) == task["classes"]
    assert (task["shape"], task["range"]) == ([1, 28, 28], [0, 255])


def test_what_the_seed_drew_to_test_on_and_how_many_of_each_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.linspace(-1.5, 2, 120).reshape(30, 4)
    archive(tmp_path / "own.npz", x_train=x, x_test=None, y_test=None)
    words = [str(tmp_path / "own.npz"), "--set", "test_share=0.4"]
    _, (plain,) = run(capsys, tmp_path / "plain", *words)
    assert plain["test_drawn"] == 0.4
    assert "test_by_class" not in plain
    _, (task,) = run(capsys, tmp_path / "balanced", *words, "--set", "metric=balanced_accuracy")
    assert sum(task["test_by_class"]) == task["test"]
    recorded = read_result(tmp_path / "balanced" / "run.json").tasks[0]
    assert (recorded.test_drawn, recorded.test_by_class) == (0.4, tuple(task["test_by_class"]))
    archive(tmp_path / "said.npz", x_train=x, x_test=x[:9])
    _, (task,) = run(capsys, tmp_path / "said", str(tmp_path / "said.npz"), *words[1:])
    assert "test_drawn" not in task, "the file says what to test on"


def test_many_classes_are_not_all_printed() -> None:
    told = {"shape": (2,), "range": (0, 1.5), "scaling": Scaling.NONE}
    summary = TaskSummary("t", 7, 1, 1, 1, class_names=tuple("abcdefg"), **told)
    assert summary.say() == "task t: 7 outputs (a, b, c, d, e, …); samples (2,), values 0 to 1.5; scaling: none"


def test_tensors_have_no_files() -> None:
    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    summary = TaskSummary.of(Task.from_tensors("t", x, y, x, y))
    assert (summary.files, summary.shape, summary.range, summary.scaling) == (None, (2,), (0, 0), Scaling.NONE)
    nested = TaskSummary.of(Task.from_tensors("t", {"a": x}, y, {"a": x}, y))
    assert (nested.shape, nested.range) == (None, None)
    assert nested.say() == "task t: 2 classes (0, 1); scaling: none"


def test_what_is_recorded_is_read_and_files_without_it_are(tmp_path: Path) -> None:
    result = of_a_run()
    write_result(tmp_path / "run.json", result)
    assert read_result(tmp_path / "run.json") == result
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["schema"] == 2
    assert set(content["tasks"][0]) - set(content["tasks"][1]) == {"class_names", "files", "shape", "range", "scaling"}
    earlier = read_result(tmp_path / "run.json").tasks[1]
    assert (earlier.class_names, earlier.files, earlier.shape, earlier.range, earlier.scaling) == (None,) * 5
    assert earlier.say() == ""


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": ["a"]},
        {"class_names": 2},
        {"files": {"read": 3, "passed_over": 1}},
        {"shape": ["a"]},
        {"range": [0]},
        {"range": ["0", "1"]},
        {"scaling": "somehow"},
        {"test_seen": {"a": 0}},
        {"test_seen": ["a"]},
        {"scaled_over": 1.5},
        {"test_drawn": 1.0},
        {"test_drawn": "0.5"},
        {"test_by_class": [3, 0]},
        {"test_by_class": 3},
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    result = of_a_run()
    content = json.loads(json.dumps(result.to_json()))
    content["tasks"][0] |= change
    write_checked_json(tmp_path / "run.json", content)
    with pytest.raises(CheckpointError, match="is damaged, or not a result of hatrack"):
        read_result(tmp_path / "run.json")
