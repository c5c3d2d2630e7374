"""Tidy tables: what is in the runs, as rows for people, papers and plots."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hatrack.errors import InputError
from hatrack.experiments import RunResult
from hatrack.metrics import average_accuracy, forgetting, forward_transfer, learning_accuracy
from hatrack.report.runs import Runs
from hatrack.statistics import spread

__all__ = [
    "Column",
    "Kind",
    "Row",
    "Table",
    "accuracy",
    "capacity",
    "compression",
    "curves",
    "data",
    "forgetting_ratios",
    "is_constant",
    "mean_usage",
    "reuse",
    "sensitivity",
    "summary",
    "usage",
]

Row = Mapping[str, Any]
"""A row of a table: numbers (shares in [0, 1], not percent), texts, or None where a figure is not known."""


class Kind(enum.Enum):
    """How a column is shown to people; files get the plain numbers."""

    TEXT = "text"
    NUMBER = "number"
    PERCENT = "percent"
    POINTS = "points"
    RATIO = "ratio"
    SECONDS = "seconds"


@dataclass(frozen=True)
class Column:
    """A column; where rows have a value called ``key`` and ``_sd``, that is the standard deviation.

    Attributes:
        key: in the rows.
        title: what people read.
        kind: how its values are shown.
        help: what it means, in one sentence.
    """

    key: str
    title: str
    kind: Kind = Kind.TEXT
    help: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: for file names.
        title: what people read.
        columns: in their order.
        rows: in theirs.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


_METHOD = Column("method", "method")
_SEED = Column("seed", "seed", Kind.NUMBER)
_AFTER = Column("after", "after task", Kind.NUMBER)


def summary(runs: Runs) -> Table:
    """A row per method, the best first: accuracy, forgetting, transfer, time, and the proof by hashes."""
    rows: list[dict[str, Any]] = []
    for label in runs.labels:
        of = list(runs.by_label[label].items())
        matrices = {seed: _matrix(run) for seed, run in of}
        alone = {seed: runs.run("independent", seed) for seed in matrices}
        ratios = [runs.forgetting_ratio(label, seed, runs.learned - 1) for seed in matrices]
        rows.append(
            {
                "method": label,
                "seeds": len(of),
                **_spread("average_accuracy", map(average_accuracy, matrices.values())),
                **_spread("forgetting", map(forgetting, matrices.values())),
                **_spread("forgetting_ratio", ratios),
                **_spread("learning_accuracy", map(learning_accuracy, matrices.values())),
                **_spread("backward_transfer", (0.0 - forgetting(matrix) for matrix in matrices.values())),
                **_spread("forward_transfer", (_forward(matrices[seed], alone[seed]) for seed in matrices)),
                **_spread("used", (_in_use(run.capacity) for _, run in of)),
                **_spread("seconds", (sum(run.seconds) for _, run in of)),
                "unchanged": sum(all(is_constant(run, task) for task in range(runs.learned)) for _, run in of),
            }
        )
    rows.sort(key=lambda row: -float(row["average_accuracy"]))
    columns = (
        _METHOD,
        Column("average_accuracy", "accuracy", Kind.PERCENT, "mean accuracy on all tasks after the last one"),
        Column("forgetting", "forgetting", Kind.POINTS, "points lost since each task was learned, on the average"),
        Column("unchanged", "same to the bit", Kind.NUMBER, "runs in which no output on an earlier task ever changed"),
        Column("forgetting_ratio", "ρ", Kind.RATIO, "0: as good as learning all tasks at once; −1: as bad as guessing"),
        Column("learning_accuracy", "learning", Kind.PERCENT, "mean accuracy on every task right after learning it"),
        Column("backward_transfer", "backward", Kind.POINTS, "what later tasks did to earlier ones, in points"),
        Column(
            "forward_transfer", "forward", Kind.POINTS, "what earlier tasks did for later ones, against learning alone"
        ),
        Column("used", "in use", Kind.PERCENT, "share of the units, or weights, that the tasks use in the end"),
        Column("seconds", "time", Kind.SECONDS, "for training and testing all tasks"),
        Column("seeds", "seeds", Kind.NUMBER, "number of runs"),
    )
    known = [c for c in columns if c.kind is Kind.TEXT or any(row[c.key] is not None for row in rows)]
    return Table("summary", "All methods", tuple(known), tuple(rows))


def accuracy(runs: Runs) -> Table:
    """A row per method, seed, task learned last and task tested."""
    names = runs.task_names
    rows = (
        {
            "method": label,
            "seed": seed,
            "after": after + 1,
            "task": task + 1,
            "name": names[task],
            "accuracy": score.accuracy,
            "loss": score.loss,
            "logits_sha256": score.logits_sha256,
        }
        for label, seed, run in _each(runs)
        for after, row in enumerate(run.scores)
        for task, score in enumerate(row)
    )
    columns = (
        *(_METHOD, _SEED, _AFTER, Column("task", "task", Kind.NUMBER), Column("name", "name")),
        *(Column("accuracy", "accuracy", Kind.PERCENT), Column("loss", "loss", Kind.RATIO)),
        Column("logits_sha256", "hash of the outputs"),
    )
    return Table("accuracy", "Accuracy on every task after every task", columns, tuple(rows))


def curves(runs: Runs) -> Table:
    """A row per method and number of tasks learned: average accuracy, forgetting and ρ of the tasks so far (Fig. 3)."""
    rows = []
    for label in runs.labels:
        for after in range(runs.learned):
            so_far = {seed: _matrix(run)[: after + 1] for seed, run in runs.by_label[label].items()}
            rows.append(
                {
                    "method": label,
                    "after": after + 1,
                    **_spread("average_accuracy", map(average_accuracy, so_far.values())),
                    **_spread("forgetting", map(forgetting, so_far.values())),
                    **_spread("forgetting_ratio", (runs.forgetting_ratio(label, seed, after) for seed in so_far)),
                    "seeds": len(so_far),
                }
            )
    columns = (
        *(_METHOD, _AFTER),
        Column("average_accuracy", "accuracy", Kind.PERCENT),
        Column("forgetting", "forgetting", Kind.POINTS),
        Column("forgetting_ratio", "ρ", Kind.RATIO),
        Column("seeds", "seeds", Kind.NUMBER),
    )
    return Table("curves", "Figures of the tasks so far, after every task", columns, tuple(rows))


def forgetting_ratios(runs: Runs) -> Table:
    """ρ^{≤t}, a row per method and a column per t, as the papers' tables 1, 3 and 6 have it."""
    rows = []
    for label in runs.labels:
        row: dict[str, Any] = {"method": label}
        for after in range(1, runs.learned):
            ratios = [runs.forgetting_ratio(label, seed, after) for seed in runs.by_label[label]]
            row |= _spread(f"after_{after + 1}", ratios)
        rows.append(row)
    known = [row for row in rows if any(value is not None for key, value in row.items() if key != "method")]
    if runs.learned > 1:
        known.sort(key=lambda row: -(row[f"after_{runs.learned}"] or 0.0))
    titles = (Column(f"after_{t}", f"ρ≤{t}", Kind.RATIO) for t in range(2, runs.learned + 1))
    return Table("forgetting-ratios", "Forgetting ratio after every task", (_METHOD, *titles), tuple(known))


