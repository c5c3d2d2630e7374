"""Tables of one's own in other files than plain CSV: tabs, gzip, Parquet, Arrow."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hatrack.errors import DataError, HatrackError, InputError, UnfitDataError
from hatrack.streams import StreamOptions, TaskStream, own_stream
from hatrack.streams.own.formats import TABLE_SUFFIXES, TableKind, bare_name, table_kind

RANDOM = np.random.default_rng(0)
COLUMNS: dict[str, list[Any]] = {
    "size": RANDOM.normal(size=30).tolist(),
    "count": [1_700_000_000_000 + 7 * row * row % 100 for row in range(30)],
    "new": [row % 5 == 0 for row in range(30)],
    "colour": [["red", "green", "blue"][row % 3] for row in range(30)],
    "answer": ["no" if row % 3 else "yes" for row in range(30)],
}


def text(columns: dict[str, list[Any]], delimiter: str = ",") -> str:
    rows = zip(*columns.values(), strict=True)
    return "\n".join(delimiter.join(map(str, row)) for row in [tuple(columns), *rows]) + "\n"


def built(path: Path, said: str = "") -> TaskStream:
    toml = path.parent / "tasks.toml"
    toml.write_text(f'[[task]]\npath = "{path.name}"\nlabel = "answer"\ntest_share = 0.3\n{said}\n')
    return own_stream([toml]).build(StreamOptions(0, validation=0))


def loaded(stream: TaskStream) -> list[torch.Tensor]:
    return [tensor for split in (stream[0].train, stream[0].test) for tensor in split.load()]  # type: ignore[misc]


def plain(folder: Path) -> list[torch.Tensor]:
    path = folder / "t.csv"  # the name of the task is of the seed's making
    path.write_text(text(COLUMNS))
    return loaded(built(path))


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("t.tsv", TableKind.TSV),
        ("t.tab", TableKind.TSV),
        ("T.CSV", TableKind.CSV),
        ("t.csv.gz", TableKind.CSV),
        ("t.TSV.GZ", TableKind.TSV),
        ("t.feather", TableKind.ARROW),
        ("t.parquet", TableKind.PARQUET),
        ("t.parquet.gz", None),
        ("t.npz", None),
        ("t.gz", None),
        ("csv", None),
    ],
)
def test_names_say_the_kind_of_table(name: str, kind: TableKind | None) -> None:
    assert table_kind(Path("folder.csv") / name) is kind
    if kind is not None:
        assert bare_name(Path(name)).lower() == "t"


def test_what_is_no_table_is_told_what_is_one(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"t\.xlsx is no folder of pictures, .*another table \(.*\.parquet.*\.csv\.gz"):
        built(tmp_path / "t.xlsx")
    assert len(set(TABLE_SUFFIXES)) == len(TABLE_SUFFIXES)


def test_tables_of_tabs_and_packed_ones(tmp_path: Path) -> None:
    expected = plain(tmp_path)
    for name, content in {
        "t.tsv": text(COLUMNS, "\t").encode(),
        "t.csv.gz": gzip.compress(text(COLUMNS).encode()),
        "t.tsv.gz": gzip.compress(text(COLUMNS, "\t").encode("utf-16")),
    }.items():
        (tmp_path / name).write_bytes(content)
        stream = built(tmp_path / name)
        assert (stream[0].name, same(loaded(stream), expected)) == ("t", True)
    (tmp_path / "t.tsv").write_text(text(COLUMNS))
    with pytest.raises(InputError, match=r't\.tsv line 1: is divided by ",", not by "\\t"; say delimiter = ","'):
        built(tmp_path / "t.tsv")
    assert same(loaded(built(tmp_path / "t.tsv", 'delimiter = ","')), expected)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text(COLUMNS).encode())[:-9])
    with pytest.raises(DataError, match="the gzip data is cut short"):
        built(tmp_path / "t.csv.gz")


def test_without_pyarrow_the_command_that_brings_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("t.parquet", "t.arrow", "t.feather"):
        (tmp_path / name).write_bytes(b"PAR1")
        with pytest.raises(InputError, match=r"needs the library pyarrow; pip install 'hatrack\[tables\]'"):
            built(tmp_path / name)


def written(path: Path, columns: dict[str, Any]) -> Path:
    """Write a table with types in the format that its name says; ``.arrow`` as a stream."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import feather, parquet

    table = arrow.table(columns)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    elif path.suffix == ".feather":
        feather.write_feather(table, path)
    else:
        with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("name", ["t.parquet", "t.feather", "t.arrow"])
def test_a_table_with_types_is_the_same_samples_to_the_bit(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, COLUMNS)
    stream = built(path)
    assert same(loaded(stream), plain(tmp_path))
    assert "task t: column 'colour' holds 3 categories ('blue', 'green', 'red'), a feature each" in stream.notes
    toml = tmp_path / "tasks.toml"
    toml.write_text('[[task]]\npath = "t.csv"\nlabel = "answer"\ntest = "' + name + '"\n')
    task = own_stream([toml]).build(StreamOptions(0, validation=0))[0]
    assert torch.equal(task.train.load()[0], task.test.load()[0])  # type: ignore[arg-type]


