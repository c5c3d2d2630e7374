"""Small tables for notebooks: HTML without styles, in the notebook's own colours, with every text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["html_table"]

MOST_ROWS = 60
"""Largest number of rows that are shown; of more, the rest is counted."""


def html_table(
    title: str, head: Sequence[str], rows: Iterable[Sequence[object]], notes: Iterable[str] = (), most: int = MOST_ROWS
) -> str:
    """Return a table as a notebook shows it, by ``_repr_html_``.

    Args:
        title: line above the table.
        head: titles of the columns.
        rows: cells of each row, as many as titles; None is a dash, all else is written as text.
        notes: sentences below the table.
        most: largest number of rows that are shown.
    """
    every = [*rows]
    shown, left = every[:most], len(every) - most
    below = [*([f"and {left:,} more rows"] if left > 0 else []), *notes]
    lines = [f"<p><strong>{escape(title)}</strong></p>"]
    if every:
        lines += ["<table>", f"<thead>{_row(head, 'th')}</thead>", "<tbody>"]
        lines += [_row(row, "td") for row in shown]
        lines += ["</tbody>", "</table>"]
    lines += [f"<p>{escape(note)}</p>" for note in below]
    return "\n".join(["<div>", *lines, "</div>"])


def _row(cells: Sequence[object], tag: str) -> str:
    texts = ("–" if cell is None else escape(str(cell)) for cell in cells)
    return f"<tr>{''.join(f'<{tag}>{text}</{tag}>' for text in texts)}</tr>"
