"""Results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from hatrack.experiments import Reproduction, RunResult, Verification

__all__ = ["accuracy_table", "forgetting_line", "reproduction_table", "share_in_use", "verification_table"]

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
    """Show the findings of :func:`hatrack.experiments.verify`, task by task."""
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
