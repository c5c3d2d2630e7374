"""Kinds of files that hold tables, told by their names."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

__all__ = ["TABLE_SUFFIXES", "TableKind", "bare_name", "table_kind"]

PACKED = ".gz"


class TableKind(Enum):
    """Kind of file that holds a table."""

    CSV = "csv"
    """Lines of cells with commas between them."""

    TSV = "tsv"
    """Lines of cells with tabs between them."""

    PARQUET = "parquet"
    """Apache Parquet: typed columns."""

    ARROW = "arrow"
    """Arrow IPC, file or stream, and Feather: typed columns."""

    @property
    def is_text(self) -> bool:
        """Return whether its cells are texts, so that the file may be packed by gzip."""
        return self in (TableKind.CSV, TableKind.TSV)


_ENDINGS = {
    ".csv": TableKind.CSV,
    ".tsv": TableKind.TSV,
    ".tab": TableKind.TSV,
    ".parquet": TableKind.PARQUET,
    ".arrow": TableKind.ARROW,
    ".feather": TableKind.ARROW,
}

TABLE_SUFFIXES = (*_ENDINGS, *(ending + PACKED for ending, kind in _ENDINGS.items() if kind.is_text))
"""Ends of the names of files that are read as tables, in small letters."""


def table_kind(path: Path) -> TableKind | None:
    """Return which kind of table a file is by its name; None if it is none.

    Args:
        path: the file; capital letters in its name do not matter.
    """
    name = path.name.lower()
    if not name.endswith(TABLE_SUFFIXES):
        return None
    return _ENDINGS[Path(name.removesuffix(PACKED)).suffix]


def bare_name(path: Path) -> str:
    """Return the name of a file without the endings that say what it is: ``homes`` of ``homes.csv.gz``."""
    return Path(path.stem).stem if path.suffix.lower() == PACKED and table_kind(path) is not None else path.stem
