"""Tidy tables of learning itself: epoch by epoch, and task by task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from hatrack.experiments import RunResult, TaskHistory
from hatrack.objectives import ACCURACY, Metric
from hatrack.report.runs import Runs
from hatrack.report.table import METHOD, SEED, Kind, Table, TableColumn, joined, kinds_of, mean_and_sd

__all__ = ["OF_LOSSES", "by_task", "figures_of", "learning", "mean_learning", "tasks_named"]

OF_LOSSES = (
    "losses are what a method minimises, with all that it adds (hat its regulariser, ewc its penalty): they tell "
    "epochs apart, not methods"
)
"""Sentence, without its end, about losses on training and validation samples."""

_TASK, _EPOCH, _NAME = Kind.NUMBER.column("task"), Kind.NUMBER.column("epoch"), Kind.TEXT.column("name")


def learning(runs: Runs) -> Table:
    """Make a row per method, seed, task and epoch: training loss, and loss and score on the validation set."""
    rows = tuple(
        {"method": label, "seed": seed, "task": task, "epoch": epoch, **figures}
        for label, seed, run in runs.each()
        for task, history in enumerate(run.history, 1)
        for epoch, figures in enumerate(_epochs(history, runs.metric), 1)
    )
    columns = (METHOD, SEED, _TASK, _EPOCH, *_figures(runs.metric))
    return Table("learning", "Loss and score by epoch", columns, rows, joined(OF_LOSSES, runs.note_on_losses))


def mean_learning(runs: Runs, points: int = 30) -> Table:
    """Make a row per method, task and place within it: the means of :func:`learning` over seeds.

    A place is an epoch where no task took more than ``points``. Where it took more, or seeds stopped after different
    numbers of epochs, places divide the task evenly, and each run counts with the epoch that it was in.

    Args:
        runs: the runs.
        points: largest number of places within a task.

    Returns:
        The table; ``epoch`` counts from the start of the run, None unless all runs took the same epochs.
    """
    lengths = {tuple(len(history.valid_loss) for history in run.history) for _, _, run in runs.each()}
    lengths.discard((0,) * runs.learned)  # methods that do not train
    before = [sum(next(iter(lengths))[:task]) for task in range(runs.learned)] if len(lengths) == 1 else None
    rows: list[dict[str, Any]] = []
    for label in runs.labels:
        for task in range(runs.learned):
            histories = (run.history[task] for run in runs.by_label[label].values() if task < len(run.history))
            seeds = [of for history in histories if (of := _epochs(history, runs.metric))]
            for progress, here in _places(seeds, points):
                epoch = None if before is None else before[task] + math.ceil(progress * len(seeds[0]))
                row = {"method": label, "task": task + 1, "progress": round(task + progress, 4), "epoch": epoch}
                for figure in _figures(runs.metric):
                    row |= mean_and_sd(figure.key, (one[figure.key] for one in here))
                rows.append(row)
    columns = (METHOD, _TASK, _EPOCH, Kind.NUMBER.column("progress", "tasks learned"), *_figures(runs.metric))
    note = joined(OF_LOSSES, runs.note_on_losses)
    return Table("mean-learning", "Loss and score by epoch, means over seeds", columns, tuple(rows), note)


def figures_of(table: Table, metric: Metric) -> tuple[TableColumn, TableColumn, TableColumn]:
    """Return the columns of training loss, validation loss and score, as tasks of one metric are shown.

    Args:
        table: :func:`learning` or :func:`mean_learning`, whose tasks may have several metrics.
        metric: one of these.
    """
    train_loss, valid_loss, score = table.columns[-3:]
    return train_loss, valid_loss, replace(score, kind=kinds_of(metric)[0], title=f"validation {metric.name}")


def tasks_named(runs: Runs, metric: Metric) -> str:
    """Name the tasks that have a metric: ``R²: tasks 2, 4``."""
    numbers = runs.tasks_of(metric)
    return f"{metric.name}: task{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def by_task(runs: Runs) -> Table:
    """Make a row per method and task: its time, its score once learned, and what other tasks did for and to it.

    The mean of ``forward_transfer`` over tasks is that of :func:`hatrack.report.tables.summary`, and so is the mean of
    ``backward_transfer``. The first task has no forward transfer, the last no backward transfer; forward transfer needs
    the runs of ``independent`` with the same seeds.
    """
    metric = runs.metric
    rows = []
    for label in runs.labels:
        of = runs.by_label[label]
        alone = [runs.run("independent", seed) for seed in of]
        for task, name in enumerate(runs.task_names):
            row: dict[str, Any] = {"method": label, "task": task + 1, "name": name}
            row |= {} if metric is not None else {"metric": runs.any.tasks[task].metric.name}
            row |= mean_and_sd("seconds", (run.seconds[task] for run in of.values()))
            row |= mean_and_sd(runs.learning, (run.scores[task][task].value for run in of.values()))
            pairs = zip(of.values(), alone, strict=True)
            row |= mean_and_sd("forward_transfer", (_forward(run, one, task) for run, one in pairs))
            row |= mean_and_sd("backward_transfer", (_backward(run, task) for run in of.values()))
            rows.append(row)
    score, difference = kinds_of(metric) if metric is not None else (Kind.SCORE, Kind.SCORE)
    columns = (
        *(METHOD, _TASK, _NAME, *(() if metric is not None else (Kind.TEXT.column("metric"),))),
        Kind.SECONDS.column("seconds", "time", "for training on it and testing all tasks so far"),
        score.column(runs.learning, "learning", "score right after learning it"),
        difference.column("forward_transfer", "forward", "what earlier tasks did for it, against learning alone"),
        difference.column("backward_transfer", "backward", "what later tasks did to it"),
    )
    known = [c for c in columns if c.kind is Kind.TEXT or any(row[c.key] is not None for row in rows)]
    return Table("by-task", "Time, score and transfer by task", tuple(known), tuple(rows), runs.note_on_times)


def _figures(metric: Metric | None) -> tuple[TableColumn, ...]:
    key = "valid_accuracy" if metric == ACCURACY else "valid_score"
    name = "score" if metric is None else metric.name
    return (
        Kind.RATIO.column("train_loss", "training loss"),
        Kind.RATIO.column("valid_loss", "validation loss"),
        (Kind.SCORE if metric is None else kinds_of(metric)[0]).column(key, f"validation {name}"),
    )


def _epochs(history: TaskHistory, metric: Metric | None) -> list[dict[str, float | None]]:
    """Return the figures of every epoch of a task; what was not recorded is None."""
    keys = [figure.key for figure in _figures(metric)]
    of = (history.train_loss, history.valid_loss, history.valid_score)
    return [
        {key: values[epoch] if epoch < len(values) else None for key, values in zip(keys, of, strict=True)}
        for epoch in range(len(history.valid_loss))
    ]


def _places(
    seeds: Sequence[Sequence[dict[str, float | None]]], points: int
) -> Iterable[tuple[float, list[dict[str, float | None]]]]:
    """Return places within a task, as shares in (0, 1], and the epoch of every run there."""
    count = min(points, max(map(len, seeds), default=0))
    for place in range(1, count + 1):
        yield place / count, [epochs[math.ceil(place * len(epochs) / count) - 1] for epochs in seeds]


def _forward(run: RunResult, alone: RunResult | None, task: int) -> float | None:
    if alone is None or task == 0:
        return None
    return run.tasks[task].metric.gain(run.scores[task][task].value, alone.scores[task][task].value)


def _backward(run: RunResult, task: int) -> float | None:
    if task == len(run.scores) - 1:
        return None
    return run.tasks[task].metric.gain(run.scores[-1][task].value, run.scores[task][task].value)
