"""Tables: rows with plain values, columns that say how people read them."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hatrack.experiments.statistics import spread
from hatrack.objectives import Metric

__all__ = [
    "AFTER",
    "METHOD",
    "SEED",
    "Drawing",
    "Kind",
    "Row",
    "Table",
    "TableColumn",
    "capitalized",
    "joined",
    "kinds_of",
    "mean_and_sd",
    "means",
]

Row = Mapping[str, Any]
"""A row of a table: numbers (shares in [0, 1], not percent), texts, or None where a figure is not known."""


class Kind(enum.Enum):
    """Way in which a column is shown to people; files get the plain numbers."""

    TEXT = "text"
    NUMBER = "number"
    PERCENT = "percent"
    POINTS = "points"
    RATIO = "ratio"
    SCORE = "score"
    SECONDS = "seconds"

    def column(self, key: str, title: str = "", meaning: str = "") -> TableColumn:
        """Return a column of this kind; without a title, its key is its title."""
        return TableColumn(key, title or key, self, meaning)


@dataclass(frozen=True)
class TableColumn:
    """A column; where rows have a value called ``key`` and ``_sd``, that is the standard deviation.

    Attributes:
        key: its key in the rows.
        title: title for people.
        kind: way in which its values are shown.
        help: its meaning, in one sentence.
    """

    key: str
    title: str
    kind: Kind
    help: str = ""

    @property
    def unit(self) -> str:
        """Unit of the values as they are shown; empty where there is none."""
        return {Kind.PERCENT: "%", Kind.POINTS: "points", Kind.SECONDS: "seconds"}.get(self.kind, "")


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: name in file names.
        title: title for people.
        columns: the columns in their order.
        rows: the rows in their order.
        note: what has to be known to read it, in a sentence without its end; empty where nothing has.
    """

    name: str
    title: str
    columns: tuple[TableColumn, ...]
    rows: tuple[Row, ...]
    note: str = ""

    def noted(self, *sentences: str) -> Table:
        """Return the table with further sentences, without their ends, in its note; empty ones are left out."""
        return replace(self, note=joined(self.note, *sentences))


@dataclass(frozen=True)
class Drawing:
    """A figure that was drawn.

    Attributes:
        chart: an altair chart.
        title: the text above it.
        table: the data behind it.
        note: what has to be known to read it, in a sentence without its end; empty where nothing has.
    """

    chart: Any
    title: str
    table: Table
    note: str = ""

    def noted(self, *sentences: str) -> Drawing:
        """Return the drawing with further sentences, as for :meth:`Table.noted`."""
        return replace(self, note=joined(self.note, *sentences))


def joined(*sentences: str) -> str:
    """Join sentences without their ends to the text of a note; each once, and empty ones are left out.

    Args:
        sentences: at least one; the first stays as it is, and those behind it begin with a capital.
    """
    first, *others = sentences
    parts = [first, *(capitalized(each) for each in others if each)]
    return ". ".join(dict.fromkeys(filter(None, parts)))


def kinds_of(metric: Metric | None) -> tuple[Kind, Kind]:
    """Return the kinds of columns of a metric, and of its differences; shares where there is none."""
    return (Kind.PERCENT, Kind.POINTS) if metric is None or metric.is_share else (Kind.SCORE, Kind.SCORE)


def capitalized(name: str) -> str:
    """Return a name as it begins a heading; one with capitals of its own, such as mAP, stays as it is."""
    return name[:1].upper() + name[1:] if name.split()[0].islower() else name


METHOD = Kind.TEXT.column("method")
SEED = Kind.NUMBER.column("seed")
AFTER = Kind.NUMBER.column("after", "after task")


def means(rows: Iterable[Row], keys: Sequence[str], value: str) -> dict[tuple[Any, ...], float]:
    """Return the mean of a value over all rows that agree in some keys, by these, in the order of the rows."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row[value])
    return {key: sum(of) / len(of) for key, of in groups.items()}


def mean_and_sd(key: str, values: Iterable[float | None]) -> dict[str, float | None]:
    """Return mean and standard deviation, as ``key`` and ``key_sd`` of a row; None if any value is missing."""
    known = [*values]
    if not known or any(value is None for value in known):
        return {key: None, f"{key}_sd": None}
    both = spread([value for value in known if value is not None])
    return {key: both.mean, f"{key}_sd": both.sd}
