"""Reading tables: which columns are features and targets, and what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hatrack.errors import InputError, UnfitDataError
from hatrack.streams.own.cells import CellFormat, TableFile, has_no_name, open_table
from hatrack.streams.own.columns import (
    Column,
    ColumnKind,
    ColumnReader,
    as_categories,
    dropping,
    quoted,
    recoded,
    unknown_categories,
)
from hatrack.streams.own.samples import OwnSamples
from hatrack.streams.own.targets import UNSAID, TargetChoice, targets_of_texts
from hatrack.support.names import listed, unknown_name

__all__ = ["Rows", "TableFormat", "read_rows", "read_table"]

SHOWN = 5
"""Number of categories of a column that a note names."""


@dataclass(frozen=True)
class TableFormat:
    """Meaning of the columns of a table, and the way in which its cells are written.

    Attributes:
        label: name of the column that holds the class, or another target; or names of several.
        drop: names of columns to leave out, such as a number of the row; all others are features.
        cells: way in which the cells are written.

    Raises:
        InputError: a name stands where it cannot.
    """

    label: str | tuple[str, ...]
    drop: tuple[str, ...] = ()
    cells: CellFormat = field(default_factory=CellFormat)

    def __post_init__(self) -> None:
        if not self.columns:
            raise InputError("label names no column")
        for name in self.columns:
            if name in self.drop:
                raise InputError(f"the label column {name!r} cannot be dropped")
            if self.columns.count(name) > 1:
                raise InputError(f"the label column {name!r} is named twice")
        for name in self.cells.categories or ():
            if name in self.columns or name in self.drop:
                raise InputError(
                    f"categories are columns of features, and {name!r} is none; leave it out of categories"
                )

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that hold targets."""
        return (self.label,) if isinstance(self.label, str) else self.label


class Rows(NamedTuple):
    """Features of the rows of a table of which no targets are asked.

    Attributes:
        x: the rows in the columns of training, float64 ``(N, columns)``, as
            :class:`hatrack.streams.own.columns.TableRows` takes them.
        places: names of the rows, N of them.
        notes: what was found in the table and is not used, for people.
    """

    x: torch.Tensor
    places: tuple[str, ...]
    notes: tuple[str, ...]


def read_table(
    path: Path, table: TableFormat, features: Sequence[Column] | None = None, choice: TargetChoice | None = None
) -> OwnSamples:
    """Read a table: numbers, truth values and categories.

    A first column without a name that counts the rows, as pandas writes it, is left out; a note says so.

    Args:
        path: the file: lines of cells, plain or packed by gzip, or Parquet, Arrow or Feather.
        table: meaning of its columns.
        features: the features of another table of the same task, which this one must have too; None for all columns
            that are neither targets nor dropped.
        choice: what is said about the targets; None for nothing.

    Raises:
        UnfitDataError: a cell is missing or not what the others of its column are, or the table has no row or feature;
            its place is named.
        DataError: the file is damaged.
        InputError: there is no column of that name.
    """
    source = open_table(path, table.cells)
    for name in (*table.columns, *table.drop, *(() if features else table.cells.categories or ())):
        if name not in source.names:
            raise source.other_form(table.columns[0]) or _no_column(source, name)
    others = tuple(name for name in source.names if name not in table.columns and name not in table.drop)
    counter = _row_numbers(source, others) if features is None else None
    left_out = [] if counter is None else [counter.name]
    readers = (
        _readers([name for name in others if name not in left_out], source, table.cells)
        if features is None
        else _known_readers(features, source, table.cells)
    )
    names = [reader.name for reader in readers]
    labels: list[list[str]] = [[] for _ in table.columns]
    places: list[str] = []
    for where, cells in source.rows([*names, *table.columns, *left_out]):
        for name, text, column in zip(table.columns, cells[len(names) :], labels, strict=False):
            column.append(text.strip())
            if "\n" in column[-1] or "\r" in column[-1]:
                raise UnfitDataError(
                    f"{where}, column {name!r}: the label has several lines; is there a quotation mark too many?"
                )
        if counter is not None:
            counter.add(cells[-1].strip(), where)
        for reader, cell in zip(readers, cells, strict=False):
            reader.add(cell, where)
        places.append(where)
    if not places or not readers:
        missing = "feature beside the label" if places else "line below the column names"
        raise UnfitDataError(f"{path}: holds no {missing}")
    targets = targets_of_texts(
        table.columns, labels, choice or UNSAID, lambda row, name: f"{places[row]}, column {name!r}", table.cells.mark
    )
    finished = [reader.finish() for reader in readers]
    columns = tuple(column for column, _ in finished)
    x = torch.from_numpy(np.stack([values for _, values in finished], axis=1))
    if features is None:
        notes = [] if counter is None else [counter.note]
        notes += _notes(readers, columns, table, len(places))
    else:
        used = frozenset(names)
        unused = [name for name in others if name not in used and not has_no_name(name)]
        notes = [f"{path}: {_listed(unused)} not in the training table, and not used"] if unused else []
    lines = tuple(place.removeprefix(f"{source.path} ") for place in places)
    return OwnSamples(x, targets, str(path), lines, columns=columns, notes=tuple(notes))


