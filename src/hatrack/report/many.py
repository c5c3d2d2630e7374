"""Many runs as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from hatrack.experiments import Comparison
from hatrack.experiments.statistics import Spread
from hatrack.experiments.tuning import Candidate, best

__all__ = ["comparison_table", "tuning_table"]


def comparison_table(comparison: Comparison) -> Table:
    """Make a row per method, the best first: accuracy, forgetting and forgetting ratio after the last task."""
    table = Table(
        "method",
        title=f"{comparison.experiment}, after the last task; mean ± standard deviation over seeds",
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
    )
    for column in ("accuracy, %", "forgetting, points", "forgetting ratio", "seeds"):
        table.add_column(column, justify="right")
    accuracies = {method: comparison.spread(method, "average_accuracy") for method in comparison.methods}
    order = sorted(comparison.methods, key=lambda m: -(found.mean if (found := accuracies[m]) else -1.0))
    for method in order:
        finished = len(comparison.figures(method, "average_accuracy"))
        failed = sum(name == method for name, _ in comparison.failures)
        seeds = Text(f"{finished} of {len(comparison.seeds)}" + (f", {failed} failed" if failed else ""))
        table.add_row(
            method,
            _spread(accuracies[method], 100.0, 2),
            _spread(comparison.spread(method, "forgetting"), 100.0, 2),
            _spread(comparison.spread(method, "forgetting_ratio"), 1.0, 3),
            seeds,
        )
    return table


def tuning_table(candidates: Sequence[Candidate]) -> Table:
    """Make a row per candidate in their order, the best one marked."""
    table = Table("settings", box=SIMPLE)
    table.add_column("average accuracy", justify="right")
    chosen = best(candidates)
    for candidate in candidates:
        settings = Text(", ".join(f"{key}={value}" for key, value in candidate.settings.items()))
        accuracy = Text("failed" if candidate.error else "–")
        if candidate.accuracy is not None:
            accuracy = Text(f"{candidate.accuracy:.2%}" + (" best" if candidate is chosen else ""))
        table.add_row(settings, accuracy, style="bold" if candidate is chosen else "")
    return table


def _spread(found: Spread | None, factor: float, digits: int) -> str:
    if found is None:
        return "–"
    mean = f"{factor * found.mean + 0.0:.{digits}f}"
    return mean if found.sd is None else f"{mean} ± {factor * found.sd:.{digits}f}"
