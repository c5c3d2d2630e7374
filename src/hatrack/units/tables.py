"""Tables of text that stay readable for deep networks: long names are shortened, repeated blocks fold into one row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["counted", "folded", "listed", "share", "shortened", "table"]

LONGEST = 40
"""Largest length of a name of several parts that is printed as it is."""

_NUMBER = re.compile(r"(?<![^\W\d])\d+(?![^\W\d])")
"""Number that is a part of a name, such as 0 in ``layers.0.norm1``, and not the 1."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural if need be."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def share(part: int, whole: int) -> str:
    """Return a share in percent."""
    percent = 100 * part / max(whole, 1)
    return "0 %" if not part else "<0.1 %" if percent < 0.1 else f"{percent:.1f} %".replace(".0 %", " %")


def shortened(name: str) -> str:
    """Shorten a name of several parts joined by ``+``: ``embeddings + 12 more``."""
    parts = name.split("+")
    return name if len(parts) == 1 or len(name) <= LONGEST else f"{parts[0]} + {len(parts) - 1} more"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Join names by commas, with the number of those that are too many."""
    shown = names if len(names) <= most else names[: most - 1]
    more = [f"{len(names) - len(shown)} more"] if len(shown) < len(names) else []
    return ", ".join([*shown, *more])


def folded(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Fold rows that differ only in numbers within names, as those of repeated blocks do, into one.

    Args:
        rows: cells of text.

    Returns:
        A row for each kind, in the order of their first ones. The first cell begins with the number of rows it stands
        for, if there are several, and numbers that differ become ranges: ``12 × layers.0–11.norm``.
    """
    kinds: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for row in rows:
        kinds.setdefault(tuple(_NUMBER.sub("#", cell) if _is_named(cell) else cell for cell in row), []).append(row)
    result = []
    for alike in kinds.values():
        if len(set(alike)) < 2:
            result.extend(alike)
            continue
        first, *others = (_ranges(cells) for cells in zip(*alike, strict=True))
        result.append((f"{len(alike)} × {first}", *others))
    return result


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table, indented by two spaces."""
    every = [head, *rows]
    widths = [max(len(row[i]) for row in every) for i in range(len(head))]
    return [
        ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip() for row in every
    ]


def _is_named(cell: str) -> bool:
    """Return whether a cell has names, and not sizes alone."""
    return bool(re.search(r"[^\W\d]", cell.replace("outputs", "").replace("of", "")))


def _ranges(cells: Sequence[str]) -> str:
    """Return what cells have in common, with the range of each number that differs."""
    numbers = [[int(number) for number in _NUMBER.findall(cell)] for cell in cells]
    if len(set(cells)) == 1:
        return cells[0]
    places = iter(zip(*numbers, strict=True))

    def ranged(_: re.Match[str]) -> str:
        values = sorted(set(next(places)))
        first, last = values[0], values[-1]
        if len(values) == last - first + 1:
            return str(first) if first == last else f"{first}–{last}"
        return "/".join(map(str, values)) if len(values) < 4 else f"{first}…{last}"

    return _NUMBER.sub(ranged, cells[0])
