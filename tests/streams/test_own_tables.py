"""Tables of one's own: lines, columns and numbers are taken for what they are, or named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from hatrack.errors import DataError, HatrackError, InputError, UnfitDataError
from support.own_sources import ROWS, TABLE, archive, built, from_toml, notes_of


@pytest.mark.slow
def test_table_is_standardised_on_its_training_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufeff" + "\n".join(ROWS) + "\n\n", encoding="utf-8")
    task = from_toml(tmp_path, f'{TABLE}drop = ["id"]\n')
    assert (task.classes, task.input_shape) == (("x", "y"), (2,))
    sizes = torch.arange(12.0, dtype=torch.float64)
    values = torch.stack([sizes, sizes**2], dim=1)
    # Which rows were drawn is told by undoing the standardisation for every possible choice: the sizes are distinct.
    train, test = task.train.load()[0].double(), task.test.load()[0].double()
    assert train.mean(0).abs().max() < 1e-6
    scale = None
    for rows in torch.combinations(torch.arange(12), 6):
        mean, std = values[rows].mean(0), values[rows].std(0, correction=0)
        if torch.allclose((values[rows] - mean) / std, train, atol=1e-5):
            scale = (mean, std, rows)
    assert scale is not None
    mean, std, rows = scale
    others = torch.tensor([row for row in range(12) if row not in rows.tolist()])
    torch.testing.assert_close(test, (values[others] - mean) / std, atol=1e-5, rtol=1e-5)


def test_second_table_for_testing_may_have_its_columns_in_another_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n".join(ROWS))
    (tmp_path / "b.csv").write_text("kind;mass;size;id\ny;9;3;1\nx;4;2;1\n".replace(";", ","))
    task = from_toml(tmp_path, '[[task]]\npath = "a.csv"\nlabel = "kind"\ndrop = ["id"]\ntest = "b.csv"\n')
    assert task.test.load()[1].tolist() == [1, 0]
    assert torch.equal(task.test.load()[0], task.train.load()[0][[3, 2]])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda text: text.replace("\n3,y,3,", "\n3,y,,"), "a.csv line 5, column 'size': the value is missing"),
        (lambda text: text.replace("\n3,y,3,", "\n3,y,NaN,"), "a.csv line 5, column 'size': 'NaN' is not a finite"),
        (lambda text: text.replace("\n3,y,3,", "\n3,y,big,"), "a.csv line 5, column 'size': 'big' is not a finite"),
        (lambda text: text.replace("\n3,y,3,", "\n3,y,1_000,"), "a.csv line 5, column 'size': '1_000' is not a finite"),
        (lambda text: text.replace("\n3,y,3,", "\n3,y,１２,"), "a.csv line 5, column 'size': '１２' is not a finite"),
        (lambda text: text.replace("\n3,y,3,", '\n3,y,"2,5",'), "a.csv line 5, column 'size': '2,5' is not a finite"),
        (lambda text: text.replace("\n3,y,3,", "\n3,y,1e39,"), "a.csv line 5, column 'size': '1e39' is not a finite"),
        (lambda text: text.replace("\n3,y,3,", "\n3,,3,"), "a.csv line 5, column 'kind': the label is missing"),
        (lambda text: text.replace("\n3,y,3,", "\n3,y,3,0,"), "a.csv line 5: has 5 cells instead of 4"),
        (lambda text: text.replace("mass", "size"), "line 1: two columns are named 'size'"),
        (lambda text: text.replace("kind", "sort"), "there is no column in .*a.csv 'kind'"),
        (
            lambda text: text.replace("id,kind", 'id,"kind', 1).replace("0,x,0,0", '0",x,0,1', 1),
            "there is no column in .*'kind'",
        ),
        (lambda text: "", "a.csv: is empty"),
        (lambda text: text.split("\n")[0], "no line below the column names"),
        (lambda text: text.replace("\n3,y,3,", '\n3,y,"3,'), "a.csv line 5: cannot be read as a row of a table"),
        (lambda text: text.replace("y", "x"), "all training samples are of class 'x'"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(change: Callable[[str], str], fault: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(change("\n".join(ROWS)))
    with pytest.raises(HatrackError, match=fault) as caught:
        from_toml(tmp_path, TABLE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("x,y,kind", ["1,2,a", '3,4,"a', "5,6,b", '7,8,b"', "9,1,a"]),
        ("x,y,kind", ["1,2,a", '3,"4,a', "5,6,b", '7,8",b', "9,1,a"]),
        ("x,note,kind", ["1,n,a", '3,"4,a', '5,6",b', "9,n,a"]),
        ("note,x,kind", ["n,1,a", '"m,3,a', "k,4,b", "l,5,b", '6",7,b']),
        ("kind,x,note", ["a,1,n", 'b,2,"m', "a,3,n", 'b,4,o"']),
        ('kind,x,"note', ["a,1,n", 'b,2,m"', "a,1,n", "b,4,o"]),
    ],
)
def test_rows_within_quotation_marks_are_not_swallowed(header: str, rows: list[str], tmp_path: Path) -> None:
    for end in ("\n", "\r\n"):
        (tmp_path / "a.csv").write_bytes(end.join([header, *rows * 3]).encode())
        with pytest.raises(HatrackError, match=r"a\.csv line [13]\b.*(quotation mark|not a finite)") as caught:
            from_toml(tmp_path, TABLE + ('drop = ["note"]' if "note" in header.split(",") else ""))
        assert "\n" not in str(caught.value)


def test_text_of_several_lines_is_no_matter(tmp_path: Path) -> None:
    rows = [f'{row},"a ""word"",\nand another",{"ab"[row % 2]}' for row in range(9)]
    (tmp_path / "a.csv").write_text("\n".join(["x,note,kind", *rows]))
    assert from_toml(tmp_path, TABLE + 'drop = ["note"]').input_shape == (1,)


@pytest.mark.parametrize("name", ["", " ", '""', "Unnamed: 0"])
def test_numbers_of_rows_are_no_feature(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n".join([ROWS[0].replace("id", name), *ROWS[1:]]))
    kept = name.strip('" ')
    task, notes = from_toml(tmp_path, TABLE), notes_of(tmp_path / "tasks.toml")
    dropped = from_toml(tmp_path, f'{TABLE}drop = ["{kept}"]\n')
    assert torch.equal(task.train.load()[0], dropped.train.load()[0])
    assert task.input_shape == (2,)
    assert f"task a: {tmp_path}/a.csv: column 1 has no name and counts the rows; it is left out" in notes


@pytest.mark.parametrize("start", [0, 1])
def test_noise_with_numbers_of_rows_is_noise(start: int, tmp_path: Path) -> None:
    """A table sorted by class tells the class by the numbers of its rows, to nobody's use."""
    noise = np.random.default_rng(0).normal(size=60)
    rows = [f"{row + start},{noise[row]},{'ab'[row // 30]}" for row in range(60)]
    (tmp_path / "a.csv").write_text("\n".join([",noise,kind", *rows]))
    task = from_toml(tmp_path, TABLE)
    mean, std = noise.mean(), noise.std()
    found = torch.cat([task.train.load()[0], task.test.load()[0]]).sort(dim=0).values
    assert found.shape == (60, 1)
    spread = torch.tensor(np.sort((noise - mean) / std), dtype=torch.float32)[:, None]
    assert torch.corrcoef(torch.cat([found, spread], dim=1).T)[0, 1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "numbers", [range(2, 14), range(0, 24, 2), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 10], [0.5 * row for row in range(12)]]
)
@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_a_column_without_a_name_that_counts_nothing_is_refused(
    name: str, numbers: Sequence[float], tmp_path: Path
) -> None:
    rows = [f"{number},{row}" for number, row in zip(numbers, [row.partition(",")[2] for row in ROWS[1:]], strict=True)]
    (tmp_path / "a.csv").write_text("\n".join([ROWS[0].replace("id", name), *rows]))
    fault = rf'column 1 has no name.*does not count the rows .*line \d+: .*leave it out by drop = \["{name}"\]'
    with pytest.raises(UnfitDataError, match=fault):
        from_toml(tmp_path, TABLE)
    assert from_toml(tmp_path, f'{TABLE}drop = ["{name}"]\n').input_shape == (2,)


