"""hatrack predict on tables and arrays."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hatrack.cli import main
from hatrack.errors import DataError, InputError, UnfitDataError
from hatrack.experiments import SamplePrediction, open_run, predict_files
from hatrack.experiments.opening import describe_transform
from hatrack.report.predictions import predictions_table
from hatrack.report.writers import to_csv
from hatrack.streams.own.columns import TableRows

RANDOM = np.random.default_rng(0)
SIZES, COLOURS = RANDOM.normal(3, 2, 60).round(2), RANDOM.choice(["red", "green", "blue"], 60)
NETWORK = "[network]\nhidden = [9, 9]\n[training]\nepochs = 1\nbatch_size = 16\n"


def lines(rows: list[tuple[str, ...]]) -> str:
    return "\n".join(";".join(row) for row in rows) + "\n"


def cells(value: float) -> str:
    return str(value).replace(".", ",")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two tables as a spreadsheet of the continent writes them: classes, then numbers."""
    folder = tmp_path_factory.mktemp("tables")
    answers = np.where(SIZES > 3, "large", "small")
    rows = [("", "size", "colour", "answer")]
    for number, (size, colour, answer) in enumerate(zip(SIZES, COLOURS, answers, strict=True)):
        rows.append((str(number), cells(size), colour, answer))
    (folder / "kinds.csv").write_text(lines(rows))
    rows = [("colour", "size", "price")]
    rows += [
        (colour, cells(size), cells(round(100 + 7 * size, 3))) for size, colour in zip(SIZES, COLOURS, strict=True)
    ]
    (folder / "prices.csv").write_text(lines(rows), encoding="cp1252")
    said = 'test_share = 0.25\ndelimiter = ";"\ndecimal = ","\n'
    tasks = (
        f'[[task]]\npath = "kinds.csv"\nlabel = "answer"\n{said}[[task]]\npath = "prices.csv"\nlabel = "price"\n{said}'
    )
    (folder / "tasks.toml").write_text(f"{tasks}{NETWORK}")
    assert main(["run", str(folder / "tasks.toml"), "--method", "hat", "--out", str(folder / "run"), "--quiet"]) == 0
    return folder


