"""Targets of one's own tables and arrays: classes, numbers and labels, told by the data or said, never silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hatrack.errors import DataError, HatrackError, InputError
from hatrack.objectives import Classification, MultiLabel, Regression, TargetKind
from hatrack.objectives.metrics import EXACT_MATCH, MEAN_ABSOLUTE_ERROR
from hatrack.streams import StreamOptions, TargetChoice, TaskStream, own_stream
from hatrack.streams.own.targets import ClassTexts, looks_like_numbers
from support.own_sources import archive

RANDOM = np.random.default_rng(1)
ROWS = 60


def table(path: Path, **columns: Any) -> Path:
    x = RANDOM.normal(size=(ROWS, 2)).round(3)
    names = ["a", "b", *columns]
    rows = (",".join(map(str, (*row, *values))) for row, *values in zip(x, *columns.values(), strict=True))
    path.write_text("\n".join([",".join(names), *rows]) + "\n")
    return path


def built(folder: Path, said: str, **columns: Any) -> TaskStream:
    table(folder / "t.csv", **columns)
    (folder / "tasks.toml").write_text(f'[[task]]\npath = "t.csv"\ntest_share = 0.25\n{said}\n')
    return own_stream([folder / "tasks.toml"]).build(StreamOptions(0, validation=0.2))


PRICES = (1000 + 10 * RANDOM.normal(size=ROWS)).round(2)
ROUND = RANDOM.integers(0, 2, ROWS)
RED = RANDOM.integers(0, 2, ROWS)


def test_real_numbers_are_predicted_and_it_is_said(tmp_path: Path) -> None:
    stream = built(tmp_path, 'label = "price"', price=PRICES)
    task = stream[0]
    assert isinstance(task.objective, Regression)
    assert (task.classes, task.num_classes, task.input_shape) == (("price",), 1, (2,))
    assert stream.notes == (
        "task t: price: taken for numbers to predict (regression); for classes, choose `target=classes`",
    )
    parts = torch.cat([task.train.load()[1], task.valid.load()[1]])  # what was not held out for testing
    torch.testing.assert_close(torch.tensor(task.objective.mean), parts.mean(0).float())
    torch.testing.assert_close(torch.tensor(task.objective.deviation), parts.std(0, correction=0).float())
    everything = torch.cat([parts, task.test.load()[1]])
    assert sorted(everything.flatten().tolist()) == sorted(PRICES.tolist())
    assert task.train.load()[0].dtype == torch.float32
    assert task.train.load()[1].dtype == torch.float64


def test_several_columns_of_numbers_with_a_metric(tmp_path: Path) -> None:
    stream = built(tmp_path, 'label = ["price", "size"]\nmetric = "mae"', price=PRICES, size=PRICES / 7)
    assert isinstance(stream[0].objective, Regression)
    assert (stream[0].classes, stream[0].objective.metric) == (("price", "size"), MEAN_ABSOLUTE_ERROR)


def test_what_is_said_is_not_asked(tmp_path: Path) -> None:
    stream = built(tmp_path, 'label = "price"\ntarget = "classes"', price=np.arange(ROWS) % 3 + 0.5)
    assert stream[0].classes == ("0.5", "1.5", "2.5")
    assert stream.notes == ()
    stream = built(tmp_path, 'label = "age"\ntarget = "numbers"', age=np.arange(ROWS) % 3)
    assert isinstance(stream[0].objective, Regression)
    assert stream.notes == ()


@pytest.mark.parametrize(
    ("values", "kind", "noted"),
    [
        (np.arange(ROWS) % 3, Classification, False),
        (np.array(["x", "y"])[np.arange(ROWS) % 2], Classification, False),
        (np.arange(ROWS) % 15, Classification, True),  # many whole numbers, each several times
        (np.arange(ROWS) % 30, Classification, True),
        (np.arange(ROWS) % 40, Regression, True),  # most of them once
        (np.arange(ROWS) % 21 + 0.5, Regression, True),
        (np.arange(ROWS) % 20 + 0.5, Classification, True),
    ],
)
def test_one_column_is_told_by_its_values(values: Any, kind: type, noted: bool, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    table(tmp_path / "t.csv", y=values)
    table(tmp_path / "u.csv", y=values)
    (tmp_path / "tasks.toml").write_text('[[task]]\npath = "t.csv"\ntest = "u.csv"\nlabel = "y"\n')
    stream = own_stream([tmp_path / "tasks.toml"]).build(StreamOptions(0))
    assert isinstance(stream[0].objective, kind)
    assert bool(stream.notes) == noted
    assert looks_like_numbers(np.array([0.5, 1.5])) is False


def test_columns_of_zeros_and_ones_are_labels(tmp_path: Path) -> None:
    for yes in (RED, np.where(RED, "true", "False"), np.where(RED, "yes", "no")):
        stream = built(tmp_path, 'label = ["red", "round"]', red=yes, round=ROUND)
        assert stream[0].objective == MultiLabel(("red", "round"))
        assert "taken for 2 labels" in stream.notes[0]
        parts = (stream[0].train, stream[0].valid, stream[0].test)
        found = torch.cat([part.load()[1] for part in parts])
        assert (found.dtype, found.sum(0).tolist()) == (torch.bool, [RED.sum(), ROUND.sum()])
    numbers = built(tmp_path, 'label = ["red", "round"]\ntarget = "numbers"', red=RED, round=ROUND)
    assert isinstance(numbers[0].objective, Regression)


def test_labels_in_one_column(tmp_path: Path) -> None:
    tags = [" ; ".join(n for n, there in (("red", a), ("round", b)) if there) for a, b in zip(RED, ROUND, strict=True)]
    said = 'label = "tags"\nseparator = ";"\nmetric = "exact"\nclass_weights = "balanced"'
    task = built(tmp_path, said, tags=tags)[0]
    assert isinstance(task.objective, MultiLabel)
    assert (task.classes, task.objective.metric) == (("red", "round"), EXACT_MATCH)
    assert task.objective.weights is not None
    assert sum(float(part.load()[1].sum()) for part in (task.train, task.valid, task.test)) == RED.sum() + ROUND.sum()


def test_weights_of_a_tasks_classes(tmp_path: Path) -> None:
    kinds = np.array(["x", "x", "x", "y"])[np.arange(ROWS) % 4]
    task = built(tmp_path, 'label = "kind"\nclass_weights = [1, 2.5]', kind=kinds)[0]
    assert task.objective == Classification(("x", "y"), (1.0, 2.5))
    objective = built(tmp_path, 'label = "kind"\nclass_weights = "balanced"', kind=kinds)[0].objective
    assert isinstance(objective, Classification)
    assert objective.weights == pytest.approx((45 / (2 * 34), 45 / (2 * 11)), rel=0.05)


def test_settings_say_what_a_table_alone_does_not(tmp_path: Path) -> None:
    own = own_stream([table(tmp_path / "t.csv", id=range(ROWS), price=PRICES)])
    with pytest.raises(InputError, match=r"task t: .*t\.csv needs label, .*\(`targets=NAME`\)"):
        own.build(StreamOptions(0))
    choice = TargetChoice(TargetKind.NUMBERS, ("price",), drop=("id",))
    with pytest.raises(InputError, match=r"has no test samples; give test_share \(`test_share=0.2`\)"):
        own.build(StreamOptions(0), targets=choice)
    task = own.build(StreamOptions(0), targets=choice, test_share=0.5)[0]
    assert (task.classes, task.input_shape, len(task.test)) == (("price",), (2,), 30)


@pytest.mark.parametrize(
    ("y", "kind"),
    [
        (np.arange(30) / 10, Regression),
        (np.arange(60).reshape(30, 2) / 7, Regression),
        (np.arange(30) * 1000, Regression),
        (np.arange(90).reshape(30, 3) % 2, MultiLabel),
        (np.arange(90).reshape(30, 3) % 2 == 0, MultiLabel),
        (np.arange(90).reshape(30, 3) % 2 * 1.0, MultiLabel),
        (np.arange(30) % 3, Classification),
    ],
)
def test_arrays_are_told_by_their_type_and_shape(y: Any, kind: type, tmp_path: Path) -> None:
    stream = own_stream([archive(tmp_path / "a.npz", y_train=y, y_test=y[:9])]).build(StreamOptions(0))
    assert isinstance(stream[0].objective, kind)
    assert bool(stream.notes) == (kind is not Classification)
    test = stream[0].test.load()[1]
    expected = y[:9] if kind is Classification else y[:9].reshape(9, -1)
    assert torch.equal(test, torch.from_numpy(np.ascontiguousarray(expected)).to(test.dtype))


@pytest.mark.parametrize("kind", [np.float32, np.int64, np.uint8, bool])
def test_one_hot_rows_are_classes_and_it_is_said(kind: type, tmp_path: Path) -> None:
    y = np.random.default_rng(0).permutation(np.arange(30) % 3)
    rows = np.eye(3)[y].astype(kind)
    for said in (None, TargetChoice(TargetKind.CLASSES)):
        own = own_stream([archive(tmp_path / "a.npz", y_train=rows, y_test=rows[:9])])
        stream = own.build(StreamOptions(0, validation=0), targets=said)
        assert stream[0].classes == ("0", "1", "2")
        assert stream[0].train.labels.tolist() == y.tolist()
        assert stream[0].test.labels.tolist() == y[:9].tolist()
        note = "task a: rows with one 1 among zeros were taken for 3 classes; for labels"
        assert [each.startswith(note) for each in stream.notes] == [True] * (said is None)
    plain = archive(tmp_path / "b.npz", y_train=rows, y_test=y[:9])
    assert own_stream([plain]).build(StreamOptions(0))[0].test.labels.tolist() == y[:9].tolist()
    for y_test, fault in (
        (np.eye(2)[y[:9] % 2], "test samples have 2 targets each, training samples 3"),
        (rows[:9] * 0, r"y_test must hold 9 whole numbers or texts, not .* \(9, 3\)"),
    ):
        with pytest.raises(DataError, match=fault):
            own_stream([archive(tmp_path / "c.npz", y_train=rows, y_test=y_test)]).build(StreamOptions(0))


def test_one_hot_rows_are_labels_only_if_that_is_said(tmp_path: Path) -> None:
    y = np.eye(3)[np.arange(9) % 3]
    own = own_stream([archive(tmp_path / "a.npz", y_train=np.eye(3)[np.arange(30) % 3], y_test=y)])
    task = own.build(StreamOptions(0), targets=TargetChoice(TargetKind.LABELS))[0]
    assert task.objective == MultiLabel(("0", "1", "2"))


@pytest.mark.parametrize(
    ("said", "columns", "fault"),
    [
        ('label = "price"', {"price": [*PRICES[:-1], ""]}, "line 61, column 'price': the label is missing"),
        ('label = "price"\ntarget = "numbers"', {"price": [*PRICES[:-1], ""]}, "line 61.*number to predict is missing"),
        (
            'label = ["price", "a"]',
            {"price": [*PRICES[:-1], "dear"]},
            "line 61, column 'price': 'dear' is not a finite",
        ),
        ('label = "price"\ntarget = "numbers"', {"price": [7] * ROWS}, "column 'price' is 7 in all training samples"),
        ('label = "cost"', {"price": PRICES}, "there is no column in .* 'cost'"),
        ('label = ["price", "cost"]', {"price": PRICES}, "there is no column in .* 'cost'"),
        ('label = ["price", "price"]', {"price": PRICES}, "label column 'price' is named twice"),
        ("label = []", {"price": PRICES}, "label names no column"),
        ("label = [1]", {"price": PRICES}, "label must be a list of texts"),
        (
            'label = ["red", "price"]\ntarget = "labels"',
            {"price": PRICES, "red": RED},
            "column 'price': '1.* neither 0",
        ),
        ('label = ["red", "blue"]', {"red": RED, "blue": [0] * ROWS}, "label 'blue' is on none of 45 training samples"),
        ('label = ["red", "a"]\ntarget = "classes"', {"red": RED}, "target = classes takes one column, not red, a"),
        ('label = "red"\ntarget = "labels"', {"red": RED}, r"need the text between them \(`separator=...`\)"),
        ('label = "red"\ntarget = "label"', {"red": RED}, "target must be one of classes, numbers, labels"),
        (
            'label = "red"\nmetric = "r3"',
            {"red": RED},
            "metric must be one of accuracy, balanced_accuracy, r2, mae, rmse, map, f1, exact",
        ),
        (
            'label = "red"\nmetric = "r2"',
            {"red": RED},
            "the metric of classes is one of: accuracy, balanced accuracy, F1; not R²",
        ),
        ('label = "price"\nmetric = "f1"', {"price": PRICES}, "metric of a regression is one of: R²"),
        ('label = "price"\nclass_weights = "balanced"', {"price": PRICES}, "class_weights are for classes and labels"),
        ('label = "red"\nclass_weights = [1, 2, 3]', {"red": RED}, "one number per class, 2, not 3"),
        ('label = "red"\nclass_weights = "even"', {"red": RED}, "class_weights=even does not fit"),
        ('label = "red"\nseparator = ""', {"red": RED}, "separator must be a text between labels"),
        ('label = "red"\nseparator = ";"\ntarget = "numbers"', {"red": RED}, "separator is for labels"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(said: str, columns: Any, fault: str, tmp_path: Path) -> None:
    with pytest.raises(HatrackError, match=fault) as caught:
        built(tmp_path, said, **columns)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("y", "test", "fault"),
    [
        (np.where(np.arange(30) == 4, np.nan, np.arange(30) / 7), np.ones(9), r"y_train\[4\]: the label is missing"),
        (np.arange(60).reshape(30, 2) / 7, np.ones((9, 3)), "test samples have 3 targets each, training samples 2"),
        (np.arange(90).reshape(30, 3) % 2, np.full((9, 3), 2), "y_test must hold truth values, or zeros and ones"),
        (np.ones((30, 2)) / 2, np.ones((9, 2)), "column '0' is 0.5 in all training samples"),
        (
            np.where(np.arange(60) == 4, np.inf, np.arange(60)).reshape(30, 2) / 7,
            np.ones((9, 2)),
            r"y_train\[2\]: the num",
        ),
    ],
)
def test_arrays_that_cannot_be_are_named(y: Any, test: Any, fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=fault) as caught:
        own_stream([archive(tmp_path / "a.npz", y_train=y, y_test=test)]).build(StreamOptions(0))
    assert "\n" not in str(caught.value)


def test_folders_of_pictures_have_classes(tmp_path: Path) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "tasks.toml").write_text('[[task]]\npath = "set"\ntest_share = 0.5\ntarget = "numbers"\n')
    with pytest.raises(InputError, match="is a folder of pictures, whose targets are classes"):
        own_stream([tmp_path / "tasks.toml"])


def test_texts_of_which_few_are_alike_are_told() -> None:
    percent = ClassTexts(tuple(f"{number / 10}%" for number in range(60)))
    assert "60 different texts such as '0.0%' were taken for classes" in percent.note()
    assert "decimal point" in percent.note()
    assert not ClassTexts(tuple(f"kind {number % 30}" for number in range(600))).note()