def test_only_the_first_column_may_go_without_a_name(tmp_path: Path) -> None:
    rows = [f"{row % 3},{row},{'xy'[row % 2]}" for row in range(12)]
    (tmp_path / "a.csv").write_text("\n".join(["a,,kind", *rows]))
    with pytest.raises(UnfitDataError, match=r'column 2 has no name; leave it out by drop = \[""\]'):
        from_toml(tmp_path, TABLE)


def test_a_named_column_that_counts_the_rows_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n".join(ROWS))
    assert from_toml(tmp_path, TABLE).input_shape == (3,)
    assert "task a: column 'id' counts the rows; if it is no feature, leave it out (`drop=id`)" in notes_of(
        tmp_path / "tasks.toml"
    )


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_are_named(delimiter: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n".join(ROWS).replace(",", delimiter))
    said = f"delimiter = {json.dumps(delimiter)}"
    with pytest.raises(InputError, match=re.escape(f'not by ","; say {said}')):
        from_toml(tmp_path, TABLE)
    assert from_toml(tmp_path, f"{TABLE}{said}\n").input_shape == (3,)


@pytest.mark.parametrize(
    ("encoding", "fault"),
    [
        ("latin-1", r"a\.csv line 3: is not UTF-8 \(byte 0xe9\).*save it as UTF-8"),
        ("utf-16-le", r'a\.csv: is UTF-16 without a mark; say encoding = "utf-16-le" \(`encoding=utf-16-le`\)'),
        ("utf-16-be", r'a\.csv: is UTF-16 without a mark; say encoding = "utf-16-be"'),
    ],
)
def test_other_encodings_are_named_and_read_if_they_are_said(encoding: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\n".join(ROWS).replace("y", "\u00e9").encode(encoding))
    with pytest.raises(UnfitDataError, match=fault):
        from_toml(tmp_path, TABLE)
    assert from_toml(tmp_path, f'{TABLE}encoding = "{encoding}"\n').classes == ("x", "\u00e9")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_says_the_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\n".join(ROWS).replace("y", "\u00e9").encode(encoding))
    assert from_toml(tmp_path, TABLE).classes == ("x", "\u00e9")
    assert from_toml(tmp_path, f'{TABLE}encoding = "{encoding}"\n').classes == ("x", "\u00e9")
    with pytest.raises(UnfitDataError, match=r"begins with the mark of UTF-\d+, so it is not cp1252"):
        from_toml(tmp_path, f'{TABLE}encoding = "cp1252"\n')


@pytest.mark.parametrize("encoding", ["nonsense", "base64", "", "utf-8\x00"])
def test_encodings_that_there_are_not(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n".join(ROWS))
    with pytest.raises(InputError, match="there is no encoding"):
        from_toml(tmp_path, f"{TABLE}encoding = {json.dumps(encoding)}\n")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"PK\x03\x04 sheets", "is a zip archive, or the workbook of a spreadsheet"),
        (b"PAR1 columns", "is a Parquet file; let its name end with .parquet"),
        (b"a,kind\n\0,x\n", "line 2: holds a null character"),
        (b"a,kind\n\x81,x\n", "line 2: is not UTF-8"),
    ],
)
def test_files_that_are_no_text_are_named(content: bytes, fault: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UnfitDataError, match=fault):
        from_toml(tmp_path, TABLE)


