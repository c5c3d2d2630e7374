"""Reading tables: CSV files with a line of column names."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hatrack.errors import DataError, InputError
from hatrack.names import unknown_name
from hatrack.streams.own.labels import refuse_missing
from hatrack.streams.own.samples import Samples

__all__ = ["Table", "read_table"]

EXACT = 1 << 53
"""Up to where float64 holds every whole number."""


@dataclass(frozen=True)
class Table:
    """What the columns of a table mean.

    Attributes:
        label: Name of the column that holds the class.
        drop: Names of columns to leave out, such as a number of the row; all others are features.
        delimiter: What stands between two cells.
    """

    label: str
    drop: tuple[str, ...] = ()
    delimiter: str = ","

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1:
            raise InputError(f"delimiter must be a single character, not {self.delimiter!r}")
        if self.label in self.drop:
            raise InputError(f"the label column {self.label!r} cannot be dropped")


def read_table(path: Path, table: Table, features: Sequence[str] | None = None) -> tuple[Samples, tuple[str, ...]]:
    """Read a table of numbers.

    Args:
        path: The file, UTF-8.
        table: What its columns mean.
        features: The features of another table of the same task, which this one must have too.

    Returns:
        The samples, float64 ``(N, F)``, and the names of their features in the order of the first table.

    Raises:
        DataError: A cell is missing or not a finite number, or the table has no row or feature; line and column are
            named.
        InputError: There is no column of that name.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _read(csv.reader(file, delimiter=table.delimiter, strict=True), path, table, features)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from error


def _read(
    reader: csv._reader,  # type: ignore[name-defined]
    path: Path,
    table: Table,
    features: Sequence[str] | None,
) -> tuple[Samples, tuple[str, ...]]:
    header = [name.strip() for name in next(reader, [])]
    for name in header:
        if header.count(name) > 1:
            raise DataError(f"{path} line 1: two columns are named {name!r}; rename one")
    for name in (table.label, *table.drop):
        if name not in header:
            raise unknown_name(f"column in {path}", name, header)
    if features is None:
        features = tuple(name for name in header if name != table.label and name not in table.drop)
    for name in features:
        if name not in header:
            raise DataError(f"{path} line 1: has no column {name!r}, which the training table has")
    columns = [header.index(name) for name in features]
    label = header.index(table.label)
    values: list[list[float]] = []
    labels: list[str] = []
    lines: list[int] = []
    large: dict[tuple[int, float], int] = {}
    for row in reader:
        if not row:
            continue  # an empty line
        if len(row) != len(header):
            raise DataError(f"{path} line {reader.line_num}: has {len(row)} cells instead of {len(header)}")
        where = f"{path} line {reader.line_num}"
        values.append([_number(row[column], where, header[column]) for column in columns])
        for column, number in zip(columns, values[-1], strict=True):
            if abs(number) >= EXACT and row[column].strip().lstrip("+-").isdigit():
                whole = int(row[column])
                if large.setdefault((column, number), whole) != whole:
                    raise DataError(
                        f"{where}, column {header[column]!r}: {whole} and {large[column, number]} above are the same "
                        "in 64 bits; subtract what all of the column have in common, or drop it"
                    )
        labels.append(row[label].strip())
        lines.append(reader.line_num)
    refuse_missing(labels, lambda row: f"{path} line {lines[row]}, column {table.label!r}")
    if not values or not columns:
        raise DataError(f"{path}: holds no {'feature beside the label' if values else 'line below the column names'}")
    return Samples(torch.tensor(values, dtype=torch.float64), tuple(labels), str(path)), tuple(features)


def _number(cell: str, where: str, column: str) -> float:
    """The number in a cell, in ASCII digits and a decimal point."""
    text = cell.strip()
    try:
        # Python would take 1_000 and digits of other scripts for numbers, too.
        number = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        number = math.nan
    # What float32 cannot hold is as bad as what is no number.
    if not abs(number) <= torch.finfo(torch.float32).max:
        said = f"{cell!r} is not a finite number" if text else "the value is missing"
        raise DataError(f"{where}, column {column!r}: {said}; fix the cell, remove the line or drop the column")
    return number