def capacity(runs: Runs) -> Table:
    """A row per method, seed, task and layer: the share in use after the task (Fig. 8)."""
    rows = [
        {"method": label, "seed": seed, "after": after + 1, "layer": layer, "used": share}
        for label, seed, run in _each(runs)
        for after, history in enumerate(run.history)
        if history.capacity is not None
        for layer, share in history.capacity["groups"].items()
    ]
    columns = (_METHOD, _SEED, _AFTER, Column("layer", "layer"), Column("used", "in use", Kind.PERCENT))
    return Table("capacity", "Share of every layer in use", columns, tuple(rows))


def usage(runs: Runs) -> Table:
    """A row per method, seed and epoch: the share of units or weights in use while tasks are in training (Fig. 5)."""
    rows = []
    for label, seed, run in _each(runs):
        epoch = 0
        for task, history in enumerate(run.history):
            for within, used in enumerate(history.used):
                epoch += 1
                progress = task + (within + 1) / len(history.used)
                rows.append(
                    {
                        "method": label,
                        "seed": seed,
                        "task": task + 1,
                        "epoch": epoch,
                        "progress": round(progress, 4),
                        "used": used,
                    }
                )
    columns = (
        *(_METHOD, _SEED, Column("task", "task", Kind.NUMBER), Column("epoch", "epoch", Kind.NUMBER)),
        *(Column("progress", "tasks learned", Kind.NUMBER), Column("used", "in use", Kind.PERCENT)),
    )
    return Table("usage", "Share of the network in use during training", columns, tuple(rows))


def mean_usage(runs: Runs, points: int = 30) -> Table:
    """What :func:`usage` holds, the mean over seeds, which may stop a task after different numbers of epochs.

    Args:
        runs: the runs.
        points: how many places within every task; at each, a run counts with the epoch that it was in.
    """
    places: dict[tuple[str, int, int], list[float]] = {}
    for label, _, run in _each(runs):
        for task, history in enumerate(run.history):
            for place in range(1, points + 1) if history.used else ():
                epoch = math.ceil(place * len(history.used) / points)
                places.setdefault((label, task, place), []).append(history.used[epoch - 1])
    rows = tuple(
        {"method": label, "progress": round(task + place / points, 3), **_spread("used", of)}
        for (label, task, place), of in places.items()
    )
    columns = (_METHOD, Column("progress", "tasks learned", Kind.NUMBER), Column("used", "in use", Kind.PERCENT))
    return Table("mean-usage", "Share of the network in use during training", columns, rows)


