"""Reading tables: CSV files with a line of column names."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hatrack.data.files import read_payload
from hatrack.errors import DataError, InputError, UnfitDataError
from hatrack.streams.own.samples import OwnSamples
from hatrack.streams.own.targets import UNSAID, TargetChoice, targets_of_texts
from hatrack.support.names import unknown_name

__all__ = ["CsvFormat", "read_table"]

DELIMITERS = (",", ";", "\t", "|")
COMMA = re.compile(r"[-+]?\d+,\d+")
UNNAMED = re.compile(r"Unnamed: \d+")
"""Name that pandas gives to a column without one."""
EXACT = 1 << 53
"""Largest number up to which float64 holds every whole number."""


@dataclass(frozen=True)
class CsvFormat:
    """Meaning of the columns of a table.

    Attributes:
        label: name of the column that holds the class, or another target; or names of several.
        drop: names of columns to leave out, such as a number of the row; all others are features.
        delimiter: the character between two cells.
    """

    label: str | tuple[str, ...]
    drop: tuple[str, ...] = ()
    delimiter: str = ","

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1:
            raise InputError(f"delimiter must be a single character, not {self.delimiter!r}")
        if not self.columns:
            raise InputError("label names no column")
        for name in self.columns:
            if name in self.drop:
                raise InputError(f"the label column {name!r} cannot be dropped")
            if self.columns.count(name) > 1:
                raise InputError(f"the label column {name!r} is named twice")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that hold targets."""
        return (self.label,) if isinstance(self.label, str) else self.label


def read_table(
    path: Path, table: CsvFormat, features: Sequence[str] | None = None, choice: TargetChoice | None = None
) -> tuple[OwnSamples, tuple[str, ...]]:
    """Read a table of numbers.

    Args:
        path: the file, UTF-8.
        table: meaning of its columns.
        features: the features of another table of the same task, which this one must have too.
        choice: what is said about the targets; None for nothing.

    Returns:
        The samples, float64 ``(N, F)``, and the names of their features in the order of the first table.

    Raises:
        DataError: a cell is missing or not a finite number, or the table has no row or feature; line and column are
            named.
        InputError: there is no column of that name.
    """
    rows = _rows(_text(path), path, table)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    _refuse_swallowed(header, table.delimiter, f"{path} line 1")
    features = _features(header, path, table, features)
    columns = [header.index(name) for name in features]
    targets = [header.index(name) for name in table.columns]
    values: list[list[float]] = []
    labels: list[list[str]] = [[] for _ in targets]
    lines: list[int] = []
    large: dict[tuple[int, float], int] = {}
    for line, row in rows:
        where = f"{path} line {line}"
        if len(row) != len(header):
            raise DataError(f"{where}: has {len(row)} cells instead of {len(header)}")
        _refuse_swallowed(row, table.delimiter, where)
        for name, column in zip(table.columns, targets, strict=True):
            if _broken(row[column].strip()):
                raise DataError(
                    f"{where}, column {name!r}: the label has several lines; is there a quotation mark too many?"
                )
        values.append([_number(row[column], where, header[column]) for column in columns])
        for column, number in zip(columns, values[-1], strict=True):
            if abs(number) >= EXACT and row[column].strip().lstrip("+-").isdigit():
                whole = int(row[column])
                if large.setdefault((column, number), whole) != whole:
                    raise UnfitDataError(
                        f"{where}, column {header[column]!r}: {whole} and {large[column, number]} above are the same "
                        f"in 64 bits; subtract what all of the column have in common, or drop it "
                        f"({_dropping(header[column])})"
                    )
        for cells, column in zip(labels, targets, strict=True):
            cells.append(row[column].strip())
        lines.append(line)
    found = targets_of_texts(
        table.columns, labels, choice or UNSAID, lambda row, name: f"{path} line {lines[row]}, column {name!r}"
    )
    if not values or not columns:
        raise DataError(f"{path}: holds no {'feature beside the label' if values else 'line below the column names'}")
    return OwnSamples(torch.tensor(values, dtype=torch.float64), found, str(path)), features


