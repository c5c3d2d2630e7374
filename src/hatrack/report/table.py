"""What a table is: rows with plain values, columns that say how people read them."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hatrack.statistics import spread

__all__ = ["AFTER", "METHOD", "SEED", "Column", "Kind", "Row", "Table", "mean_and_sd"]

Row = Mapping[str, Any]
"""A row of a table: numbers (shares in [0, 1], not percent), texts, or None where a figure is not known."""


class Kind(enum.Enum):
    """How a column is shown to people; files get the plain numbers."""

    TEXT = "text"
    NUMBER = "number"
    PERCENT = "percent"
    POINTS = "points"
    RATIO = "ratio"
    SECONDS = "seconds"


@dataclass(frozen=True)
class Column:
    """A column; where rows have a value called ``key`` and ``_sd``, that is the standard deviation.

    Attributes:
        key: in the rows.
        title: what people read.
        kind: how its values are shown.
        help: what it means, in one sentence.
    """

    key: str
    title: str
    kind: Kind = Kind.TEXT
    help: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: for file names.
        title: what people read.
        columns: in their order.
        rows: in theirs.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


METHOD = Column("method", "method")
SEED = Column("seed", "seed", Kind.NUMBER)
AFTER = Column("after", "after task", Kind.NUMBER)


def mean_and_sd(key: str, values: Iterable[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation, as the values ``key`` and ``key_sd`` of a row; None if any value is missing."""
    known = [*values]
    if not known or any(value is None for value in known):
        return {key: None, f"{key}_sd": None}
    both = spread([value for value in known if value is not None])
    return {key: both.mean, f"{key}_sd": both.sd}
