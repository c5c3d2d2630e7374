"""Predictions of a run's network as a table, for files that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hatrack.experiments import SamplePrediction
from hatrack.report.table import Kind, Row, Table

__all__ = ["predictions_table"]

_TEXTS = ("sample", "task", "predicted")


def predictions_table(found: Sequence[SamplePrediction]) -> Table:
    """Make a row per sample: the task, what was predicted, and the probability of every class or label of the task.

    Args:
        found: predictions of :func:`hatrack.experiments.predict_files`.

    Returns:
        The table. ``predicted`` is the class, the labels joined by commas, or the number; several numbers have a column
        each. Probabilities of classes of other tasks than the sample's are not known.
    """
    rows = tuple(map(_row, found))
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = tuple((Kind.TEXT if key in _TEXTS else Kind.NUMBER).column(key) for key in keys)
    return Table("predictions", "Predictions", columns, rows)


def _row(found: SamplePrediction) -> Row:
    row: dict[str, Any] = {"sample": found.sample, "task": found.task, "predicted": found.said}
    if len(found.numbers) == 1:
        row["predicted"] = found.numbers[0]
    elif found.numbers:
        del row["predicted"]
        row |= {f"predicted {name}": value for name, value in zip(found.classes, found.numbers, strict=True)}
    shares = dict(zip(found.classes, found.probabilities, strict=False))
    return {**row, **{f"probability of {name}": shares[name] for name in sorted(shares)}}
