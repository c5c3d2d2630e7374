"""Recognition of the tasks of a run's test samples, which nobody names: measuring it, and what ``run.json`` keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hatrack.errors import InputError
from hatrack.methods import METHODS, Method, find_method
from hatrack.methods.masked import MaskedMethod
from hatrack.objectives import Classification
from hatrack.recognition import Confusion, measure_confusion
from hatrack.streams import Task

__all__ = [
    "KEYS",
    "Recognition",
    "calibrate_task",
    "measure_recognition",
    "require_recognisable",
    "require_recognition",
]

Shares = tuple[float, ...]
"""Shares of the test samples of tasks 0..t, each in [0, 1]."""

Counts = tuple[tuple[int, ...], ...]
"""Rows of a square matrix of numbers of samples."""


@dataclass(frozen=True)
class Recognition:
    """Recognition of test samples whose task was not named, after every task of a run.

    Attributes:
        class_incremental: row t holds, for tasks 0..t, the share of samples whose task and class were recognised after
            task t; None where that was measured beside a task that was forgotten since.
        task_recognised: the same for samples whose task was recognised.
        task_auroc: after the last task learned, area under the ROC curve of every task's score against the samples of
            the others; None for a single task, and where it is not known any more.
        task_confusion: likewise, number of samples by their task (row) and the task that they were taken for (column).
        class_confusion: the same of classes, those of all tasks one task after the other; classes of different tasks
            are different classes, whatever they are called.
    """

    class_incremental: tuple[Shares | None, ...] = ()
    task_recognised: tuple[Shares | None, ...] = ()
    task_auroc: tuple[float, ...] | None = None
    task_confusion: Counts | None = None
    class_confusion: Counts | None = None

    def with_row(self, found: Confusion) -> Recognition:
        """Return the record after one more task."""
        return Recognition(
            (*self.class_incremental, found.class_incremental),
            (*self.task_recognised, found.task_recognised),
            found.auroc or None,
            _table(found.of_tasks),
            _table(found.counts),
        )

    def first(self, learned: int) -> Recognition:
        """Return the record as it was after the first tasks, as far as that is known."""
        if learned == len(self.class_incremental):
            return self
        return Recognition(self.class_incremental[:learned], self.task_recognised[:learned])

    def without_task(self, index: int, found: Confusion | None) -> Recognition:
        """Return the record without a task; what was measured while others could be taken for it is not known any more.

        Args:
            index: the task's place among those learned.
            found: recognition of the tasks that are left, measured anew; None where that cannot be.
        """
        unknown = (None,) * (len(self.class_incremental) - index - 1)
        known = Recognition((*self.class_incremental[:index], *unknown), (*self.task_recognised[:index], *unknown))
        if found is None:
            return known
        return known.first(len(known.class_incremental) - 1).with_row(found)

    def figures(self, samples: Sequence[int]) -> dict[str, float | None]:
        """Return the shares of all samples of the tasks learned, after the last one; None where they are not known.

        Args:
            samples: number of test samples of every task.
        """
        return {
            name: _over_all(rows[-1], samples) if rows else None
            for name, rows in (
                ("class_incremental_accuracy", self.class_incremental),
                ("task_recognised", self.task_recognised),
            )
        }

    def curve(self, samples: Sequence[int]) -> list[dict[str, float | None]]:
        """Return :meth:`figures` as they were after every task."""
        rows = zip(self.class_incremental, self.task_recognised, strict=True)
        names = ("class_incremental_accuracy", "task_recognised")
        return [dict(zip(names, (_over_all(row, samples) for row in pair), strict=True)) for pair in rows]

    def to_json(self, tasks: int) -> dict[str, Any]:
        """Return the entries of ``run.json``.

        Args:
            tasks: number of the run's tasks, learned or not.
        """

        def square(rows: Sequence[Shares | None]) -> list[list[float | None]]:
            all_rows = (*rows, *[None] * (tasks - len(rows)))
            return [[*(row or ()), *[None] * (tasks - len(row or ()))] for row in all_rows]

        areas = self.task_auroc or ()
        return {
            "class_incremental": square(self.class_incremental),
            "task_recognised": square(self.task_recognised),
            "task_auroc": [*areas, *[None] * (tasks - len(areas))],
            "task_confusion": self.task_confusion,
            "class_confusion": self.class_confusion,
        }

    @classmethod
    def from_json(cls, data: Any, learned: int, classes: Sequence[int]) -> Recognition | None:
        """Read the entries of ``run.json``; None where nothing was measured.

        Args:
            data: the whole content.
            learned: number of tasks learned.
            classes: number of classes of every task.

        Raises:
            TypeError, ValueError: they are no such entries.
        """
        if all(data.get(key) is None for key in KEYS):
            return None
        size, total = len(classes), sum(classes[:learned])
        both, of_task = (_rows(data[key], learned, size) for key in KEYS[:2])
        areas = tuple(float(area) for area in data["task_auroc"] if area is not None)
        if len(data["task_auroc"]) != size or len(areas) not in (0, learned):
            raise ValueError("task_auroc is not of the tasks learned")
        tasks, of_classes = _counts(data["task_confusion"], learned), _counts(data["class_confusion"], total)
        return cls(both, of_task, areas or None, tasks, of_classes)


KEYS = ("class_incremental", "task_recognised", "task_auroc", "task_confusion", "class_confusion")
"""Entries of ``run.json`` about recognition."""


def require_recognition(method: str) -> None:
    """Check that a method's network can recognise tasks.

    Raises:
        InputError: it has no masks; the methods that have are named.
    """
    if not issubclass(find_method(method), MaskedMethod):
        able = ", ".join(name for name, kind in METHODS.items() if issubclass(kind, MaskedMethod))
        raise InputError(
            f"{method} has no masks, and its network recognises no tasks: leave `infer` out, or take one of {able}"
        )


def require_recognisable(tasks: Sequence[Task]) -> None:
    """Check that tasks can be told from each other.

    Raises:
        InputError: the outputs of one are no classes, or it has no test samples.
    """
    for task in tasks:
        if not isinstance(task.objective, Classification):
            raise InputError(
                f"task {task.name!r} is {task.objective.kind}, and only tasks of classes are recognised: leave `infer` "
                "out"
            )
        if not len(task.test):
            raise InputError(f"task {task.name!r} has no test samples to recognise: leave `infer` out")


def calibrate_task(method: Method, task: Task) -> None:
    """Keep what a task that was just learned is recognised by, measured on its training samples."""
    assert isinstance(method, MaskedMethod)
    x, y = task.train.load()
    assert isinstance(x, torch.Tensor)
    device = method.setup.device
    method.network.calibrate(task.name, x.to(device), y.to(device))


def measure_recognition(method: Method, tasks: Sequence[Task], batch_size: int) -> Confusion:
    """Count what the test samples of all tasks learned are taken for by a method's network.

    Args:
        method: the method; its network is left in evaluation mode.
        tasks: the tasks that it has learned, all calibrated.
        batch_size: samples per pass.
    """
    assert isinstance(method, MaskedMethod)
    method.train_mode(False)
    samples = {}
    for task in tasks:
        x, y = task.test.load()
        assert isinstance(x, torch.Tensor)
        samples[task.name] = (x.to(method.setup.device), y)
    return measure_confusion(
        method.network, samples, {task.name: task.num_classes for task in tasks}, batch_size=batch_size
    )


def _table(counts: torch.Tensor) -> Counts:
    return tuple(tuple(row) for row in counts.tolist())


def _over_all(row: Shares | None, samples: Sequence[int]) -> float | None:
    """Return the share of the samples of all tasks of a row together; shares are of whole numbers of samples."""
    if not row:
        return None
    right = [round(share * total) for share, total in zip(row, samples, strict=False)]
    return sum(right) / sum(samples[: len(row)])


def _rows(matrix: Any, learned: int, size: int) -> tuple[Shares | None, ...]:
    found: list[Shares | None] = []
    for index, row in enumerate(matrix):
        known = [value for value in row if value is not None]
        full = len(known) == index + 1 and index < learned
        if len(row) != size or (known and (not full or row[: index + 1] != known)):
            raise ValueError("shares of recognised samples are not a lower triangular matrix of the tasks learned")
        found.append(tuple(map(float, known)) if known else None)
    if len(found) != size:
        raise ValueError("shares of recognised samples are not of all tasks")
    return tuple(found[:learned])


def _counts(matrix: Any, size: int) -> Counts | None:
    if matrix is None:
        return None
    if len(matrix) != size or any(len(row) != size for row in matrix):
        raise ValueError(f"a confusion is not a matrix of {size} rows and columns")
    if not all(type(count) is int and count >= 0 for row in matrix for count in row):
        raise TypeError("a confusion holds something else than numbers of samples")
    return tuple(map(tuple, matrix))