def _text(path: Path) -> str:
    content = read_payload(path)
    try:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:2]:
            raise DataError(f"{path}: is UTF-16; save it as UTF-8 (in a spreadsheet: as CSV UTF-8)")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} line {line}: is not UTF-8 (byte {content[error.start]:#04x}), perhaps Latin-1 or Windows-1252; "
            "save it as UTF-8 (in a spreadsheet: as CSV UTF-8)"
        ) from error


def _rows(text: str, path: Path, table: CsvFormat) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, each with the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=table.delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path} line {line}: cannot be read as a row of a table ({error}); look for a quotation mark too many"
            ) from error
        if row:
            yield line, row


def _features(header: list[str], path: Path, table: CsvFormat, given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the features, after checking the line of column names."""
    if not header:
        raise DataError(f"{path}: is empty; a table begins with a line of column names")
    for name in header:
        if header.count(name) > 1:
            raise DataError(f"{path} line 1: two columns are named {name!r}; rename one")
    for name in (*table.columns, *table.drop):
        if name not in header:
            raise _other_delimiter(header, path, table) or unknown_name(
                f"column in {path}", name, [" ".join(each.split()) for each in header]
            )
    features = tuple(given or (name for name in header if name not in table.columns and name not in table.drop))
    for name in features:
        if name not in header:
            raise DataError(f"{path} line 1: has no column {name!r}, which the training table has")
        if not name or UNNAMED.fullmatch(name):
            raise UnfitDataError(
                f"{path} line 1: column {header.index(name) + 1} has no name, as where pandas writes row numbers; "
                f"leave it out by drop = [{json.dumps(name)}] ({_dropping(name)}), or name it if it is a feature"
            )
    return features


def _other_delimiter(header: list[str], path: Path, table: CsvFormat) -> InputError | None:
    """Return the error for a table whose cells are divided by another character than the given one, or None."""
    names = table.delimiter.join(header)
    for other in DELIMITERS:
        if other != table.delimiter and table.columns[0] in [name.strip(' "') for name in names.split(other)]:
            said = f"is divided by {json.dumps(other)}, not by {json.dumps(table.delimiter)}"
            setting = "tab" if other == "\t" else f"'{other}'"
            return InputError(f"{path} line 1: {said}; say delimiter = {json.dumps(other)} (`delimiter={setting}`)")
    return None


def _broken(cell: str) -> bool:
    return "\n" in cell or "\r" in cell


def _refuse_swallowed(row: Sequence[str], delimiter: str, where: str) -> None:
    """Refuse a cell of several lines that looks like the end of a row, whole rows, and the beginning of one."""
    for column, cell in enumerate(row):
        if _broken(cell):
            cells = [line.count(delimiter) + 1 for line in cell.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
            ends = len(row) > 1 and (cells[0], cells[-1]) == (len(row) - column, column + 1)
            if ends or len(row) in cells[1:-1]:
                raise DataError(
                    f"{where}: a quotation mark in cell {column + 1} makes one cell of {len(cells)} lines that look "
                    "like rows; remove it, or the line breaks in the cell"
                )


def _number(cell: str, where: str, column: str) -> float:
    """Return the number in a cell, in ASCII digits and a decimal point."""
    text = cell.strip()
    try:
        # Python would take 1_000 and digits of other scripts for numbers, too.
        number = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        number = math.nan
    # What float32 cannot hold is as bad as what is no number.
    if not abs(number) <= torch.finfo(torch.float32).max:
        said = f"{cell!r} is not a finite number" if text else "the value is missing"
        said += " (decimals need a point)" if COMMA.fullmatch(text) else ""
        raise UnfitDataError(
            f"{where}, column {column!r}: {said}; fix the cell, remove the line or drop the column "
            f"({_dropping(column)})"
        )
    return number


def _dropping(column: str) -> str:
    """Return the setting that leaves a column out, for a message."""
    name = json.dumps(column, ensure_ascii=False) if not re.fullmatch(r"\w+", column) else column
    return f"`drop={name}`" if name == column else f"`drop='{name}'`"
