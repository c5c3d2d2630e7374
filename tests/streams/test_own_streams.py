"""Streams of one's own: arrays, what a file may say, and labels."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hatrack.errors import DataError, InputError, UnfitDataError
from hatrack.experiments import own_experiment
from hatrack.experiments.results import TaskSummary
from hatrack.objectives import Regression
from hatrack.streams import OwnTask
from hatrack.streams.own.files import digest_of
from hatrack.streams.own.spelling import order_of
from hatrack.streams.own.tables import TableFormat
from hatrack.streams.transforms import Standardise
from support.own_sources import PICTURES, RANDOM, ROWS, TABLE, archive, built, from_toml, notes_of, pictures


def test_archive_of_numbers_is_standardised_feature_by_feature(tmp_path: Path) -> None:
    constant = np.concatenate([RANDOM.normal(50, 9, (30, 2)), np.full((30, 1), 0.1)], axis=1)
    y_train, y_test = np.arange(30) % 3 * 5 - 5, np.array([-5, 0, 5] * 3)
    path = archive(tmp_path / "a.npz", x_train=constant, y_train=y_train, x_test=np.ones((9, 3)), y_test=y_test)
    task = built(path)
    x, y = task.train.load()
    torch.testing.assert_close(x[:, :2].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x[:, :2].std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)
    assert x[:, 2].abs().max() < 1e-6, "what does not vary is shifted to 0, not divided by nothing"
    assert torch.allclose(task.test.load()[0][:, 2], torch.tensor(0.9))
    assert task.classes == ("-5", "0", "5"), "numbers in their order"
    assert y[:3].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("shape", "loaded"),
    [((8, 9), (1, 8, 9)), ((3, 8, 9), (3, 8, 9)), ((8, 9, 3), (3, 8, 9)), ((1, 8, 9), (1, 8, 9)), ((7,), (7,))],
)
def test_shapes_of_arrays(shape: tuple[int, ...], loaded: tuple[int, ...], tmp_path: Path) -> None:
    x = RANDOM.integers(0, 256, (39, *shape), dtype=np.uint8)
    assert built(archive(tmp_path / "a.npz", x_train=x[:30], x_test=x[30:])).input_shape == loaded


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"x_test": None}, r"holds no x_test\.npy; it must hold x_train\.npy, y_train"),
        ({"x_train": np.full((30, 4), np.nan)}, "x_train holds NaN, infinite"),
        ({"x_train": np.full((30, 4), 1e300)}, "far too large"),
        ({"x_train": np.zeros((30, 4), dtype=object)}, "is no whole array of plain values"),
        ({"x_train": np.zeros(30)}, "x_train must hold numbers"),
        ({"x_test": np.zeros((9, 5))}, r"test samples are numbers \(5,\)"),
        ({"y_train": np.arange(29) % 3}, "y_train must hold 30 whole numbers"),
        ({"y_train": np.arange(30) % 15 / 10}, "y_train must hold 30 whole numbers or texts, not float64"),
        ({"y_train": np.zeros(30, dtype=int)}, "all training samples are of class '0'"),
        ({"y_test": np.arange(9)}, "no training sample is of the test sample's class '3'"),
    ],
)
def test_unusable_archives_are_named(changes: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=fault) as caught:
        built(archive(tmp_path / "a.npz", **changes))
    assert str(tmp_path / "a.npz") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pictures_too", [False, True])
def test_archives_without_test_samples_are_divided_as_tables_are(pictures_too: bool, tmp_path: Path) -> None:
    x = RANDOM.integers(0, 256, (30, 6, 5), dtype=np.uint8) if pictures_too else RANDOM.normal(3, 2, (30, 4))
    archive(tmp_path / "a.npz", x_train=x, x_test=None, y_test=None)
    with pytest.raises(InputError, match=r"a\.npz has no test samples; give test_share .*, or save x_test and y_test"):
        built(tmp_path / "a.npz")
    text = '[[task]]\npath = "a.npz"\ntest_share = 0.3\n' + ("resize = [3, 3]\n" if pictures_too else "")
    task = from_toml(tmp_path, text)
    assert (len(task.train), len(task.test)) == (21, 9)
    assert task.test_seen == {}
    assert task.test.labels.bincount().tolist() == [3, 3, 3]
    rows = [tuple(sample.flatten().tolist()) for split in (task.train, task.test) for sample in split.load()[0]]
    assert len({*rows}) == 30, "each is in one of the two"
    assert torch.equal(from_toml(tmp_path, text).test.load()[0], task.test.load()[0])
    assert not torch.equal(from_toml(tmp_path, text, seed=1).test.load()[0], task.test.load()[0])


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (("x_val", "y_val"), "not read: x_val, y_val; validation samples are held out of x_train (`validation=0.15`)"),
        (("names",), "not read: names"),
        (tuple("abcdefg"), "not read: a, b, c, d, e, …"),
    ],
)
def test_arrays_that_are_not_read_are_said(others: tuple[str, ...], said: str, tmp_path: Path) -> None:
    archive(tmp_path / "a.npz", **dict.fromkeys(others, np.zeros(3)))
    assert notes_of(tmp_path / "a.npz") == (f"task a: {said}",)


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(DataError, match=r"a\.npz: the zip archive is damaged"):
        built(tmp_path / "a.npz")


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.uint16])
def test_sequences_are_standardised_as_the_same_numbers_in_a_row(
    kind: type, axes: tuple[int, ...], tmp_path: Path
) -> None:
    """No sensor drowns the others, whatever the order of the axes: air pressure beside two small numbers."""
    sensors = RANDOM.normal(size=(39, 10, 4)) * [50, 3, 1, 0.5] + [31_325, 20, 10, 5]
    x = np.moveaxis(sensors[:, :, :, None], (1, 2, 3), [1 + axis for axis in axes]).astype(kind)
    x = x.reshape(39, *(size for size in x.shape[1:] if size != 1))
    flat = x.reshape(39, -1)
    y = {"y_train": np.arange(30) % 3, "y_test": np.arange(9) % 3}
    several = built(archive(tmp_path / "a.npz", x_train=x[:30], x_test=x[30:], **y))
    row = built(archive(tmp_path / "a.npz", x_train=flat[:30], x_test=flat[30:], **y))
    for part in ("train", "test"):
        found, expected = (getattr(task, part).load()[0] for task in (several, row))
        assert torch.equal(found.flatten(1), expected)
    mean, std = flat[:30].astype(float).mean(0), flat[:30].astype(float).std(0)
    by_hand = torch.tensor((flat[:30] - mean) / np.where(std == 0, 1, std)).float()
    torch.testing.assert_close(several.train.load()[0].flatten(1), by_hand, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 5, 6), (1, 5, 6), (5, 6, 3), (2, 5, 6), (2, 3, 4, 5)])
def test_arrays_of_numbers_of_any_shape_are_standardised_position_by_position(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    x = RANDOM.normal(size=(39, *shape)) * 10.0 ** RANDOM.integers(-3, 4, shape)
    path = archive(tmp_path / "a.npz", x_train=x[:30], x_test=x[30:])
    values = built(path).train.load()[0]
    torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1:]), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(0, correction=0), torch.ones(values.shape[1:]), atol=1e-5, rtol=0)


def test_numbers_that_are_said_to_be_pictures_are_standardised_by_channel(tmp_path: Path) -> None:
    x = RANDOM.random((39, 3, 5, 6)) * np.array([1.0, 2.0, 4.0])[:, None, None]
    path = archive(tmp_path / "a.npz", x_train=x[:30], x_test=x[30:])
    task = from_toml(tmp_path, '[[task]]\npath = "a.npz"\nchannels = 3\n')
    mean, std = x[:30].mean((0, 2, 3)), x[:30].std((0, 2, 3))
    expected = (x[:30] - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(task.train.load()[0], torch.tensor(expected).float(), atol=1e-5, rtol=1e-5)
    said = "every position of a sample is standardised by itself; where the numbers are pictures"
    assert [said in note for note in notes_of(path)] == [True]
    assert notes_of(tmp_path / "tasks.toml") == ()


def test_truth_values_in_arrays_are_zeros_and_ones(tmp_path: Path) -> None:
    x = RANDOM.integers(0, 2, (39, 4)).astype(bool)
    truths = built(archive(tmp_path / "a.npz", x_train=x[:30], x_test=x[30:])).train.load()[0]
    numbers = built(archive(tmp_path / "a.npz", x_train=x[:30] * 1, x_test=x[30:] * 1)).train.load()[0]
    assert torch.equal(truths, numbers)


@pytest.mark.parametrize(
    "changes",
    [
        {"x_train": np.full((30, 4), np.nan)},
        {"x_train": np.full((30, 4), 1e300)},
        {"x_train": np.full((30, 4), np.inf, dtype=np.float16)},
        {"x_test": np.full((9, 4), -np.inf)},
        {"x_train": np.zeros((30, 4), dtype=complex)},
        {"y_train": np.full(30, np.nan)},
        {"x_train": np.uint64(2**63) + np.arange(30, dtype=np.uint64)[:, None]},
        {"x_train": np.arange(30.0)[:, None] * np.full(4, 1e-30), "x_test": np.full((9, 4), 1e10)},
        {"x_test": np.zeros((9, 5))},
        {"y_train": np.arange(29) % 3},
        {"y_test": None},
        {"x_train": np.zeros((30, 4), dtype=object)},
    ],
)
def test_arrays_that_are_whole_and_hold_what_cannot_be_are_unfit(changes: dict[str, Any], tmp_path: Path) -> None:
    """The command line ends with exit code 2 then: the file is not damaged."""
    with pytest.raises(UnfitDataError):
        built(archive(tmp_path / "a.npz", **changes))


def test_limit_and_validation_of_own_tasks(tmp_path: Path) -> None:
    task = built(archive(tmp_path / "a.npz"), limit=15, validation=0.2)
    assert task.train.labels.bincount().tolist() == [4, 4, 4]
    assert task.valid.labels.bincount().tolist() == [1, 1, 1]
    assert len(task.test) == 9
    again = built(tmp_path / "a.npz", limit=15, validation=0.2)
    assert torch.equal(task.train.rows, again.train.rows)
    assert not torch.equal(task.train.rows, built(tmp_path / "a.npz", seed=1, limit=15, validation=0.2).train.rows)


@pytest.mark.parametrize(("limit", "validation"), [(None, 0.0), (None, 0.4), (9, 0.0), (9, 0.3)])
def test_scaling_is_that_of_the_whole_training_part_as_it_is_said(
    limit: int | None, validation: float, tmp_path: Path
) -> None:
    x, price = RANDOM.normal(50, 9, (40, 3)), RANDOM.normal(1000, 100, 40)
    path = archive(tmp_path / "a.npz", x_train=x, y_train=price, x_test=x[:9] + 1e3, y_test=price[:9] + 1e6)
    task = built(path, limit=limit, validation=validation)
    objective = task.objective
    assert isinstance(objective, Regression)
    assert task.scaled_over == 40
    assert objective.mean == pytest.approx([price.mean()])
    assert objective.deviation == pytest.approx([price.std()])
    assert isinstance(task.train.transform, Standardise)
    np.testing.assert_allclose(task.train.transform.mean[0], x.mean(0))
    np.testing.assert_allclose(task.train.transform.std[0], x.std(0))
    said = TaskSummary.of(task).say()
    assert said.endswith(", over 40 samples") == (limit is not None or validation > 0), said


# --- what a file may say


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "names no task"),
        ("[[task]]\n", "has no path"),
        ('[[task]]\npath = "absent"\n', "absent does not exist"),
        (
            '[[task]]\npath = "a.csv"\nlabel = "kind"\ntest = "gone.csv"\n',
            r"gone\.csv, the table of test samples, does not exist",
        ),
        ('[[task]]\npath = "tasks.toml"\n', r"is no folder of pictures, \.zip of them, \.npz or \.csv file"),
        ('[[task]]\npath = "a.csv"\n', "needs label"),
        ('[[task]]\npath = "a.csv"\nlabel = "kind"\n', "no test samples; give test_share"),
        ('[[task]]\npath = "a.npz"\ntest_share = 0.2\n', "test samples of its own; leave out test_share"),
        ('[[task]]\npath = "a.npz"\nlabel = "kind"\n', "is no CSV file"),
        (TABLE + 'test = "a.csv"\n', "test samples of its own"),
        (TABLE + "resize = [2, 2]\n", "resize and channels are for pictures"),
        (TABLE + 'delimiter = ",,"\n', "a single character"),
        (TABLE + 'drop = ["kind"]\n', "cannot be dropped"),
        (TABLE + "drop = [1]\n", "drop must be a list of texts"),
        (TABLE + TABLE, "two tasks are named 'a'"),
        (TABLE.replace("0.5", "1.5"), "test_share must be above 0 and below 1"),
        (TABLE.replace("0.5", "true"), "test_share must be a number"),
        ('[[task]]\npath = "a.npz"\nresize = [2]\n', r"resize must be \[height, width\]"),
        ('[[task]]\npath = "a.npz"\nresize = [2.5, 2]\n', "resize must be a list of numbers"),
        ('[[task]]\npath = "a.npz"\nchannels = 2\n', "channels must be 1 or 3"),
        ('[[task]]\npath = "a.npz"\nresise = [2, 2]\n', "did you mean 'resize'"),
        ('[[task]]\npath = "a.npz"\nname = "a b"\n', "letters, digits"),
        ('name = 5\n[[task]]\npath = "a.npz"\n', "name must be a text"),
        ("[[task\n", "not a TOML file"),
    ],
)
def test_what_cannot_be_said(text: str, fault: str, tmp_path: Path) -> None:
    archive(tmp_path / "a.npz")
    (tmp_path / "a.csv").write_text("\n".join(ROWS))
    with pytest.raises(InputError, match=fault) as caught:
        from_toml(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 50_000 + "]" * 50_000,
        "x = " + "{a=" * 50_000,
        "x = " + "[{a=" * 20_000 + "1" + "}]" * 20_000,
        "x = " + "9" * 5_000,
        ".".join("x" * 1_100) + " = 1",
        "name." + ".".join("x" * 1_100) + " = 1\n[[task]]\npath = 'a.npz'",
        "[[task]]\nname." + ".".join("x" * 1_100) + " = 1",
        "[[task]]\npath = 'a.npz'\ndrop = " + "[" * 300 + "]" * 300,
        "[[task]]\npath = 'a.npz'\n[stream]\nlimit." + ".".join("x" * 1_100) + " = 1",
        "[[task]]\npath = 'a.npz'\n[method.hat]\nc." + ".".join("x" * 1_100) + " = 1",
        "[[task]]\npath = 'a.npz'\n[network]\nhidden = " + "[" * 300 + "]" * 300,
    ],
)
def test_a_file_as_deep_as_it_likes_ends_in_one_line(text: str, tmp_path: Path) -> None:
    archive(tmp_path / "a.npz")
    (tmp_path / "tasks.toml").write_text(text)
    with pytest.raises(InputError) as caught:
        own_experiment((tmp_path / "tasks.toml",)).config("hat")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000 + len(str(tmp_path))


def test_digest_tells_every_change(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", {"a": 3, "b": 3})
    (tmp_path / "a.csv").write_text("\n".join(ROWS))
    (tmp_path / "b.csv").write_text("\n".join(ROWS))
    tasks = [
        OwnTask("set", folder, test_share=0.5),
        OwnTask("table", tmp_path / "a.csv", TableFormat("kind"), test=tmp_path / "b.csv"),
    ]
    before = [digest_of(task) for task in tasks]
    assert before == [digest_of(task) for task in tasks]
    (folder / "a" / "0.png").rename(folder / "b" / "9.png")
    (tmp_path / "b.csv").write_text("\n".join(ROWS[:-1]))
    assert all(left != right for left, right in zip(before, [digest_of(task) for task in tasks], strict=True))


def test_marks_and_encodings_of_a_toml_file(tmp_path: Path) -> None:
    archive(tmp_path / "a.npz")
    path = tmp_path / "tasks.toml"
    path.write_text('[[task]]\npath = "a.npz"\n', encoding="utf-8-sig")
    assert built(path).name == "a"
    for encoding in ("utf-16", "latin-1"):
        path.write_text('# \u00e9\n[[task]]\npath = "a.npz"\n', encoding=encoding)
        with pytest.raises(InputError, match=r"tasks\.toml: is not UTF-8.*save it as UTF-8"):
            built(path)


# --- labels


@pytest.mark.parametrize(
    ("as_kept", "classes"),
    [
        (lambda y: y[:, None], ("0", "1", "2")),
        (lambda y: y.astype(float), ("0", "1", "2")),
        (lambda y: y.astype(np.float16)[:, None], ("0", "1", "2")),
        (lambda y: y.astype(np.uint8), ("0", "1", "2")),
        (lambda y: y > 1, ("False", "True")),
        (lambda y: np.array([b"c", "\u00e9".encode(), b"a"])[y], ("a", "c", "\u00e9")),
        (lambda y: np.array(["c", "b", "a"])[y][:, None], ("a", "b", "c")),
    ],
)
def test_labels_are_taken_in_whatever_says_them_exactly(
    as_kept: Callable[[np.ndarray], np.ndarray], classes: tuple[str, ...], tmp_path: Path
) -> None:
    y = np.arange(30) % 3
    task = built(archive(tmp_path / "a.npz", y_train=as_kept(y), y_test=as_kept(y[:9])))
    assert task.classes == classes
    numbers = task.train.load()[1].tolist()
    assert len(set(zip(numbers, as_kept(y).flatten().tolist(), strict=True))) == len(classes), "one number for each"


@pytest.mark.parametrize(
    ("as_kept", "fault"),
    [
        (lambda y: np.stack([y, y], 1), r"y_train must hold 30 .*\(30, 2\); if the largest.*argmax\(axis=1\)"),
        (lambda y: y + 0.5, r"y_train must hold 30 .*; 0\.5 is no class.*astype\(str\)"),
        (lambda y: np.where(y > 1, np.nan, y), r"y_train\[2\]: the label is missing"),
        (lambda y: np.where(y > 1, np.inf, y), r"y_train must hold .*; inf is no class"),
        (lambda y: np.array(["a", "b", "c"], dtype=object)[y], r"y_train.npy is .*of Python objects.*y\.astype\(str\)"),
        (lambda y: np.array([b"\xff", b"b", b"c"])[y], "y_train must hold .*no UTF-8, so save them decoded"),
        (lambda y: y.astype("datetime64[s]"), "y_train must hold 30 whole numbers or texts, not datetime64"),
    ],
)
def test_labels_that_say_no_class_are_refused(
    as_kept: Callable[[np.ndarray], np.ndarray], fault: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=fault) as caught:
        built(archive(tmp_path / "a.npz", y_train=as_kept(np.arange(30) % 3)))
    assert "\n" not in str(caught.value)


MISSING = ["", " ", "nan", "NaN", "-nan", "NA", "N/A", "n/a", "null", "NULL", "None", "<NA>", "?", "#N/A"]


@pytest.mark.parametrize("word", MISSING)
def test_missing_labels_are_no_class(word: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n".join(ROWS).replace("\n3,y,3,", f"\n3,{word},3,"))
    with pytest.raises(DataError, match=r"a\.csv line 5, column 'kind': the label is missing.*; fill it in"):
        from_toml(tmp_path, TABLE)
    y = np.array(["x", "y", word] * 10)
    with pytest.raises(DataError, match=r"a\.npz: y_train\[2\]: the label is missing"):
        built(archive(tmp_path / "a.npz", y_train=y, y_test=y[:9]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "1.0"),
        ("0", "00"),
        ("1000", "1e3"),
        ("\u00e9", "e\u0301"),
        ("a b", "a\u00a0b"),
        ("ab", "a\u200bb"),
        ("a b", "a  b"),
    ],
)
def test_one_class_in_two_spellings_is_refused(one: str, other: str, tmp_path: Path) -> None:
    fault = rf"writes a class as .*{re.escape(ascii(other))}.* that is .*{re.escape(ascii(one))}.* elsewhere"
    rows = "\n".join(ROWS).replace(",x,", f",{one},")
    (tmp_path / "a.csv").write_text(rows.replace(f"\n4,{one},", f"\n4,{other},"), encoding="utf-8")
    with pytest.raises(DataError, match=rf"a\.csv line 6, column 'kind': {fault}"):
        from_toml(tmp_path, TABLE)
    (tmp_path / "a.csv").write_text(rows, encoding="utf-8")
    (tmp_path / "b.csv").write_text(rows.replace(f",{one},", f",{other},"), encoding="utf-8")
    with pytest.raises(DataError, match=rf"b\.csv: {fault}"):
        from_toml(tmp_path, TABLE.replace("test_share = 0.5", 'test = "b.csv"'))
    y = np.array([one, "w", other] * 10)
    with pytest.raises(DataError, match=rf"a\.npz: y_train\[2\]: {fault}"):
        built(archive(tmp_path / "a.npz", y_train=y, y_test=y[:9]))
    pictures(tmp_path / "set", {one: 3, other: 3})
    with pytest.raises(DataError, match=r"writes a class as "):
        from_toml(tmp_path, PICTURES)


def test_labels_have_one_order_however_they_come() -> None:
    labels = [
        "nan",
        "NaN",
        "-nan",
        "10",
        "9",
        "2.50",
        "2.5",
        "9007199254740993",
        "9007199254740992",
        "b",
        "a",
        "inf",
        "-1",
    ]
    ordered = sorted(labels, key=order_of)
    assert ordered[:8] == ["-1", "2.5", "2.50", "9", "10", "9007199254740992", "9007199254740993", "inf"]
    assert ordered[8:] == ["-nan", "NaN", "a", "b", "nan"], "what is no number is a word"
    assert all(sorted(RANDOM.permutation(labels).tolist(), key=order_of) == ordered for _ in range(50))
