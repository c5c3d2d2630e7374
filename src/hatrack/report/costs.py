"""Tables of what hard attention costs for a backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from rich import filesize
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from hatrack.experiments import Costs, StepCosts
from hatrack.objectives.metrics import readable

__all__ = ["once_table", "steps_table"]


def steps_table(costs: Costs, title: str | None = None) -> Table:
    """Show the costs of steps: a column for the first task, for a later one, and for both as CUDA graphs.

    Args:
        costs: the costs; steps under way count with the pairs that are made.
        title: above the table; None for no title.
    """
    table = Table("a step", title=title, title_justify="left", title_style="bold", box=SIMPLE)
    for step in costs.steps:
        table.add_column(_which(step), justify="right")
    for name, say in _ROWS.items():
        table.add_row(name, *(say(step) for step in costs.steps), style="bold" if name == "ratio" else "")
    return table


def once_table(costs: Costs) -> Table:
    """Show the seconds of what is done once per network or task, and what could not be measured."""
    table = Table("once", box=SIMPLE)
    table.add_column("seconds", justify="right")
    for name, seconds in costs.seconds.items():
        table.add_row(name, readable(seconds))
    for name, reason in costs.missing.items():
        table.add_row(name, Text(f"not measured: {reason}"))
    return table


def _which(step: StepCosts) -> str:
    number = "first task" if not step.tasks else f"after {step.tasks} task{'s' * (step.tasks > 1)}"
    return f"{number}, CUDA graph" if step.captured else number


def _size(count: int | None) -> str:
    return "–" if count is None else filesize.decimal(count)


_ROWS: Mapping[str, Callable[[StepCosts], str]] = MappingProxyType(
    {
        "plain, ms": lambda step: readable(step.plain_ms),
        "HAT, ms": lambda step: readable(step.hat_ms),
        "ratio": lambda step: f"{step.ratio:.2f}",
        "half of the ratios": lambda step: "{:.2f} to {:.2f}".format(*step.quartiles),
        "pairs": lambda step: str(len(step.plain)),
        "plain, memory": lambda step: _size(step.plain_bytes),
        "HAT, memory": lambda step: _size(step.hat_bytes),
        "units in use": lambda step: f"{step.units:.0%}",
        "weights frozen": lambda step: f"{step.weights:.0%}",
    }
)
"""Texts about a step, by the title of the row."""