def read_rows(path: Path, columns: Sequence[Column], form: CellFormat) -> Rows:
    """Read the features of a table of which no targets are asked, such as one to predict.

    Args:
        path: the file.
        columns: the columns that a network was trained on; others are not read.
        form: way in which the cells are written.

    Raises:
        UnfitDataError: a column or a row is missing, or a cell is not what those of training are; its place is named.
        DataError: the file is damaged.
    """
    source = open_table(path, form)
    readers = _known_readers(columns, source, form)
    places = []
    for where, cells in source.rows([reader.name for reader in readers]):
        for reader, cell in zip(readers, cells, strict=True):
            reader.add(cell, where)
        places.append(where)
    if not places:
        raise UnfitDataError(f"{path}: holds no line below the column names")
    parts, notes = [], []
    for known, reader in zip(columns, readers, strict=True):
        found, values = reader.finish()
        parts.append(recoded(values, found, known))
        notes += unknown_categories(parts[-1], values, found, str(path))
    return Rows(torch.from_numpy(np.stack(parts, axis=1)), tuple(places), tuple(notes))


class _RowNumbers:
    """Column without a name that should count the rows from 0 or from 1.

    Attributes:
        name: its name in the file.
        note: what becomes of it, for people.
    """

    def __init__(self, name: str, source: TableFile) -> None:
        self.name = name
        self._column = f"{source.path}: column {source.names.index(name) + 1}"
        self._next: int | None = None
        self.note = f"{self._column} has no name and counts the rows; it is left out"

    def add(self, text: str, where: str) -> None:
        """Read the number of the next row.

        Raises:
            UnfitDataError: it is another one.
        """
        if self._next is None and text in ("0", "1"):
            self._next = int(text)
        if text != str(self._next):
            raise UnfitDataError(
                f"{self._column} has no name, as where pandas writes row numbers, and does not count the rows "
                f"({where}: {text!r}); {_leaving_out(self.name)}"
            )
        self._next = int(text) + 1


def _row_numbers(source: TableFile, others: Sequence[str]) -> _RowNumbers | None:
    """Return the column that may hold row numbers: the first one if it has no name, or the one that pandas keeps."""
    unnamed = [name for name in others if has_no_name(name)]
    found = next((name for name in unnamed if name.startswith("__index") or name == source.names[0]), None)
    for name in unnamed:
        if name != found:
            column = source.names.index(name) + 1
            raise UnfitDataError(f"{source.path}: column {column} has no name; {_leaving_out(name)}")
    return None if found is None else _RowNumbers(found, source)


def _leaving_out(name: str) -> str:
    return f"leave it out by drop = [{quoted(name)}] ({dropping(name)}), or name it if it is a feature"


def _readers(names: Sequence[str], source: TableFile, form: CellFormat) -> list[ColumnReader]:
    """Return readers of columns of which nothing is known but what ``form`` says."""
    said = dict.fromkeys(form.categories or (), ColumnKind.CATEGORIES)
    return [
        ColumnReader(name, form.mark, said.get(name), typed=source.is_text(name), source=str(source.path))
        for name in names
    ]


def _known_readers(columns: Sequence[Column], source: TableFile, form: CellFormat) -> list[ColumnReader]:
    """Return readers of columns that have the kinds of those of training."""
    there = frozenset(source.names)
    for column in columns:
        if column.name not in there:
            raise source.other_form(column.name) or UnfitDataError(
                f"{source.path}: has no column {column.name!r}, which the training table has"
            )
    return [ColumnReader(column.name, form.mark, column.kind, source=str(source.path)) for column in columns]


def _notes(readers: Sequence[ColumnReader], columns: Sequence[Column], table: TableFormat, rows: int) -> list[str]:
    """Say what a person would want to know of the columns that were read."""
    said = table.cells.categories or ()
    words = [column for column in columns if column.kind is ColumnKind.CATEGORIES and column.name not in said]
    notes = []
    if len(words) > SHOWN:
        each = ", ".join(f"{column.name!r} ({len(column.categories)})" for column in words)
        notes.append(f"{len(words)} columns hold categories, a feature each: {each}")
    for column in words if len(words) <= SHOWN else ():
        shown = listed(column.categories)
        notes.append(f"column {column.name!r} holds {len(column.categories)} categories ({shown}), a feature each")
    for reader, column in zip(readers, columns, strict=True):
        if column.kind is ColumnKind.NUMBERS and reader.counts and rows > 2:
            remedy = f"if it is no feature, leave it out ({dropping(column.name)})"
            notes.append(f"column {column.name!r} counts the rows; {remedy}")
        elif column.kind is ColumnKind.NUMBERS and reader.code is not None:
            notes.append(
                f"column {column.name!r} was read as numbers, {reader.code} as {float(reader.code):g}; if these are "
                f"codes or names, say {as_categories(column.name)}, or leave it out ({dropping(column.name)})"
            )
        elif column.kind is ColumnKind.NUMBERS and reader.are_days and rows > 2:
            notes.append(
                f"column {column.name!r} was read as numbers that look like days (year, month, day), of which the "
                f"distance means little; write days since one, say {as_categories(column.name)} if they are names, or "
                f"leave it out ({dropping(column.name)})"
            )
    return notes


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names))
    return f"column {shown} is" if len(names) == 1 else f"columns {shown} are"


def _no_column(source: TableFile, name: str) -> InputError:
    return unknown_name(f"column in {source.path}", name, [" ".join(each.split()) for each in source.names])