def test_predictions_are_written_with_all_digits(tables: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(lines([("size", "colour"), ("9,5", "blue"), ("-2", "red")]))
    asked = [str(tables / "run"), str(tmp_path / "new.csv"), "--task"]
    assert main(["predict", *asked, "kinds", "--out", str(tmp_path / "kinds.csv")]) == 0
    with (tmp_path / "kinds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    said = predict_files(tables / "run", "kinds", [tmp_path / "new.csv"])
    assert list(rows[0]) == ["sample", "task", "predicted", "probability of large", "probability of small"]
    for row, found in zip(rows, said, strict=True):
        assert (row["sample"], row["task"], row["predicted"]) == (found.sample, "kinds", found.said)
        for name, share in zip(found.classes, found.probabilities, strict=True):
            assert float(row[f"probability of {name}"]) == share
    assert main(["predict", *asked, "prices", "--out", str(tmp_path / "prices.json")]) == 0
    prices = json.loads((tmp_path / "prices.json").read_text())
    numbers = predict_files(tables / "run", "prices", [tmp_path / "new.csv"])
    assert [row["predicted"] for row in prices] == [found.numbers[0] for found in numbers]
    assert [f"{row['predicted']:.6g}" for row in prices] == [found.said for found in numbers]


def test_predictions_of_several_numbers_have_a_column_each() -> None:
    found = [SamplePrediction("a", "t", ("x", "y"), (), "x 1, y 2", (1.0, 2.0))]
    assert to_csv(predictions_table(found)) == "sample,task,predicted x,predicted y\na,t,1.0,2.0\n"
    labels = [SamplePrediction("a", "t", ("b", "a"), (0.9, 0.2), "b"), SamplePrediction("c", "u", ("d",), (0.4,), "")]
    assert to_csv(predictions_table(labels)).splitlines() == [
        "sample,task,predicted,probability of a,probability of b,probability of d",
        "a,t,b,0.2,0.9,",
        "c,u,,,,0.4",
    ]


def test_where_predictions_cannot_be_written_is_said_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, word in (("a.xlsx", "written as .csv or .json"), ("there.csv", "is a folder")):
        (tmp_path / "there.csv").mkdir(exist_ok=True)
        assert main(["predict", "absent", "b.png", "--out", str(tmp_path / name)]) == 2
        assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("size;colour\n9,5;blüe\n", "save it as UTF-8"),
        ("size,colour\n9.5,blue\n", 'is divided by ",", not by ";"; tables to predict'),
    ],
)
def test_no_setting_is_proposed_that_predict_has_not(
    text: str, said: str, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new.csv").write_text(text, encoding="cp1252")
    assert main(["predict", str(tables / "run"), str(tmp_path / "new.csv"), "--task", "kinds"]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert said in shown
    assert "--set" not in shown
    assert "written as those of training" in shown


def test_rows_of_a_table_are_asked_as_those_of_training(
    tables: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, (kinds, prices) = open_run(tables / "run")
    rows = kinds.test.transform
    assert isinstance(rows, TableRows)
    assert rows.features == ("size", "colour=blue", "colour=green", "colour=red")
    with torch.no_grad():
        x = kinds.test.load()[0]
        expected = torch.softmax(prepared.method.predict(x, "kinds"), 1)
    names = rows.columns[1].categories
    plain = [
        (names[int(code)], "whatever", cells(float(size))) for size, code in kinds.test.source[kinds.test.rows].tolist()
    ]
    path = tables / "new.csv"
    path.write_text(lines([("colour", "note", "size"), *plain]))
    found = predict_files(tables / "run", "kinds", [path])
    assert [each.sample for each in found] == [f"{path} line {line}" for line in range(2, 2 + len(x))]
    for each, shares in zip(found, expected, strict=True):
        assert each.classes[0] == kinds.classes[int(shares.argmax())]
        assert each.probabilities == pytest.approx(shares.sort(descending=True).values.tolist(), abs=1e-6)
    numbers = predict_files(tables / "run", "prices", [path])
    with torch.no_grad():
        x = torch.cat([prices.train.load()[0], prices.valid.load()[0], prices.test.load()[0]])
        outputs = prepared.method.predict(x, "prices")
    all_said = prices.objective.say(outputs)
    assert {each.said for each in numbers} <= set(all_said)
    monkeypatch.chdir(tables)
    assert main(["predict", "run", "new.csv", "--task", "kinds"]) == 0
    assert "new.csv line 2" in capsys.readouterr().out


def test_categories_that_training_lacks_are_said(tables: Path) -> None:
    path = tables / "mauve.csv"
    path.write_text("size;colour\n1,5;mauve\n2,5;red\n")
    with pytest.warns(UserWarning, match=r"column 'colour' has categories that no training sample has: 'mauve' \(1\)"):
        assert len(predict_files(tables / "run", "kinds", [path])) == 2


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.csv", "size\n1,5\n", "has no column 'colour', which the training table has"),
        (
            "a.csv",
            "size;colour\n1.5;red\n",
            r"line 2, column 'size': '1\.5' is not a finite number \(decimals need a comma",
        ),
        ("a.csv", "size;colour\n1,5\n", "has 1 cells instead of 2"),
        ("a.csv", "size;colour\n;red\n", "line 2, column 'size': the value is missing"),
        ("a.csv", "size;colour\n1,5;\n", "line 2, column 'colour': the value is missing"),
        ("a.csv", "size;colour\n", "holds no line below the column names"),
        ("a.csv", "size,colour\n1,red\n", 'is divided by ",", not by ";"'),
        (
            "a.npy",
            "",
            "samples of this run are rows of tables with the columns size, colour, so name tables with these",
        ),
        ("a.png", "", "samples of this run are rows of tables"),
    ],
)
def test_tables_that_cannot_be_asked_about(
    name: str, content: str, fault: str, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises((InputError, UnfitDataError), match=fault):
        predict_files(tables / "run", "kinds", [tmp_path / name])
    assert main(["predict", str(tables / "run"), str(tmp_path / name), "--task", "kinds"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_way_from_a_row_to_a_sample_is_described(tables: Path) -> None:
    """By its description alone, as exports hold it, a row becomes the same sample."""
    _, (kinds, _) = open_run(tables / "run")
    described = json.loads(json.dumps(describe_transform(kinds.test.transform)))
    assert described["columns"] == ["size", "colour"]
    assert described["categories"] == {"colour": ["blue", "green", "red"]}
    features = [
        [row[0], *(float(place == row[1]) for place in range(3))] for row in kinds.test.source[kinds.test.rows].tolist()
    ]
    by_hand = (np.array(features) - described["mean"]) / described["std"]
    torch.testing.assert_close(kinds.test.load()[0].double(), torch.tensor(by_hand), atol=1e-6, rtol=1e-6)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on sequences of three sensors."""
    folder = tmp_path_factory.mktemp("arrays")
    x = RANDOM.normal(size=(80, 5, 3)) * [50, 1, 0.1] + [101_325, 20, 1]
    y = (x[:, :, 2].mean(1) > 1).astype(int)
    np.savez(folder / "sensors.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    np.save(folder / "new.npy", x[60:])
    np.savez(folder / "new.npz", x=x[60:].astype(np.float32))
    (folder / "tasks.toml").write_text(f'[[task]]\npath = "sensors.npz"\n{NETWORK}')
    assert main(["run", str(folder / "tasks.toml"), "--method", "hat", "--out", str(folder / "run"), "--quiet"]) == 0
    return folder


@pytest.mark.slow
def test_samples_of_arrays_are_asked_as_those_of_training(arrays: Path) -> None:
    prepared, (task,) = open_run(arrays / "run")
    with torch.no_grad():
        expected = torch.softmax(prepared.method.predict(task.test.load()[0], "sensors"), 1).max(1).values.tolist()
    found = predict_files(arrays / "run", "sensors", [arrays / "new.npy"])
    assert [each.sample for each in found] == [f"{arrays / 'new.npy'}[{row}]" for row in range(20)]
    assert [each.probabilities[0] for each in found] == pytest.approx(expected, abs=1e-6)
    packed = predict_files(arrays / "run", "sensors", [arrays / "new.npz"])
    assert [each.probabilities[0] for each in packed] == pytest.approx(expected, abs=1e-2), "from float32"
    of_file = predict_files(arrays / "run", None, [arrays / "sensors.npz", arrays / "new.npy"])
    assert [each.probabilities[0] for each in of_file] == pytest.approx(expected * 2, abs=1e-6), "x_test; recognised"


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.zeros((2, 3, 5)), r"holds numbers \(1, 3, 5\), those of training are numbers \(1, 5, 3\)"),
        (np.zeros((2, 5, 3), dtype=np.uint8), r"holds bytes \(1, 5, 3\), those of training are numbers"),
        (np.full((2, 5, 3), np.nan), "holds NaN, infinite or far too large values"),
        (np.zeros((2, 5, 3), dtype=object), "one of Python objects"),
        (np.zeros((0, 5, 3)), "must hold numbers"),
    ],
)
def test_arrays_that_cannot_be_asked_about(array: np.ndarray, fault: str, arrays: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    code = main(["predict", str(arrays / "run"), str(tmp_path / "a.npy"), "--task", "sensors"])
    with pytest.raises(DataError, match=fault):
        predict_files(arrays / "run", "sensors", [tmp_path / "a.npy"])
    assert code == 2


def test_other_files_than_arrays(arrays: Path, tables: Path) -> None:
    for files, fault in (
        ([tables / "kinds.csv"], "samples of this run are no rows of tables, so name arrays"),
        ([tables / "kinds.csv", arrays / "new.npy"], "are of two kinds; ask about one at a time"),
        ([arrays / "absent.npz"], r"does not exist; name arrays \(\.npy, or \.npz with x\)"),
        ([], "name at least one picture, table or array"),
    ):
        with pytest.raises(InputError, match=fault):
            predict_files(arrays / "run", "sensors", files)
    np.savez(arrays / "other.npz", y=np.zeros((2, 5, 3)))
    with pytest.raises(DataError, match=r"holds none of x\.npy, x_test\.npy; save the array as x="):
        predict_files(arrays / "run", "sensors", [arrays / "other.npz"])
