"""Tidy tables of how test samples were recognised whose task nobody named: by task, and what was taken for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hatrack.experiments import RunResult
from hatrack.report.runs import Runs
from hatrack.report.table import AFTER, METHOD, SEED, Kind, Table, mean_and_sd

__all__ = [
    "UNNAMED",
    "ClassShares",
    "class_confusion",
    "class_names",
    "mean_class_shares",
    "recognised_so_far",
    "recognition",
    "task_confusion",
]

UNNAMED = (
    Kind.PERCENT.column(
        "class_incremental_accuracy",
        "no task named",
        "share of all test samples whose task and class are recognised if nobody names the task (class-incremental)",
    ),
    Kind.PERCENT.column("task_recognised", "task recognised", "share of them whose task is recognised"),
)
"""Columns of the shares of test samples that are recognised, over all tasks."""

_TASK, _NAME = Kind.NUMBER.column("task"), Kind.TEXT.column("name")
_TAKEN, _COUNT = Kind.NUMBER.column("taken_for", "taken for task"), Kind.NUMBER.column("count", "samples")
_SHARE = Kind.PERCENT.column("share", "share of the row")


def recognised_so_far(results: Sequence[RunResult], learned: int) -> dict[str, float | None]:
    """Return means and deviations of the columns of :data:`UNNAMED` after some tasks; None where a run has none.

    Args:
        results: runs of a method.
        learned: number of tasks learned, at least 1.
    """
    curves = [
        [] if run.recognition is None else run.recognition.curve([task.test for task in run.tasks]) for run in results
    ]
    known = [curve[learned - 1] if curve else dict.fromkeys(column.key for column in UNNAMED) for curve in curves]
    found: dict[str, float | None] = {}
    for column in UNNAMED:
        found |= mean_and_sd(column.key, (each[column.key] for each in known))
    return found


def recognition(runs: Runs) -> Table:
    """Make a row per method, seed, task learned last and task tested: how its samples are recognised without a name.

    ``auroc`` is known after the last task alone.
    """
    rows = []
    for label, seed, run in runs.each():
        if run.recognition is None:
            continue
        pairs = zip(run.recognition.class_incremental, run.recognition.task_recognised, strict=True)
        for after, (both, of_task) in enumerate(pairs):
            if both is None or of_task is None:  # a task was forgotten since
                continue
            areas = run.recognition.task_auroc if after + 1 == runs.learned else None
            rows += [
                {
                    **{"method": label, "seed": seed, "after": after + 1, "task": task + 1},
                    **{"name": runs.task_names[task], "class_incremental": both[task]},
                    **{"task_recognised": of_task[task], "auroc": None if areas is None else areas[task]},
                }
                for task in range(after + 1)
            ]
    columns = (
        *(METHOD, SEED, AFTER, _TASK, _NAME),
        Kind.PERCENT.column("class_incremental", "task and class"),
        *(Kind.PERCENT.column("task_recognised", "task recognised"), Kind.RATIO.column("auroc", "AUROC")),
    )
    return Table("recognition", "Test samples recognised without the task's name", columns, tuple(rows))


def task_confusion(runs: Runs) -> Table:
    """Make a row per method, seed and pair of tasks: how many samples of one are taken for the other in the end."""
    rows = []
    for label, seed, run in runs.each():
        counts = None if run.recognition is None else run.recognition.task_confusion
        for task, row in enumerate(counts or ()):
            rows += [
                {
                    **{"method": label, "seed": seed, "task": task + 1, "name": runs.task_names[task]},
                    **{"taken_for": other + 1, "taken_for_name": runs.task_names[other]},
                    **{"count": count, "share": count / max(1, sum(row))},
                }
                for other, count in enumerate(row)
            ]
    taken = Kind.TEXT.column("taken_for_name", "its name")
    columns = (METHOD, SEED, _TASK, _NAME, _TAKEN, taken, _COUNT, _SHARE)
    return Table("task-confusion", "Tasks that test samples are taken for", columns, tuple(rows))


def class_confusion(runs: Runs) -> Table:
    """Make a row per method, seed and pair of classes of which one is taken for the other at least once.

    A class is a class of a task: classes of different tasks that have one name are different classes.
    """
    rows = []
    for label, seed, run in runs.each():
        counts = None if run.recognition is None else run.recognition.class_confusion
        names = class_names(run, runs.learned)
        for (task, name), row in zip(names, counts or (), strict=False):
            rows += [
                {
                    **{"method": label, "seed": seed, "task": task, "class": name},
                    **{"taken_for": other, "taken_for_class": other_name},
                    **{"count": count, "share": count / max(1, sum(row))},
                }
                for (other, other_name), count in zip(names, row, strict=True)
                if count
            ]
    taken = Kind.TEXT.column("taken_for_class", "its class")
    columns = (METHOD, SEED, _TASK, Kind.TEXT.column("class"), _TAKEN, taken, _COUNT, _SHARE)
    return Table("class-confusion", "Classes that test samples are taken for", columns, tuple(rows))


@dataclass(frozen=True)
class ClassShares:
    """Shares in which test samples of classes are taken for others, means over seeds.

    Attributes:
        classes: number of the task, from 1, and name, of every class.
        rows: by class, share of its samples that are taken for each class.
        seeds: the seeds that these are means over: those with the classes of the first, in its order.
    """

    classes: tuple[tuple[int, str], ...]
    rows: tuple[tuple[float, ...], ...]
    seeds: tuple[int, ...]


def mean_class_shares(runs: Runs, label: str) -> ClassShares:
    """Return the class confusion of a method, the mean over the seeds that have the same classes in the same order.

    Args:
        runs: the runs.
        label: label of the method; all of it is empty where it has no class confusion.
    """
    found: dict[int, tuple[tuple[float, ...], ...]] = {}
    classes: tuple[tuple[int, str], ...] = ()
    for seed, run in runs.by_label[label].items():
        counts = None if run.recognition is None else run.recognition.class_confusion
        names = tuple(class_names(run, runs.learned))
        if counts is not None and names == (classes or names):
            classes = names
            found[seed] = tuple(tuple(count / max(1, sum(row)) for count in row) for row in counts)
    rows = tuple(
        tuple(sum(cells) / len(cells) for cells in zip(*of, strict=True)) for of in zip(*found.values(), strict=True)
    )
    return ClassShares(classes, rows, tuple(found))


def class_names(run: RunResult, learned: int) -> list[tuple[int, str]]:
    """Return the classes of the tasks learned: number of the task, from 1, and name of the class.

    Args:
        run: the run.
        learned: number of tasks learned.
    """
    return [
        (number, name)
        for number, task in enumerate(run.tasks[:learned], 1)
        for name in (task.class_names or tuple(f"class {index + 1}" for index in range(task.classes)))
    ]
