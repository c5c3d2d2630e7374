"""Matrices of shares as heat maps: plain values for the template of the page."""

from __future__ import annotations

from typing import Any

from hatrack.report.runs import Runs
from hatrack.report.style import dark_cell
from hatrack.report.table import Table, means

__all__ = ["layer_matrices", "matrices", "reuse_matrices"]


def matrices(table: Table, runs: Runs) -> dict[str, Any]:
    """Return accuracy matrices as heat maps, means over seeds, with the loss of every task."""
    cells = means(table.rows, ("method", "after", "task"), "accuracy")
    shown = [value for (method, _, _), value in cells.items() if method != "random"] or list(cells.values())
    high = max(shown)
    low = max(0.0, min([*shown, high - 0.1]))  # a few points are no reason for all the colours
    tasks = range(1, runs.learned + 1)
    matrices = []
    for label in runs.labels:
        rows = [
            [_heat(cells[label, after, task], low, high) if task <= after else None for task in tasks]
            for after in tasks
        ]
        lost = [cells[label, task, task] - cells[label, runs.learned, task] for task in tasks]
        tones = [
            "" if task == runs.learned else "bad" if drop > 0.01 else "good" if drop <= 0 else ""
            for task, drop in zip(tasks, lost, strict=True)
        ]
        texts = [f"{100 * drop:.1f}".replace("-0.0", "0.0").replace("-", "−") for drop in lost]
        matrices.append(
            {
                "method": label,
                "rows": rows,
                "lost": [{"text": text, "tone": tone} for text, tone in zip(texts, tones, strict=True)],
            }
        )
    return {"matrices": matrices, "heat": {"low": f"{100 * low:.1f}", "high": f"{100 * high:.1f}"}}


def layer_matrices(table: Table) -> list[dict[str, Any]]:
    """Return layers in use as heat maps, means over seeds."""
    shares = means(table.rows, ("method", "layer", "after"), "used")
    layers: dict[str, dict[str, list[Any]]] = {}
    for (method, layer, _), share in sorted(shares.items(), key=lambda cell: int(cell[0][2])):
        layers.setdefault(method, {}).setdefault(layer, []).append(_heat(share, 0.0, 1.0, digits=0))
    return [
        {"method": method, "rows": [{"name": layer, "cells": cells} for layer, cells in of.items()]}
        for method, of in layers.items()
    ]


def reuse_matrices(table: Table, runs: Runs) -> list[dict[str, Any]]:
    """Return reuse between tasks as heat maps."""
    shares = {(row["method"], row["of"], row["by"]): row["share"] for row in table.rows}
    tasks = range(1, runs.learned + 1)
    return [
        {
            "method": label,
            "rows": [
                {"name": str(i), "cells": [_heat(shares[label, i, j], 0.0, 1.0, digits=0) for j in tasks]}
                for i in tasks
            ],
        }
        for label in runs.labels
        if (label, 1, 1) in shares
    ]


def _heat(value: float, low: float, high: float, *, digits: int = 1) -> dict[str, Any]:
    v = (value - low) / (high - low) if high > low else 1.0
    v = min(1.0, max(0.0, v))
    inks = [name for name, theme in (("on-light", "light"), ("on-dark", "dark")) if dark_cell(v, theme)]
    return {"text": f"{100 * value:.{digits}f}", "v": round(v, 3), "ink": " ".join(inks)}
