"""Tables as text: for people, for papers, and for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from hatrack.objectives.metrics import evenly, readable
from hatrack.report.table import Kind, Row, Table, TableColumn, capitalized

__all__ = ["WRITERS", "display", "mean_and_deviation", "number", "to_csv", "to_json", "to_latex", "to_markdown"]

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "ρ": r"$\rho$",
        "≤": r"$\leq$",
        "−": "$-$",
        "±": r"$\pm$",
    }
)


def display(row: Row, column: TableColumn) -> str:
    """Return a value as people read it, its standard deviation in brackets where there is one; a dash if not known."""
    value, spread = row.get(column.key), row.get(f"{column.key}_sd")
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if spread is None:
        return number(value, column.kind)
    return "{} ({})".format(*mean_and_deviation(value, spread, column.kind))


def to_csv(table: Table) -> str:
    """Write comma-separated values: plain numbers (shares, not percent), every key of the rows a column."""
    text = io.StringIO()
    keys = _keys(table)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(keys)
    writer.writerows([row.get(key) for key in keys] for row in table.rows)
    return text.getvalue()


def to_json(table: Table) -> str:
    """Write a JSON list of objects, plain numbers."""
    return json.dumps([dict(row) for row in table.rows], indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(table: Table) -> str:
    """Write a table for a readme, its note below."""
    lines = [[column.title for column in table.columns]]
    lines.append(["---" if column.kind is Kind.TEXT else "---:" for column in table.columns])
    lines += [[display(row, column) for column in table.columns] for row in table.rows]
    text = "".join("| " + " | ".join(_markdown(cell) for cell in line) + " |\n" for line in lines)
    return f"{text}\n{_markdown(_sentence(table.note))}\n" if table.note else text


def to_latex(table: Table) -> str:
    """Write a ``tabular`` with the rules of booktabs, its note below as a comment."""
    layout = "".join("l" if column.kind is Kind.TEXT else "r" for column in table.columns)

    def line(cells: list[str]) -> str:
        return " & ".join(cell.translate(_LATEX) for cell in cells) + r" \\"

    return "\n".join(
        [
            rf"\begin{{tabular}}{{{layout}}}",
            r"\toprule",
            line([column.title for column in table.columns]),
            r"\midrule",
            *(line([display(row, column) for column in table.columns]) for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            *([f"% {_sentence(table.note)}"] if table.note else []),
            "",
        ]
    )


def number(value: Any, kind: Kind) -> str:
    """Return a number as people read it: shares in percent, with a true minus."""
    match kind:
        case Kind.PERCENT | Kind.POINTS:
            text = f"{100 * value:.2f}"
        case Kind.RATIO:
            text = f"{value:.2f}"
        case Kind.SCORE:
            text = readable(value)
        case Kind.SECONDS:
            text = f"{value:.1f}" if value < 100 else f"{value:.0f}"
        case _:
            return f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def mean_and_deviation(value: float, spread: float, kind: Kind) -> tuple[str, str]:
    """Return a mean and its standard deviation as people read them, with equally many decimals."""
    if kind is not Kind.SCORE:
        return number(value, kind), number(spread, kind)
    said, deviation = evenly(value, spread)
    return said.replace("-", "−"), deviation


def _keys(table: Table) -> list[str]:
    keys = [column.key for column in table.columns]
    keys += [key for row in table.rows for key in row if key not in keys]
    return list(dict.fromkeys(keys))


def _sentence(note: str) -> str:
    return f"{capitalized(note)}."


def _markdown(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


WRITERS: Mapping[str, Callable[[Table], str]] = MappingProxyType(
    {"csv": to_csv, "json": to_json, "markdown": to_markdown, "latex": to_latex}
)
"""Every way to write a table, by name."""