def test_types_of_columns(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    columns = {
        "size": arrow.array(COLUMNS["size"], arrow.float32()),
        "half": arrow.array(np.arange(30, dtype=np.float16) % 7),
        "price": arrow.array([f"{row}.25" for row in range(30)]).cast(arrow.decimal128(9, 2)),
        "count": arrow.array([row * 1000 % 37 for row in range(30)], arrow.uint16()),
        "colour": arrow.array(COLUMNS["colour"]).dictionary_encode(),
        "answer": arrow.array([2 + row % 2 for row in range(30)], arrow.int8()),
    }
    stream = built(written(tmp_path / "t.parquet", columns))
    assert stream[0].classes == ("2", "3")
    texts = {name: column.to_pylist() for name, column in columns.items()}
    (tmp_path / "t.csv").write_text(text(texts))
    assert same(loaded(stream), loaded(built(tmp_path / "t.csv")))


@pytest.mark.parametrize(
    ("column", "fault"),
    [
        ([1.0, None] * 15, r"t\.parquet row 2, column 'x': the value is missing"),
        ([1.0, float("nan")] * 15, "row 2, column 'x': 'nan' is not a finite number"),
        ([1.0, float("inf")] * 15, "row 2, column 'x': 'inf' is not a finite number"),
        ([1.0, 1e39] * 15, r"row 2, column 'x': '1e\+39' is not a finite number"),
        ([2**60, 2**60 + 1] * 15, "are the same in 64 bits"),
        ([None] * 30, "row 1, column 'x': the value is missing"),
        (
            ["7", "8"] * 15,
            "row 1, column 'x': '7' looks like a number in a column of texts; save the column as numbers",
        ),
        (["red", None] * 15, "row 2, column 'x': the value is missing"),
        (["red", "NA"] * 15, "row 2, column 'x': the value is missing"),
        ([[1, 2]] * 30, r"column 'x': holds list<.*>, no numbers.*take it apart into columns, or drop"),
        (
            np.arange(30).astype("datetime64[s]"),
            r"column 'x': holds timestamp\[m?s\].*seconds since a day, or drop the col",
        ),
    ],
)
def test_what_is_no_feature_is_named(column: Any, fault: str, tmp_path: Path) -> None:
    path = written(tmp_path / "t.parquet", {"x": column, **COLUMNS})
    with pytest.raises(UnfitDataError, match=fault) as caught:
        built(path)
    assert "\n" not in str(caught.value)
    assert built(path, 'drop = ["x"]')[0].input_shape == (6,)


def test_texts_that_look_like_numbers_are_categories_if_that_is_said(tmp_path: Path) -> None:
    path = written(tmp_path / "t.parquet", {**COLUMNS, "zip": ["01067", "10115", "80331"] * 10})
    assert built(path, 'categories = ["zip"]')[0].input_shape == (9,)


def test_row_numbers_of_pandas_are_left_out(tmp_path: Path) -> None:
    for numbers, said in (
        (range(30), "column 6 has no name and counts the rows; it is left out"),
        (range(5, 35), None),
    ):
        path = written(tmp_path / "t.parquet", {**COLUMNS, "__index_level_0__": list(numbers)})
        if said is None:
            with pytest.raises(UnfitDataError, match=r'does not count the rows.*drop = \["__index_level_0__"\]'):
                built(path)
        else:
            stream = built(path)
            assert stream[0].input_shape == (6,)
            assert any(said in note for note in stream.notes)


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    for name in ("t.parquet", "t.feather", "t.arrow"):
        whole = written(tmp_path / name, COLUMNS).read_bytes()
        for content in (b"", b"PAR1", whole[:-20], whole[: len(whole) // 2], b"a,answer\n1,x\n2,y\n", whole[::-1]):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(HatrackError) as caught:
                built(tmp_path / name)
            assert str(caught.value).startswith(str(tmp_path / name))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said", ['delimiter = ";"', 'decimal = ","', 'encoding = "cp1252"'])
def test_what_is_said_of_texts_does_not_go_with_types(said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "t.parquet", COLUMNS)
    with pytest.raises(InputError, match=rf"has columns with types; leave out {said.split()[0]}"):
        built(path, said)


@pytest.mark.parametrize("name", ["t.csv.gz", "t.tsv.gz", "t.parquet", "t.feather", "t.npz"])
def test_a_file_that_would_fill_the_memory_is_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(b"size,answer\n" + b"0,1\n" * 500_000))
    elif name.endswith(".npz"):
        zeros = np.zeros((200_000, 2), np.float32)
        np.savez_compressed(path, x_train=zeros, y_train=np.zeros(200_000, int), x_test=zeros[:2], y_test=np.arange(2))
    else:
        written(path, {"size": [0.0] * 300_000, "answer": [0] * 300_000})
    packed = path.stat().st_size
    assert packed < 40_000
    said = [f"{name}: ", "unpack", "if it is right, save it without compression"]
    monkeypatch.setattr("hatrack.data.files.UNPACKED_BYTES", 1_000_000)
    read = built if not name.endswith(".npz") else lambda path: own_stream([path]).build(StreamOptions(0, validation=0))
    with pytest.raises(DataError) as caught:
        read(path)
    assert all(part in str(caught.value) for part in said)
    assert "\n" not in str(caught.value)


def test_several_packed_parts_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    content = text(COLUMNS).encode()
    path.write_bytes(gzip.compress(content[:200]) + gzip.compress(content[200:]))
    assert same(loaded(built(path)), plain(tmp_path))
