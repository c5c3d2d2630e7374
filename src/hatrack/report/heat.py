"""Matrices of shares as heat maps: plain values for the template of the page."""

from __future__ import annotations

from typing import Any

from hatrack.report.runs import Runs
from hatrack.report.style import dark_cell
from hatrack.report.table import Table

__all__ = ["layer_matrices", "matrices", "reuse_matrices"]


def matrices(table: Table, runs: Runs) -> dict[str, Any]:
    """Accuracy matrices as heat maps, means over seeds, with what was lost of every task."""
    sums: dict[tuple[str, int, int], list[float]] = {}
    for row in table.rows:
        sums.setdefault((row["method"], row["after"], row["task"]), []).append(row["accuracy"])
    means = {key: sum(values) / len(values) for key, values in sums.items()}
    shown = [value for (method, _, _), value in means.items() if method != "random"] or list(means.values())
    high = max(shown)
    low = max(0.0, min([*shown, high - 0.1]))  # a few points are no reason for all the colours
    tasks = range(1, runs.learned + 1)
    matrices = []
    for label in runs.labels:
        rows = [
            [_heat(means[label, after, task], low, high) if task <= after else None for task in tasks]
            for after in tasks
        ]
        lost = [means[label, task, task] - means[label, runs.learned, task] for task in tasks]
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
    """Layers in use as heat maps, means over seeds."""
    sums: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in table.rows:
        sums.setdefault((row["method"], row["layer"]), {}).setdefault(row["after"], []).append(row["used"])
    by_method: dict[str, list[dict[str, Any]]] = {}
    for (method, layer), cells in sums.items():
        values = [_heat(sum(of) / len(of), 0.0, 1.0, digits=0) for _, of in sorted(cells.items())]
        by_method.setdefault(method, []).append({"name": layer, "cells": values})
    return [{"method": method, "rows": rows} for method, rows in by_method.items()]


def reuse_matrices(table: Table, runs: Runs) -> list[dict[str, Any]]:
    """Reuse between tasks as heat maps."""
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
