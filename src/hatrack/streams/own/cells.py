"""Files of tables as rows of cells: lines of text, and typed columns of Parquet and Arrow."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hatrack.data.files import read_content, read_payload, require_unpacked
from hatrack.errors import DataError, InputError, UnfitDataError
from hatrack.streams.own.columns import dropping
from hatrack.streams.own.decoding import check_encoding, decoded
from hatrack.streams.own.formats import TableKind, table_kind
from hatrack.streams.own.numerals import DecimalMark

__all__ = ["CellFormat", "TableFile", "has_no_name", "open_table"]

DELIMITERS = (",", ";", "\t", "|")
UNNAMED = re.compile(r"Unnamed: \d+|__index_level_\d+__")
"""Names that pandas gives to a column without one, and to row numbers in Parquet."""
BLOCK = 1 << 14
"""Number of rows of typed columns that are turned into texts at once."""


@dataclass(frozen=True)
class CellFormat:
    """Way in which the cells of a table are written.

    Attributes:
        delimiter: the character between two cells of a line; None for that of the file's kind, a comma or a tab.
        decimal: the character in front of the decimals of a number; None for a point.
        encoding: Python's name of the encoding; None for what the file's mark says, or UTF-8.
        categories: names of the columns whose cells are categories whatever they look like; None for nothing said.

    Raises:
        InputError: the delimiter is no single character, or there is no such encoding.
    """

    delimiter: str | None = None
    decimal: DecimalMark | None = None
    encoding: str | None = None
    categories: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise InputError(f"delimiter must be a single character, not {self.delimiter!r}")
        if self.encoding is not None:
            check_encoding(self.encoding)

    def over(self, other: CellFormat) -> CellFormat:
        """Return what this format says, and what another one says beside it."""
        return CellFormat(**{**vars(other), **{key: value for key, value in vars(self).items() if value is not None}})

    @property
    def said(self) -> tuple[str, ...]:
        """Names of what it says."""
        return tuple(key for key, value in vars(self).items() if value is not None)

    @property
    def mark(self) -> DecimalMark:
        """Character in front of decimals."""
        return self.decimal or DecimalMark.POINT


class TableFile(Protocol):
    """A table that is read row by row."""

    @property
    def path(self) -> Path:
        """Return its file."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of its columns, without spaces around them."""
        ...

    def is_text(self, name: str) -> bool:
        """Return whether the file says that the cells of a column are texts."""
        ...

    def rows(self, names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        """Yield some cells of every row, with the name of its place for messages.

        Args:
            names: names of the columns, in the order in which their cells are given.

        Raises:
            DataError: the file is damaged, or a row is not whole.
        """
        ...

    def other_form(self, wanted: str) -> InputError | None:
        """Return the error that says how to read the table so that it has a column; None where nothing would help."""
        ...


def open_table(path: Path, form: CellFormat) -> TableFile:
    """Open a table and read the names of its columns.

    Args:
        path: the file, whose name says its kind.
        form: way in which its cells are written, for lines of text; columns with types say it themselves.

    Raises:
        DataError: the file cannot be read, is damaged or empty, or two columns share a name.
        InputError: the library that reads it is not installed.
    """
    kind = table_kind(path)
    return _ArrowTable.open(path, kind) if kind in _TYPED else _TextTable.open(path, form)


def has_no_name(column: str) -> bool:
    """Return whether a column was given no name by who wrote the table."""
    return not column or UNNAMED.fullmatch(column) is not None


_TYPED = (TableKind.PARQUET, TableKind.ARROW)


@dataclass(frozen=True, eq=False)
class _TextTable:
    """Lines of cells, of which the first has the names of the columns."""

    path: Path
    names: tuple[str, ...]
    delimiter: str
    lines: Iterator[tuple[int, list[str]]]

    @classmethod
    def open(cls, path: Path, form: CellFormat) -> _TextTable:
        delimiter = form.delimiter or ("\t" if table_kind(path) is TableKind.TSV else ",")
        lines = _lines(decoded(read_content(path), form.encoding, str(path)), path, delimiter)
        header = tuple(name.strip() for name in next(lines, (1, []))[1])
        if not header:
            raise UnfitDataError(f"{path}: is empty; a table begins with a line of column names")
        if re.fullmatch("sep=.?", delimiter.join(header)):
            raise UnfitDataError(
                f"{path} line 1: says how cells are divided, to a spreadsheet; remove it, and say delimiter = ... "
                f"where that is not {json.dumps(delimiter)}"
            )
        _refuse_swallowed(header, delimiter, f"{path} line 1")
        _refuse_twins(header, f"{path} line 1")
        return cls(path, header, delimiter, lines)

    def is_text(self, name: str) -> bool:
        return False

    def rows(self, names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        places = _places(self.names, names)
        for line, row in self.lines:
            where = f"{self.path} line {line}"
            if len(row) != len(self.names):
                raise UnfitDataError(
                    f"{where}: has {len(row)} cells instead of {len(self.names)}; a cell with {self.delimiter!r} in it "
                    "stands in quotation marks"
                )
            _refuse_swallowed(row, self.delimiter, where)
            yield where, [row[place] for place in places]

    def other_form(self, wanted: str) -> InputError | None:
        names = self.delimiter.join(self.names)
        for other in DELIMITERS:
            if other != self.delimiter and wanted in [name.strip(' "') for name in names.split(other)]:
                said = f"is divided by {json.dumps(other)}, not by {json.dumps(self.delimiter)}"
                setting = "tab" if other == "\t" else f"'{other}'"
                return InputError(
                    f"{self.path} line 1: {said}; say delimiter = {json.dumps(other)} (`delimiter={setting}`)"
                )
        return None


def _refuse_twins(names: Sequence[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UnfitDataError(f"{where}: two columns are named {name!r}; rename one")
        seen.add(name)


def _places(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    place_of = {name: place for place, name in enumerate(names)}
    return [place_of[name] for name in wanted]


def _lines(text: str, path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, each with the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UnfitDataError(
                f"{path} line {line}: cannot be read as a row of a table ({error}); look for a quotation mark too many"
            ) from error
        if row:
            yield line, row


def _refuse_swallowed(row: Sequence[str], delimiter: str, where: str) -> None:
    """Refuse a cell of several lines that looks like the end of a row, whole rows, and the beginning of one."""
    for column, cell in enumerate(row):
        if "\n" in cell or "\r" in cell:
            cells = [line.count(delimiter) + 1 for line in cell.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
            ends = len(row) > 1 and (cells[0], cells[-1]) == (len(row) - column, column + 1)
            if ends or len(row) in cells[1:-1]:
                raise UnfitDataError(
                    f"{where}: a quotation mark in cell {column + 1} makes one cell of {len(cells)} lines that look "
                    "like rows; remove it, or the line breaks in the cell"
                )


@dataclass(frozen=True, eq=False)
class _ArrowTable:
    """Typed columns, whose values are written as texts that say them exactly."""

    path: Path
    names: tuple[str, ...]
    content: Any

    @classmethod
    def open(cls, path: Path, kind: TableKind | None) -> _ArrowTable:
        arrow = _pyarrow(path)
        payload = read_payload(path)
        try:
            content = (_parquet if kind is TableKind.PARQUET else _ipc)(arrow, payload, str(path))
            content.validate(full=True)  # offsets of a damaged file lead anywhere
            names = tuple(name.strip() for name in content.schema.names)
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise DataError(
                f"{path}: is damaged, or no {kind.name.title() if kind else ''} file ({_line(error)})"
            ) from error
        if not names:
            raise UnfitDataError(f"{path}: is empty; it has no column")
        _refuse_twins(names, str(path))
        return cls(path, names, content)

    def is_text(self, name: str) -> bool:
        types = _pyarrow(self.path).types
        kind = self._value_type(name)
        return bool(types.is_string(kind) or types.is_large_string(kind))

    def rows(self, names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        arrow = _pyarrow(self.path)
        for name in names:
            self._require_plain(name)
        row = 0
        places = _places(self.names, names)
        try:
            for batch in self.content.to_batches(max_chunksize=BLOCK):
                columns = [_texts(batch.column(place).to_pylist()) for place in places]
                for cells in zip(*columns, strict=True):
                    row += 1
                    yield f"{self.path} row {row}", list(cells)
        except (arrow.ArrowException, OSError, ValueError) as error:  # ValueError: a text that is no UTF-8
            raise DataError(f"{self.path}: is damaged ({_line(error)})") from error

    def other_form(self, wanted: str) -> InputError | None:
        return None

    def _value_type(self, name: str) -> Any:
        kind = self.content.schema.field(self.names.index(name)).type
        return kind.value_type if _pyarrow(self.path).types.is_dictionary(kind) else kind

    def _require_plain(self, name: str) -> None:
        types, kind = _pyarrow(self.path).types, self._value_type(name)
        plain = (types.is_boolean, types.is_integer, types.is_floating, types.is_decimal, types.is_null)
        if not (self.is_text(name) or any(check(kind) for check in plain)):
            moments = types.is_temporal(kind)
            remedy = "write it as numbers, such as seconds since a day" if moments else "take it apart into columns"
            raise UnfitDataError(
                f"{self.path}, column {name!r}: holds {kind}, no numbers, truth values or texts; {remedy}, or drop the "
                f"column ({dropping(name)})"
            )


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.types
    except ImportError as error:
        raise InputError(f"{path}: needs the library pyarrow; pip install 'hatrack[tables]'") from error
    return pyarrow


def _parquet(arrow: Any, payload: bytes, origin: str) -> Any:
    from pyarrow import parquet

    file = parquet.ParquetFile(io.BytesIO(payload), page_checksum_verification=True)
    said = file.metadata
    parts = (said.row_group(number).total_byte_size for number in range(said.num_row_groups))
    # A value that comes a million times in a row is a few bytes, unpacked, too, and a million values in the memory.
    require_unpacked(max(sum(parts), 4 * said.num_rows * said.num_columns), len(payload), origin)
    return file.read()


def _ipc(arrow: Any, payload: bytes, origin: str) -> Any:
    from pyarrow import feather, ipc

    if payload.startswith(b"FEA1"):  # the first version of Feather, which packs nothing
        return feather.read_table(io.BytesIO(payload))
    buffer = arrow.py_buffer(payload)
    if payload.startswith(b"ARROW1"):
        file = ipc.open_file(buffer)
        schema, batches = file.schema, (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        stream = ipc.open_stream(buffer)
        schema, batches = stream.schema, iter(stream)
    kept, size = [], 0
    for batch in batches:
        size += batch.nbytes
        require_unpacked(size, len(payload), origin)
        kept.append(batch)
    return arrow.Table.from_batches(kept, schema)


def _texts(values: list[Any]) -> list[str]:
    """Write values as texts; floats with all their digits, a missing value as nothing."""
    return ["" if value is None else _WORDS[value] if isinstance(value, bool) else str(value) for value in values]


_WORDS = {False: "false", True: "true"}


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