def reuse(runs: Runs) -> Table:
    """A row per method and pair of tasks: share of the weights of one that the other uses too, over seeds (Fig. 6)."""
    rows = []
    for label in runs.labels:
        known = [run.reuse for run in runs.by_label[label].values() if run.reuse is not None]
        if known:
            rows += [
                {"method": label, "of": i + 1, "by": j + 1, **_spread("share", (matrix[i][j] for matrix in known))}
                for i in range(runs.learned)
                for j in range(runs.learned)
            ]
    columns = (
        *(_METHOD, Column("of", "weights of task", Kind.NUMBER), Column("by", "used by task", Kind.NUMBER)),
        Column("share", "share", Kind.PERCENT),
    )
    return Table("reuse", "Reuse of weights between tasks", columns, tuple(rows))


def data(runs: Runs) -> Table:
    """The tasks: classes and numbers of samples (Table 2)."""
    one = runs.any
    rows = tuple(
        {"task": number, **vars(task), "name": name}
        for number, (task, name) in enumerate(zip(one.tasks, runs.task_names, strict=False), start=1)
    )
    numbers = (Column(key, key, Kind.NUMBER) for key in ("classes", "train", "valid", "test"))
    return Table("data", "The tasks", (Column("task", "task", Kind.NUMBER), Column("name", "name"), *numbers), rows)


def compression(runs: Runs) -> Table:
    """A row per method, seed and epoch of the first task: the share in use, and the accuracy with it (Fig. 7)."""
    rows = tuple(
        {"method": label, "seed": seed, "epoch": epoch, "used": used, "valid_accuracy": right}
        for label, seed, run in _each(runs)
        if run.history
        for epoch, (used, right) in enumerate(zip(run.history[0].used, run.history[0].valid_accuracy, strict=False), 1)
    )
    columns = (
        *(_METHOD, _SEED, Column("epoch", "epoch", Kind.NUMBER)),
        *(Column("used", "in use", Kind.PERCENT), Column("valid_accuracy", "validation accuracy", Kind.PERCENT)),
    )
    return Table("compression", "Share in use and accuracy during the first task", columns, rows)


def sensitivity(runs: Runs) -> Table:
    """A row per value of the one setting in which the runs of a method differ: accuracy and forgetting (Fig. 4).

    Raises:
        InputError: no method was run with several values of one setting, or one differs in several settings.
    """
    configs: dict[str, list[Mapping[str, Any]]] = {}
    for _, _, run in _each(runs):
        configs.setdefault(run.method, []).append(run.config)
    varied = {key for of in configs.values() for key in of[0] if len({repr(one.get(key)) for one in of}) > 1}
    if len(varied) != 1:
        found = f"these differ in {', '.join(sorted(varied))}" if varied else "these do not differ"
        raise InputError(f"sensitivity is about runs that differ in one setting, such as s_max; {found}")
    key = varied.pop()
    by_label = {row["method"]: row for row in summary(runs).rows}
    rows = []
    for label, of in runs.by_label.items():
        run = next(iter(of.values()))
        if label != run.method:
            figures = {k: v for k, v in by_label[label].items() if k.startswith(("average", "forgetting"))}
            rows.append({"method": run.method, key: run.config[key], **figures})
    rows.sort(key=lambda row: (row["method"], row[key]))
    columns = (
        *(_METHOD, Column(key, key, Kind.NUMBER), Column("average_accuracy", "accuracy", Kind.PERCENT)),
        Column("forgetting", "forgetting", Kind.POINTS),
    )
    return Table("sensitivity", f"Sensitivity to {key}", columns, tuple(rows))


def is_constant(run: RunResult, task: int) -> bool:
    """Whether the outputs on a task stayed the same to the bit from when it was learned to the end."""
    column = [row[task].logits_sha256 for row in run.scores[task:]]
    return all(one == next_one for one, next_one in pairwise(column))


def _each(runs: Runs) -> Iterable[tuple[str, int, RunResult]]:
    return ((label, seed, run) for label in runs.labels for seed, run in runs.by_label[label].items())


def _matrix(run: RunResult) -> list[list[float]]:
    return [[score.accuracy for score in row] for row in run.scores]


def _forward(matrix: Sequence[Sequence[float]], alone: RunResult | None) -> float | None:
    if alone is None:
        return None
    return forward_transfer(matrix, [alone.scores[task][task].accuracy for task in range(len(matrix))])


def _in_use(capacity: Mapping[str, Any] | None) -> float | None:
    if capacity is None:
        return None
    share: float = capacity["weights"] if capacity["units"] is None else capacity["units"]
    return share


def _spread(key: str, values: Iterable[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation, as two values of a row; None if any value is missing."""
    known = [*values]
    if not known or any(value is None for value in known):
        return {key: None, f"{key}_sd": None}
    both = spread([value for value in known if value is not None])
    return {key: both.mean, f"{key}_sd": both.sd}
