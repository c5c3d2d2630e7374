"""The papers' figures and tables by name; figures are drawn from a folder of runs, with their title and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hatrack.errors import InputError
from hatrack.report import inside, recognition, tables
from hatrack.report.literature import published
from hatrack.report.over_time import by_task, learning
from hatrack.report.runs import Runs
from hatrack.report.table import Drawing, Table
from hatrack.report.verdict import differences, timing

__all__ = ["FIGURES", "TABLES", "Figure"]


@dataclass(frozen=True)
class Figure:
    """A figure that can be drawn from runs.

    Attributes:
        name: its name on the command line.
        description: its content, in one line.
        source: the figure of the paper that it follows.
        of_one_method: whether it is about one method, which can be chosen, and not about all of them.
    """

    name: str
    description: str
    source: str
    of_one_method: bool = False

    def draw(self, runs: Runs, method: str | None = None) -> Drawing:
        """Draw the figure.

        Args:
            runs: the runs.
            method: label of the runs that it is about, of figures about one method alone; None takes hat, or the
                best one where there is no hat.

        Raises:
            InputError: the runs have no such data, a method is given and the figure is about all of them, or altair is
                not installed.
        """
        if method is not None and not self.of_one_method:
            chosen = ", ".join(name for name, figure in FIGURES.items() if figure.of_one_method)
            raise InputError(f"the figure {self.name} shows all methods; one can be chosen for: {chosen}")
        from hatrack.report.drawings import DRAWINGS, DRAWINGS_OF_ONE  # needs altair

        if not self.of_one_method:
            return DRAWINGS[self.name](runs).noted(runs.note_on_conditions, runs.note_on_tests, runs.note_on_left_out)
        return DRAWINGS_OF_ONE[self.name](runs, method or ("hat" if "hat" in runs.labels else runs.labels[0]))


_HAT = "Serrà et al., ICML 2018"
_GEM = "Lopez-Paz and Ranzato, 2017"
_ROWS = (
    ("accuracy", "average accuracy of the tasks so far", _GEM),
    ("forgetting", "forgetting of the tasks so far", "Chaudhry et al., 2018"),
    ("forgetting-ratio", "ρ of the tasks so far; needs joint and random", f"{_HAT}, Fig. 3"),
    ("sensitivity", "accuracy by a setting, of runs that differ in it", f"{_HAT}, Fig. 4"),
    ("usage", "share of the network in use during training", f"{_HAT}, Fig. 5"),
    ("reuse", "weights of a task that another uses too; one method", f"{_HAT}, Fig. 6", True),
    ("compression", "accuracy against size during a first task; one method", f"{_HAT}, Fig. 7", True),
    ("layers", "share of every layer in use after every task; one method", f"{_HAT}, Fig. 8", True),
    ("tasks", "accuracy on every task while others follow; one method", f"{_HAT}, Fig. 9", True),
    ("matrix", "accuracy on every task after every task; one method", "", True),
    ("class-incremental", "accuracy of the tasks so far if nobody names the task", "Van de Ven and Tolias, 2019"),
    ("task-confusion", "tasks that test samples are taken for if nobody names the task; one method", "", True),
    ("class-confusion", "classes that they are taken for, of all tasks; one method", "", True),
    ("transfer", "accuracy right after learning, backward and forward transfer, by method", _GEM),
    ("published", "the literature's figures beside these runs'", f"{_HAT}, Tables 3, 4, 6, 7 and 8"),
    ("time", "time for training and testing", f"{_HAT}, Table 5"),
    ("time-by-task", "time for every task, in their order", ""),
    ("learning", "validation loss and score by epoch", ""),
)
FIGURES: Mapping[str, Figure] = MappingProxyType({row[0]: Figure(*row) for row in _ROWS})
"""Every figure by its name."""


def _with_conditions(make: Callable[[Runs], Table]) -> Callable[[Runs], Table]:
    """Wrap a maker of tables, so that their notes name settings in which runs differ, and runs that are left out.

    They say, too, which test samples were learned from.
    """
    return lambda runs: make(runs).noted(runs.note_on_conditions, runs.note_on_tests, runs.note_on_left_out)


_MAKERS: Mapping[str, Callable[[Runs], Table]] = MappingProxyType(
    {
        "summary": tables.summary,
        "forgetting-ratios": tables.forgetting_ratios,
        "differences": differences,
        "curves": tables.curves,
        "accuracy": tables.accuracy,
        "by-task": by_task,
        "learning": learning,
        "capacity": inside.capacity,
        "usage": inside.usage,
        "reuse": inside.reuse,
        "compression": inside.compression,
        "recognition": recognition.recognition,
        "task-confusion": recognition.task_confusion,
        "class-confusion": recognition.class_confusion,
        "timing": timing,
        "published": published,
        "data": tables.data,
    }
)
"""Makers of tables by name."""

TABLES: Mapping[str, Callable[[Runs], Table]] = MappingProxyType(
    {name: make if name == "data" else _with_conditions(make) for name, make in _MAKERS.items()}
)
"""Every table by its name."""
