"""Columns of tables of one's own: numbers, truth values and categories, however they are written."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hatrack.errors import HatrackError, InputError, UnfitDataError
from hatrack.streams import StreamOptions, TaskStream, own_stream
from hatrack.streams.own.columns import Column, ColumnKind, ColumnReader, TableRows
from hatrack.streams.own.numerals import DecimalMark, read_number

HEADER = ["size", "colour", "answer"]
COLOURS = ["red", "green", "blue"]
ROWS = [[str(row * 10 % 31), COLOURS[row % 3], "yes" if row % 3 == 1 else "no"] for row in range(30)]


def write(path: Path, header: list[str], rows: list[list[str]], delimiter: str = ",") -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([header, *rows])
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


def built(folder: Path, said: str = "", test: list[list[str]] | None = None) -> TaskStream:
    """Stream of the table ``a.csv``, tested on other rows or on a third of its own."""
    if test is not None:
        header = (folder / "a.csv").read_text().splitlines()[0].split(",")
        write(folder / "b.csv", header, test)
    testing = "test_share = 0.3" if test is None else 'test = "b.csv"'
    toml = folder / "tasks.toml"
    toml.write_text(f'[[task]]\npath = "a.csv"\nlabel = "answer"\n{testing}\n{said}\n', encoding="utf-8")
    return own_stream([toml]).build(StreamOptions(0, validation=0))


# --- categories


def test_texts_become_a_feature_for_each_and_it_is_said(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER, ROWS)
    stream = built(tmp_path, test=[["1", "red", "no"], ["2", "blue", "no"], ["3.5", "green", "yes"]])
    train, test = (split.load()[0].double() for split in (stream[0].train, stream[0].test))
    sizes = torch.tensor([float(row[0]) for row in ROWS]).double()
    plain = torch.stack([sizes, *(torch.tensor([row[1] == name for row in ROWS]) for name in sorted(COLOURS))], dim=1)
    mean, std = plain.double().mean(0), plain.double().std(0, correction=0)
    torch.testing.assert_close(train, (plain - mean) / std, atol=1e-6, rtol=1e-6)
    one_hot = torch.tensor([[1, 0, 0, 1], [2, 1, 0, 0], [3.5, 0, 1, 0]]).double()
    torch.testing.assert_close(test, (one_hot - mean) / std, atol=1e-6, rtol=1e-6)
    said = "task a: column 'colour' holds 3 categories ('blue', 'green', 'red'), a feature each"
    assert stream.notes == (said,)
    assert built(tmp_path, 'categories = ["colour"]').notes == (), "nothing new to whoever said it"


@given(st.lists(st.integers(0, 9999), min_size=1, max_size=12), st.integers(1, 5))
def test_a_number_that_was_written_with_zeros_in_front_is_said(numbers: list[int], width: int) -> None:
    """Whoever writes 00331 means another thing than 331."""
    reader = ColumnReader("zip", DecimalMark.POINT)
    cells = [str(number).zfill(width) for number in numbers]
    for cell in cells:
        reader.add(cell, "line 2")
    changed = [cell for cell, number in zip(cells, numbers, strict=True) if cell != str(number)]
    assert reader.code == (changed[0] if changed else None)


@pytest.mark.parametrize(
    ("cells", "code"),
    [
        (["12", "3e5"], "3e5"),
        (["12E3", "3"], "12E3"),
        (["3e-5", "3e+05", "1.5e3", "0.5", "0", "-1", "10"], None),
        (["0.0", "00.5"], None),
    ],
)
def test_exponents_of_whole_numbers_may_be_codes(cells: list[str], code: str | None) -> None:
    reader = ColumnReader("id", DecimalMark.POINT)
    for cell in cells:
        reader.add(cell, "line 2")
    assert reader.code == code


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([f"{row % 5:05d}" for row in range(30)], r'read as numbers, 00000 as 0; if .* say categories = \["size"\]'),
        ([f"{row % 5}e3" for row in range(30)], "read as numbers, 0e3 as 0; if these are codes"),
        ([f"202601{1 + row % 28:02d}" for row in range(30)], "numbers that look like days"),
        ([f"{20260101 + row * 37}" for row in range(30)], None),
        ([f"{row % 5}" for row in range(30)], None),
    ],
)
def test_numbers_that_look_like_codes_or_days_are_said_with_the_setting_that_makes_them_names(
    cells: list[str], said: str | None, tmp_path: Path
) -> None:
    write(tmp_path / "a.csv", HEADER, [[cell, *row[1:]] for cell, row in zip(cells, ROWS, strict=True)])
    notes = [note for note in built(tmp_path, 'drop = ["colour"]').notes if "'size'" in note]
    assert bool(notes) == (said is not None)
    if said is not None:
        assert re.search(said, notes[0]), notes
        assert notes[0].startswith("task a: column 'size' was read as numbers")
        remedied = built(tmp_path, 'drop = ["colour"]\ncategories = ["size"]')
        assert not any("read as numbers" in note for note in remedied.notes)
        assert isinstance(remedied[0].train.transform, TableRows)
        assert set(remedied[0].train.transform.columns[0].categories) <= set(cells), "each as it is written"


def test_many_columns_of_categories_are_one_note(tmp_path: Path) -> None:
    header = [*(f"c{column}" for column in range(7)), "answer"]
    write(tmp_path / "a.csv", header, [[*(row[1] for _ in range(7)), row[2]] for row in ROWS])
    note, _ = built(tmp_path).notes  # there are but three different rows, which is said, too
    assert note.startswith("task a: 7 columns hold categories, a feature each: 'c0' (3), 'c1' (3), ")


def test_the_line_in_which_spreadsheets_say_how_cells_are_divided_is_named(tmp_path: Path) -> None:
    for first, delimiter in (("sep=;", ";"), ("sep=,", ",")):
        write(tmp_path / "a.csv", HEADER, ROWS, delimiter)
        whole = (tmp_path / "a.csv").read_text()
        (tmp_path / "a.csv").write_text(f"{first}\n{whole}")
        with pytest.raises(UnfitDataError, match="line 1: says how cells are divided, to a spreadsheet; remove it"):
            built(tmp_path)


def test_categories_that_training_lacks_are_none_of_its_own_and_it_is_said(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER, ROWS)
    stream = built(tmp_path, test=[["1", "mauve", "no"], ["1", "red", "no"], ["1", "mauve", "yes"], ["1", "17", "yes"]])
    rows = stream[0].test.transform
    assert isinstance(rows, TableRows)
    x = stream[0].test.load()[0].double() * rows.scale.std + rows.scale.mean
    expected = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0]]).double()
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=0)
    (said,) = [note for note in stream.notes if "no training sample" in note]
    assert (
        "column 'colour' has categories that no training sample has: '17' (1), 'mauve' (2); they count as none" in said
    )


def test_categories_are_those_of_the_training_part(tmp_path: Path) -> None:
    rows = [[str(row), f"{'abcdefgh'[row % 8]}", "ny"[row % 2]] for row in range(16)]
    write(tmp_path / "a.csv", HEADER, rows)
    stream = built(tmp_path)
    transform = stream[0].train.transform
    assert isinstance(transform, TableRows)
    trained = {rows[int(size)][1] for size in stream[0].train.source[:, 0]}
    tested = {rows[int(size)][1] for size in stream[0].test.source[:, 0]}
    assert transform.columns[1] == Column("colour", ColumnKind.CATEGORIES, tuple(sorted(trained)))
    unknown = sorted(tested - trained)
    assert [note for note in stream.notes if all(repr(name) in note for name in unknown) and "no training" in note] or (
        not unknown
    )


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        (["red", "", "blue"], "line 3, column 'colour': the value is missing;"),
        (["red", "NA", "blue"], "line 3, column 'colour': the value is missing .'NA'.;"),
        (["?", "red", "blue"], "line 2, column 'colour': the value is missing .'.'.;"),
        (["red", "7", "blue"], "line 3, column 'colour': '7' looks like a number, and 'red' above like none.*categor"),
        (["7", "red", "blue"], "line 3, column 'colour': 'red' is not a finite number"),
        (["red", "inf", "blue"], "line 3, column 'colour': 'inf' looks like a number"),
        (["2026-01-01", "2026-01-02", "2026-01-03"], "line 2, column 'colour': '2026-01-01' is not a finite number"),
        (["12 kg", "13 kg", "14 kg"], "'12 kg' is not a finite number.*; or, if these are categories, say categories"),
        (["$5", "$6", "$7"], r"'\$5' is not a finite number"),
        (["1_0", "1_1", "1_2"], "'1_0' is not a finite number"),
        (["٣", "٤", "٥"], "'٣' is not a finite number"),
        (["½", "¾", "¼"], "'½' is not a finite number"),
        (
            ["1,5", "2,5", "3,5"],
            r"'1,5' is not a finite number \(decimals need a point, or decimal = \",\" \(`decimal=,`",
        ),
        (["1.234,5", "2.345,6", "3"], r"'1.234,5' is not a finite number \(write thousands without a separator\)"),
        (["1 234", "2 345", "3"], r"'1 234' is not a finite number \(write thousands without a separator\)"),
        (["é", "e\u0301", "red"], "column 'colour': writes a class as .* that is .* elsewhere"),
    ],
)
def test_what_is_neither_numbers_nor_words_is_refused(cells: list[str], fault: str, tmp_path: Path) -> None:
    rows = [[row[0], cell, row[2]] for row, cell in zip(ROWS, cells * 10, strict=True)]
    write(tmp_path / "a.csv", HEADER, rows)
    with pytest.raises(UnfitDataError, match=fault) as caught:
        built(tmp_path)
    assert "\n" not in str(caught.value)


def test_texts_that_hardly_repeat_are_no_categories_unless_that_is_said(tmp_path: Path) -> None:
    rows = [[row[0], f"house {number}", row[2]] for number, row in enumerate(ROWS)]
    write(tmp_path / "a.csv", HEADER, rows)
    fault = r"column 'colour' holds 30 different texts, such as 'house 0', no numbers; leave it out \(`drop=colour`\)"
    with pytest.raises(UnfitDataError, match=fault):
        built(tmp_path)
    assert built(tmp_path, 'categories = ["colour"]')[0].input_shape[0] in range(20, 23), "those of the training part"
    many = [[row[0], f"street {number % 101}", row[2]] for number, row in enumerate(ROWS * 10)]
    write(tmp_path / "a.csv", HEADER, many)
    with pytest.raises(UnfitDataError, match="holds 101 different texts"):
        built(tmp_path)


def test_numbers_are_categories_if_that_is_said(tmp_path: Path) -> None:
    rows = [[["07", "7", "10115"][row % 3], *ROWS[row][1:]] for row in range(30)]
    write(tmp_path / "a.csv", HEADER, rows)
    with pytest.raises(UnfitDataError, match="writes a class as '7' that is '07' elsewhere"):
        built(tmp_path, 'categories = ["size", "colour"]')
    write(tmp_path / "a.csv", HEADER, [[["08", "7", "10115"][row % 3], *ROWS[row][1:]] for row in range(30)])
    stream = built(tmp_path, 'categories = ["size", "colour"]')
    transform = stream[0].train.transform
    assert isinstance(transform, TableRows)
    assert transform.features == ("size=7", "size=08", "size=10115", "colour=blue", "colour=green", "colour=red")


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ('categories = ["kind"]', "there is no column in .*'kind'"),
        ('categories = ["answer"]', "categories are columns of features, and 'answer' is none"),
        ('categories = ["size"]\ndrop = ["size"]', "categories are columns of features, and 'size' is none"),
        ("categories = [1]", "categories must be a list of texts"),
        ('decimal = ";"', r"decimal must be '\.' or ','"),
    ],
)
def test_what_cannot_be_said_of_cells(said: str, fault: str, tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER, ROWS)
    with pytest.raises(InputError, match=fault):
        built(tmp_path, said)


# --- truth values


@pytest.mark.parametrize(("no", "yes"), [("False", "True"), ("FALSE", "TRUE"), ("no", "yes"), ("false", "true")])
def test_truth_values_are_zeros_and_ones(no: str, yes: str, tmp_path: Path) -> None:
    truths = [row % 5 == 0 for row in range(30)]
    write(
        tmp_path / "a.csv",
        HEADER,
        [[row[0], yes if truth else no, row[2]] for row, truth in zip(ROWS, truths, strict=True)],
    )
    words = built(tmp_path)
    write(
        tmp_path / "a.csv", HEADER, [[row[0], str(int(truth)), row[2]] for row, truth in zip(ROWS, truths, strict=True)]
    )
    numbers = built(tmp_path)
    for part in ("train", "test"):
        assert torch.equal(getattr(words[0], part).load()[0], getattr(numbers[0], part).load()[0])
    assert words.notes == numbers.notes == ()


def test_truth_values_of_a_test_table_may_be_digits_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER, [[row[0], str(row[1] == "red"), row[2]] for row in ROWS])
    task = built(tmp_path, test=[["1", "1", "no"], ["1", "0", "yes"], ["1", "yes", "no"]])[0]
    assert task.test.source[:, 1].tolist() == [1, 0, 1]
    with pytest.raises(UnfitDataError, match="line 2, column 'colour': 'perhaps' is no truth value as in the training"):
        built(tmp_path, test=[["1", "perhaps", "no"]])


# --- numbers


@pytest.mark.parametrize(("delimiter", "said"), [(";", 'delimiter = ";"\n'), ("\t", 'delimiter = "\\t"\n'), (",", "")])
def test_decimal_commas_are_read_if_they_are_said(delimiter: str, said: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=30).round(3)
    rows = [[f"{value}", row[1], row[2]] for value, row in zip(values, ROWS, strict=True)]
    write(tmp_path / "a.csv", HEADER, rows)
    points = built(tmp_path)
    write(tmp_path / "a.csv", HEADER, [[row[0].replace(".", ","), *row[1:]] for row in rows], delimiter)
    commas = built(tmp_path, f'{said}decimal = ","')
    for part in ("train", "test"):
        assert torch.equal(getattr(points[0], part).load()[0], getattr(commas[0], part).load()[0])
    with pytest.raises(UnfitDataError, match=r"decimal = \",\""):
        built(tmp_path, said)
    write(tmp_path / "a.csv", HEADER, rows, delimiter)
    with pytest.raises(
        UnfitDataError, match=r"is not a finite number \(decimals need a comma here; thousands need no separator\)"
    ):
        built(tmp_path, f'{said}decimal = ","')


def test_decimal_commas_of_targets(tmp_path: Path) -> None:
    prices = [f"{100 + row * 1.25:.2f}" for row in range(30)]
    rows = [[row[0], row[1], price] for row, price in zip(ROWS, prices, strict=True)]
    write(tmp_path / "a.csv", HEADER, rows)
    points = built(tmp_path)[0].train.labels
    write(tmp_path / "a.csv", HEADER, [[row[0], row[1], row[2].replace(".", ",")] for row in rows])
    assert torch.equal(built(tmp_path, 'decimal = ","')[0].train.labels, points)
    with pytest.raises(UnfitDataError, match=r"line 2, column 'answer': '100,00' .*decimal = .*`target=classes`"):
        built(tmp_path)
    few = [[row[0], row[1], "0,5" if row[1] == "red" else "1"] for row in ROWS]
    write(tmp_path / "a.csv", HEADER, few)
    assert built(tmp_path, 'target = "classes"')[0].classes == ("1", "0,5")
    with pytest.raises(UnfitDataError, match="'0,5' is not a finite number"):
        built(tmp_path)


@pytest.mark.parametrize("value", [3.4028236e38, 1e39, -1e300, np.inf, -np.inf, np.nan])
def test_numbers_that_float32_cannot_hold_are_refused(value: float, tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER, [*ROWS, [str(float(value)), "red", "no"]])
    with pytest.raises(UnfitDataError, match=r"line 32, column 'size': '.*' is not a finite number"):
        built(tmp_path)


def test_a_column_that_does_not_vary_is_said(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER, [["101325", *row[1:]] for row in ROWS])
    stream = built(tmp_path)
    assert "task a: the same in all training samples, so that nothing can be learned from it: 'size'" in stream.notes
    assert stream[0].train.load()[0][:, 0].abs().max() == 0


def test_a_test_row_that_is_infinitely_far_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER, [[f"{1e-30 * row}", *rest] for row, (_, *rest) in enumerate(ROWS)])
    with pytest.raises(UnfitDataError, match=r"b\.csv: test sample 1 is infinitely far from all training samples"):
        built(tmp_path, test=[["0", "red", "no"], ["1e10", "red", "no"]])


def test_columns_that_training_lacks_are_said(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER, ROWS)
    write(tmp_path / "b.csv", [*HEADER, "extra"], [[*row, "x"] for row in ROWS[:5]])
    (tmp_path / "tasks.toml").write_text('[[task]]\npath = "a.csv"\nlabel = "answer"\ntest = "b.csv"\n')
    notes = own_stream([tmp_path / "tasks.toml"]).build(StreamOptions(0)).notes
    assert f"task a: {tmp_path}/b.csv: column 'extra' is not in the training table, and not used" in notes


# --- laws

NUMBERS = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-1000000, max_value=1000000).map(str),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(repr),
    st.integers(-(10**20), 10**20).map(str),
)


@given(NUMBERS)
def test_a_number_is_what_exact_arithmetic_says(text: str) -> None:
    assert read_number(text) == float(Decimal(text))
    assert read_number(text.replace(".", ","), DecimalMark.COMMA) == float(Decimal(text))


@given(st.text("0123456789+-.,eE_ infa\u0663\uff11\u00bd", max_size=8))
def test_whatever_is_read_as_a_number_is_written_in_ascii_digits(text: str) -> None:
    for mark in DecimalMark:
        number = read_number(text, mark)
        if number is not None:
            plain = text.replace(",", ".")
            assert set(text) <= set("0123456789+-eE" + mark.value)
            assert number == float(Decimal(plain))


@given(st.lists(st.sampled_from(["a", "b", "c", "d e"]), min_size=1, max_size=12), st.data())
def test_one_hot_agrees_with_a_slow_oracle(cells: list[str], data: st.DataObject) -> None:
    reader = ColumnReader("c", DecimalMark.POINT, ColumnKind.CATEGORIES)
    for cell in cells:
        reader.add(cell, "here")
    column, values = reader.finish()
    assert column.categories == tuple(sorted(set(cells)))
    assert [column.categories[int(value)] for value in values] == cells


def test_every_way_to_write_a_table_is_one_line_or_the_same_samples(tmp_path: Path) -> None:
    """What a spreadsheet may do to a table changes nothing, or is named."""
    write(tmp_path / "a.csv", HEADER, ROWS)
    plain = built(tmp_path)[0].train.load()[0]
    ways: dict[str, Callable[[str], str]] = {
        "quotes": lambda text: "\n".join(
            ",".join(f'"{cell}"' for cell in line.split(",")) for line in text.split("\r\n")[:-1]
        ),
        "spaces": lambda text: text.replace(",", " , "),
        "old ends of lines": lambda text: text.replace("\r\n", "\r"),
        "empty lines": lambda text: text.replace("\r\n", "\r\n\r\n"),
        "plus": lambda text: "".join(f"+{line}" if line[:1].isdigit() else line for line in text.splitlines(True)),
        "a cell too many": lambda text: text.replace("\r\n", ",\r\n"),
        "half a row": lambda text: text + "3,red",
        "thousands": lambda text: text.replace("\r\n4,", '\r\n"4,000",'),
        "percent": lambda text: text.replace("\r\n4,", "\r\n4%,"),
        "a twin": lambda text: text.replace("size,colour", "size,size"),
        "a quote": lambda text: text.replace("red", '"red', 1),
    }
    text = (tmp_path / "a.csv").read_bytes().decode()
    found: dict[str, bool | None] = {}
    for name, way in ways.items():
        (tmp_path / "a.csv").write_bytes(way(text).encode())
        try:
            found[name] = torch.equal(built(tmp_path)[0].train.load()[0], plain)
        except HatrackError as error:
            found[name] = None if len(str(error).splitlines()) == 1 else False
    same = ["quotes", "spaces", "old ends of lines", "empty lines", "plus"]
    assert found == {name: True if name in same else None for name in ways}
