"""Error of a run's figures by the choice of its test samples."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Iterable

from hatrack.experiments import RunResult, TaskSummary
from hatrack.experiments.statistics import error_of_mean_share, error_of_shares
from hatrack.objectives import ACCURACY
from hatrack.objectives.metrics import BALANCED_ACCURACY, EXACT_MATCH
from hatrack.streams import EvaluationPart
from hatrack.streams.own.streams import READ_WITH
from hatrack.train.scoring import Score

__all__ = ["Sampling", "drawn_share", "error_of_average", "error_of_forgetting", "sampling_of"]

OF_SAMPLES = (ACCURACY, EXACT_MATCH)
"""Metrics that are shares of the test samples, so that their error by the choice of these samples is known."""


class Sampling(enum.Enum):
    """Knowledge of the error by the choice of the test samples."""

    DRAWN = "every seed draws its own test samples, so that the spread of the seeds contains it"
    KNOWN = "all seeds are tested on the same samples, and it follows from their number, or was estimated from them"
    UNKNOWN = "all seeds are tested on the same samples, and it is not known"


def sampling_of(runs: Iterable[RunResult], learned: int) -> Sampling:
    """Return what is known of the error of the average scores of some runs.

    Args:
        runs: runs of the same tasks.
        learned: number of tasks learned.
    """
    those = [*runs]
    if all(drawn_share(run, learned) is not None for run in those):
        return Sampling.DRAWN
    known = all(error_of_average(run, learned) is not None for run in those)
    return Sampling.KNOWN if known else Sampling.UNKNOWN


def drawn_share(run: RunResult, learned: int) -> float | None:
    """Return the largest share of a task's samples that the seed of a run drew to test on.

    Args:
        run: the run.
        learned: number of tasks learned.

    Returns:
        The share, in (0, 1); None where that is not recorded of all tasks, or the data say what to test on.
    """
    tasks = run.tasks[:learned]
    if run.config.get("tested_on") == EvaluationPart.VALIDATION.value:
        return max(task.test / max(2, task.train + task.test) for task in tasks)
    shares = [share for task in tasks if (share := _drawn(run, task)) is not None]
    return max(shares) if len(shares) == len(tasks) else None


def error_of_average(run: RunResult, learned: int) -> float | None:
    """Return the standard error of the average score after the last task; None where it is not known.

    Args:
        run: the run.
        learned: number of tasks learned.
    """
    errors = [_error(run, task, score) for task, score in enumerate(run.scores[learned - 1])]
    return _root(errors, learned)


def error_of_forgetting(run: RunResult, learned: int) -> float | None:
    """Return the standard error of forgetting likewise; tasks whose outputs stayed the same to the bit have none.

    Args:
        run: the run.
        learned: number of tasks learned, 2 or more.
    """
    last = run.scores[learned - 1]
    both = [(task, run.scores[task][task], last[task]) for task in range(learned - 1)]
    changed = [(task, pair) for task, *pair in both if pair[0].logits_sha256 != pair[1].logits_sha256]
    return _root([_error(run, task, score) for task, pair in changed for score in pair], learned - 1)


def _drawn(run: RunResult, task: TaskSummary) -> float | None:
    """Return the share of a task's samples that the seed drew to test on.

    Earlier records have it only where a ``tasks.toml`` said it, which it cannot of files with test samples; a setting
    wins over that.
    """
    if task.test_drawn is not None:
        return task.test_drawn
    line = next((line for line in run.data if line.startswith(f"{task.name}: ")), "")
    said: float | None = json.loads(line.partition(READ_WITH)[2] or "{}").get("test_share")
    return None if said is None else run.config.get("test_share") or said


def _error(run: RunResult, task: int, score: Score) -> float | None:
    """Return the standard error of a score of a task.

    That of another share, such as F1, is never smaller than an accuracy's: leaving out samples of a score of 1 changes
    nothing.
    """
    summary = run.tasks[task]
    by_number = error_of_shares([score.value], [max(1, summary.test)]) if summary.metric.is_share else 0.0
    if summary.metric in OF_SAMPLES:
        return by_number
    if summary.metric == BALANCED_ACCURACY and summary.test_by_class:
        return error_of_mean_share(score.value, summary.test_by_class)
    return None if score.error is None else max(score.error, by_number)


def _root(errors: Iterable[float | None], tasks: int) -> float | None:
    """Return the standard error of a signed sum of scores, divided by a number of tasks."""
    squares = []
    for error in errors:
        if error is None:
            return None
        squares.append(error**2)
    return math.sqrt(math.fsum(squares)) / tasks
