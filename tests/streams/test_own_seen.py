"""Test samples of one's own tasks that are training samples: counted as by comparing all with all, and said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hatrack.cli import main
from hatrack.experiments.results import read_result
from hatrack.objectives import Classification
from hatrack.streams import EvaluationPart, Split, StreamOptions, Task, TaskStream, own_stream
from hatrack.streams.own.columns import Column, ColumnKind, TableRows
from hatrack.streams.own.seen import seen_samples
from hatrack.streams.transforms import Standardise
from support.own_sources import RANDOM, archive, pictures

CLASSES = Classification(("a", "b"))


def task_of(name: str, train: Tensor, valid: Tensor, test: Tensor, transform: Any = None) -> Task:
    """Make a task of samples, whose splits are parts of one source each."""
    both = torch.cat([train, valid])
    y = torch.arange(len(both)) % 2
    everything = Split(both, torch.arange(len(both)), y, transform)
    train_split = everything.part(torch.arange(len(train)))
    valid_split = everything.part(torch.arange(len(train), len(both))) if len(valid) else train_split
    return Task(
        name,
        CLASSES,
        train_split,
        valid_split,
        Split(test, torch.arange(len(test)), torch.arange(len(test)) % 2, transform),
    )


def slowly(tasks: list[Task]) -> list[dict[str, int]]:
    """Compare every test sample with every training sample of every task, number by number."""
    found = []
    for task in tasks:
        counts = {}
        for other in tasks:
            trained = [split.source[row] for split in (other.train, other.valid) for row in split.rows]
            count = sum(any(torch.equal(sample, each) for each in trained) for sample in task.test.source)
            counts |= {other.name: count} if count else {}
        found.append(counts)
    return found


small = st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=2, max_size=2), min_size=1, max_size=6)


@given(st.lists(st.tuples(small, small, small), min_size=1, max_size=3))
def test_counts_are_those_of_comparing_all_with_all(parts: list[tuple[list[list[float]], ...]]) -> None:
    tasks = [
        task_of(f"t{index}", *(torch.tensor(part).to(torch.float64 if index % 2 else torch.float32) for part in of))
        for index, of in enumerate(parts)
    ]
    wide = [task_of(task.name, *_wide(task)) for task in tasks]
    assert [{each.task: each.count for each in of} for of in seen_samples(tasks)] == slowly(wide)
    for task, of in zip(tasks, seen_samples(tasks), strict=True):
        for each in of:
            other = next(one for one in tasks if one.name == each.task)
            assert torch.equal(task.test.source[each.test_row].double(), other.train.source[each.train_row].double())


def _wide(task: Task) -> tuple[Tensor, Tensor, Tensor]:
    valid = task.valid.rows if task.valid is not task.train else task.valid.rows[:0]
    x = task.train.source.double()
    return x[task.train.rows], x[valid], task.test.source.double()


def test_scaling_does_not_hide_a_row_and_a_category_is_the_text_that_it_stands_for() -> None:
    """The codes of categories are those of each task, and so are mean and deviation."""

    def rows(categories: tuple[str, ...], mean: float) -> TableRows:
        columns = (Column("town", ColumnKind.CATEGORIES, categories), Column("rooms"))
        scale = Standardise(torch.full((1, 3), mean, dtype=torch.float64), torch.full((1, 3), 2.0, dtype=torch.float64))
        return TableRows(columns, scale)

    train, test = torch.tensor([[0.0, 5.0], [1.0, 6.0]]), torch.tensor([[0.0, -0.0], [1.0, 7.0]])
    one = task_of("one", train, train[:0], test, rows(("a", "b"), 0.5))
    other = task_of("other", torch.tensor([[0.0, 0.0], [1.0, 9.0]]), train[:0], train, rows(("a", "b"), 3.0))
    first, second = seen_samples([one, other])
    assert [(each.task, each.count) for each in first] == [("other", 1)], "-0 is 0"
    assert [(each.task, each.count) for each in second] == [("one", 2)]


def homes(path: Path, rows: int = 60) -> Path:
    values = np.random.default_rng(1).normal(5, 2, (rows, 2)).round(3)
    lines = [f"{a},{b},{int(a > 5)},{int(b > 5)}" for a, b in values]
    path.write_text("\n".join(["rooms,distance,garden,garage", *lines]) + "\n")
    return path


def two_tasks(folder: Path, how: str) -> TaskStream:
    tasks = (
        f'[[task]]\nname = "{label}"\npath = "homes.csv"\nlabel = "{label}"\ndrop = ["{other}"]\n{how}\n'
        for label, other in (("garden", "garage"), ("garage", "garden"))
    )
    (folder / "tasks.toml").write_text("".join(tasks))
    return own_stream([folder / "tasks.toml"]).build(StreamOptions(0, validation=0.2))


def test_two_tasks_of_one_table_are_told_that_they_train_on_each_other_s_test_samples(tmp_path: Path) -> None:
    homes(tmp_path / "homes.csv")
    stream = two_tasks(tmp_path, "test_share = 0.3")
    (note,) = stream.notes
    count = (stream[1].test_seen or {})["garden"]
    assert 0 < count < len(stream[1].test) == 18
    assert set(stream[0].test_seen or {}) == {"garage"}, "of none of its own"
    assert f"{count} of the 18 of garage in garden" in note
    assert "test = ..." in note
    lines = (tmp_path / "homes.csv").read_text().splitlines()
    (tmp_path / "homes.csv").write_text("\n".join(lines[:43]))
    (tmp_path / "held.csv").write_text("\n".join([lines[0], *lines[43:]]))
    common = two_tasks(tmp_path, 'test = "held.csv"')
    assert common.notes == (), "the remedy of the note"
    assert [task.test_seen for task in common] == [{}, {}]


def test_duplicates_in_every_kind_of_file_are_said_once(tmp_path: Path) -> None:
    x = RANDOM.normal(3, 2, (30, 4))
    archive(tmp_path / "a.npz", x_train=x, x_test=np.concatenate([x[4:9], RANDOM.normal(3, 2, (4, 4))]))
    (note,) = own_stream([tmp_path / "a.npz"]).build(StreamOptions(0)).notes
    assert note == (
        "task a: 5 of 9 test samples are identical with training samples (such as x_test[0] and x_train[4]), so that "
        "tests on them are no tests"
    )
    table = homes(tmp_path / "homes.csv")
    text = table.read_text()
    lines = text.splitlines(keepends=True)
    table.write_text(text + "".join(lines[1:]))
    (tmp_path / "tasks.toml").write_text('[[task]]\npath = "homes.csv"\nlabel = "garage"\ntest_share = 0.3\n')
    (note,) = own_stream([tmp_path / "tasks.toml"]).build(StreamOptions(0)).notes
    found = re.search(
        r"of 36 test samples are identical with training samples \(such as line (\d+) and line (\d+)\)", note
    )
    assert found is not None
    one, other = sorted(map(int, found.groups()))
    assert other - one == 60, "the lines of the file, however it was divided"


def test_rows_that_are_alike_anyway_may_be_so_by_chance(tmp_path: Path) -> None:
    x = np.arange(120).reshape(60, 2) // 2 % 4
    archive(tmp_path / "a.npz", x_train=x, y_train=np.arange(60) % 3, x_test=x[:9])
    (note,) = own_stream([tmp_path / "a.npz"]).build(StreamOptions(0)).notes
    assert (
        "(such as x_test[0] and x_train[0]), and 60 of 60 training samples are identical with each other: where these"
        in note
    )


@pytest.mark.parametrize("part", EvaluationPart)
def test_samples_that_are_left_out_are_not_seen(part: EvaluationPart, tmp_path: Path) -> None:
    """A limit leaves out what else would be seen; validation samples that a task is tested on are not its own."""
    x = RANDOM.normal(3, 2, (30, 4))
    archive(tmp_path / "a.npz", x_train=x, x_test=x[:9])
    options = StreamOptions(0, validation=0.3, limit=6, tested_on=part)
    task = own_stream([tmp_path / "a.npz"]).build(options)[0]
    kept = {*task.train.rows.tolist(), *task.valid.rows.tolist()}
    wanted = len(kept & set(range(9))) if part is EvaluationPart.TEST else 0
    assert task.test_seen == ({"a": wanted} if wanted else {})


def test_a_run_says_it_once_and_keeps_it_until_the_other_task_is_forgotten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    homes(tmp_path / "homes.csv")
    two_tasks(tmp_path, "test_share = 0.3")
    command = ["run", str(tmp_path / "tasks.toml"), "--method", "sgd", "--epochs", "1", "--set", "hidden=4"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    assert " ".join(capsys.readouterr().out.split()).count("identical with training samples of other tasks") == 1
    recorded = read_result(tmp_path / "run" / "run.json")
    entries = json.loads((tmp_path / "run" / "run.json").read_text())["tasks"]
    assert [list(entry["test_seen"]) for entry in entries] == [["garage"], ["garden"]]
    assert [task.test_seen for task in recorded.tasks] == [entry["test_seen"] for entry in entries]
    left = recorded.without_task("garden", None, None)
    assert [task.test_seen for task in left.tasks] == [{}], "nothing names a task that was forgotten"


def test_pictures_of_two_folders(tmp_path: Path) -> None:
    pictures(tmp_path / "one" / "train", {"a": 4, "b": 4})
    pictures(tmp_path / "one" / "test", {"a": 2, "b": 2})
    shutil.copytree(tmp_path / "one" / "test", tmp_path / "two" / "train")
    pictures(tmp_path / "two" / "test", {"a": 2, "b": 2})
    stream = own_stream([tmp_path / "one", tmp_path / "two"]).build(StreamOptions(0))
    assert [task.test_seen for task in stream] == [{"two": 4}, {}]
    (note,) = stream.notes
    assert note.startswith(
        "test pictures of tasks are identical with training pictures of other tasks (4 of the 4 of one"
    )