@pytest.mark.parametrize("start", [1_700_000_000, 1_700_000_000_000, 2**53 - 60])
def test_large_numbers_that_differ_little_stay_apart(start: int, tmp_path: Path) -> None:
    moments = [start + second for second in range(50)]
    rows = [f"{moment},{'xy'[moment % 2]}" for moment in moments]
    (tmp_path / "a.csv").write_text("\n".join(["time,kind", *rows]))
    x = np.array(moments)[:, None]
    y = np.arange(50) % 2
    path = archive(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    table, whole = from_toml(tmp_path, TABLE), built(path)
    floats = built(archive(path, x_train=x * 1.0, y_train=y, x_test=x, y_test=y))
    for task in (table, whole):
        values = torch.cat([task.train.load()[0], task.test.load()[0]]).unique()
        assert len(values) == 50
        assert values.diff().min() > 0.9 * values.diff().max(), "steps of a second are equally long"
    assert torch.equal(floats.train.load()[0], whole.train.load()[0])
    assert whole.train.load()[0].std(correction=0) == pytest.approx(1, abs=1e-3)


def test_what_is_noise_of_computing_is_no_feature(tmp_path: Path) -> None:
    x = np.array([0.1 + 0.2, 0.3] * 15)[:, None] * [1.0, 1e6]
    task = built(archive(tmp_path / "a.npz", x_train=x, x_test=x[:9]))
    assert task.train.load()[0].abs().max() < 1e-6


def test_numbers_that_no_float_tells_apart_are_refused(tmp_path: Path) -> None:
    moments = [10**18 + row * 10**6 + 1 for row in range(12)]  # nanoseconds, rounded to 128 of them
    lines = [ROWS[0], *(f"{row},{'xy'[row % 2]},{moment},0" for row, moment in enumerate(moments))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert from_toml(tmp_path, TABLE).train.load()[0][:, 1].unique().numel() == 6
    (tmp_path / "a.csv").write_text("\n".join([*lines, f"12,x,{moments[3] + 1},0"]))
    with pytest.raises(DataError, match=r"line 14, column 'size': 1\d+2 and 1\d+1 above are the same"):
        from_toml(tmp_path, TABLE)
    with pytest.raises(DataError, match="x_train holds whole numbers that are the same in 64 bits"):
        built(archive(tmp_path / "a.npz", x_train=np.array([10**18 + row for row in range(30)])[:, None]))
