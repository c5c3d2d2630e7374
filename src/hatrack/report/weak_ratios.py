"""Notes on forgetting ratios that say little, since joint training, by whose lead they divide, has hardly one."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hatrack.experiments import RunResult
from hatrack.objectives import ACCURACY, Metric

__all__ = ["hardly_better", "weak_ratios"]

LEAST_LEAD = 0.05
"""Lead below which ρ is more than twenty times the difference that it measures: a point of accuracy is 0.2 of ρ."""

_ERRORS = 2.0
"""Standard errors of a lead below which it may be chance, and even its sign with it."""


def hardly_better(joint: float, random: float, samples: int, metric: Metric) -> bool:
    """Return whether joint training is so little better than guessing that dividing by it says little.

    Args:
        joint: score of joint training.
        random: score of guessing.
        samples: number of test samples, at least 1.
        metric: what the scores are. A lead is hardly one below 0.05 (of the error of guessing, where less is better),
            and a lead of accuracies below two standard errors of a difference of two shares of the samples.
    """
    lead = metric.gain(joint, random)
    if metric != ACCURACY:
        return lead < LEAST_LEAD * (1.0 if metric.larger_is_better else abs(random))
    error = math.sqrt(sum(share * (1.0 - share) for share in (joint, random)) / samples)
    return lead < max(LEAST_LEAD, _ERRORS * error)


def weak_ratios(pairs: Iterable[tuple[RunResult, RunResult]], *, last: bool = False) -> str:
    """Say on which tasks ρ says little, and why; nothing where there are none.

    Args:
        pairs: the runs of joint training and of guessing with the same seed.
        last: whether this is about ρ after the last task alone.
    """
    tasks: set[int] = set()
    for joint, random in pairs:
        rows = [*zip(joint.scores, random.scores, strict=False)]
        for reached, guessed in rows[-1:] if last else rows:
            for number, (task, one, other) in enumerate(zip(joint.tasks, reached, guessed, strict=False), 1):
                if hardly_better(one.value, other.value, max(1, task.test), task.metric):
                    tasks.add(number)
    if not tasks:
        return ""
    named = f"task{'s' * (len(tasks) > 1)} {', '.join(map(str, sorted(tasks)))}"
    return (
        f"on {named} joint training is hardly better than guessing; ρ divides by what it is better by, says little "
        "there, and may have any size"
    )
