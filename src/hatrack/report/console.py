"""Results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from hatrack.experiments import Comparison, Reproduction, RunResult, Verification
from hatrack.experiments.statistics import Spread
from hatrack.experiments.tuning import Candidate, best

__all__ = [
    "accuracy_table",
    "comparison_table",
    "forgetting_line",
    "reproduction_table",
    "share_in_use",
    "tuning_table",
    "verification_table",
]

# Sky blue, yellow and vermilion of Okabe and Ito's palette can be told apart with any colour vision.
_KEPT, _FADED, _LOST = "#56b4e9", "#f0e442", "#d55e00"


def accuracy_table(result: RunResult, title: str | None = None) -> Table:
    """Show the accuracy matrix: a row after every task, a column for every task, and the proof below.

    An entry's colour says what became of it since the task was learned: kept, up to two points lost, or more. The last
    row says whether the test logits of a column stayed the same to the bit, by their hashes.

    Args:
        result: a run with at least one task learned.
        title: above the table; by default experiment, method and seed.
    """
    learned = len(result.scores)
    title = title or f"{result.experiment} · {result.method} · seed {result.seed}"
    table = Table(
        title=f"{title}\n[dim]accuracy in %", title_justify="left", title_style="bold", box=SIMPLE, padding=(0, 1, 0, 0)
    )
    table.add_column("after task", no_wrap=True)
    for index in range(learned):
        table.add_column(str(index + 1), justify="right", no_wrap=True, min_width=4)
    for index, row in enumerate(result.scores):
        cells = [Text(f"{100 * score.accuracy:.1f}", _colour(result, index, task)) for task, score in enumerate(row)]
        table.add_row(f"{index + 1} {result.tasks[index].name}", *cells, end_section=index == learned - 1)
    table.add_row("logits", *(Text(word, style) for word, style in map(_proof, _hash_columns(result))))
    return table


def forgetting_line(result: RunResult) -> str:
    """Say in one sentence: average accuracy, forgetting, and the share of units or weights in use."""
    figures = result.metrics()
    line = f"average accuracy {figures['average_accuracy']:.2%}, forgetting {100 * figures['forgetting']:.2f} points"
    capacity = figures["capacity"]
    return line if capacity is None else f"{line}, {share_in_use(capacity)}"


def share_in_use(capacity: Mapping[str, Any]) -> str:
    """Say the share of units in use, or of weights where masks are about weights."""
    if capacity["units"] is None:
        return f"{capacity['weights']:.0%} of the weights in use"
    return f"{capacity['units']:.0%} of the units in use"


def verification_table(verification: Verification) -> Table:
    """Show the findings of :func:`hatrack.experiments.recorded`, task by task."""
    how = "logits, to the bit" if verification.bitwise else "logits, to 1e-5"
    table = Table("task", "recorded", "now", how, "unchanged during the run", box=SIMPLE)
    for verdict in verification.verdicts:
        agrees = Text("agree", _KEPT) if verdict.agrees else Text("differ", _LOST)
        constant = Text("yes", _KEPT) if verdict.constant else Text("no", _FADED)
        table.add_row(verdict.task, f"{verdict.recorded:.2%}", f"{verdict.accuracy:.2%}", agrees, constant)
    return table


def reproduction_table(reproduction: Reproduction) -> Table:
    """Compare a run with the same run made again, task by task."""
    table = Table("task", "recorded", "again", "logits, to the bit", box=SIMPLE)
    for task in reproduction.tasks:
        same = Text("same", _KEPT) if task.same_bits else Text("differ", _LOST)
        table.add_row(task.task, f"{task.recorded:.2%}", f"{task.again:.2%}", same)
    return table


def _colour(result: RunResult, row: int, task: int) -> str:
    lost = result.scores[task][task].accuracy - result.scores[row][task].accuracy
    if row == task:
        return "bold"
    return _KEPT if lost <= 0 else _FADED if lost <= 0.02 else _LOST


def _hash_columns(result: RunResult) -> list[list[str]]:
    learned = len(result.scores)
    return [[result.scores[row][task].logits_sha256 for row in range(task, learned)] for task in range(learned)]


def _proof(hashes: Sequence[str]) -> tuple[str, str]:
    if len(hashes) == 1:
        return "new", "dim"
    return ("same", _KEPT) if len(set(hashes)) == 1 else ("diff", _LOST)


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
