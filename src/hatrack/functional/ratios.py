"""The forgetting ratio (Eq. 6)."""

from __future__ import annotations

__all__ = [
    "forgetting_ratio",
]


def forgetting_ratio(accuracy: float, random: float, joint: float) -> float:
    """Compute the forgetting ratio of a task (Eq. 6): ``ρ = (A − A_R) / (A_J − A_R) − 1``.

    Args:
        accuracy: accuracy of the method on a task, after later tasks.
        random: accuracy of a random classifier that knows the class shares.
        joint: accuracy of training on all the tasks so far at once.

    Returns:
        0 when the method is as good as joint training, −1 when it is as bad as chance, above 0 when it is better than
        joint training. Not a number when joint training is as good as chance. Where it is worse than chance, the ratio
        says nothing, though it is a number.
    """
    if joint == random:
        return float("nan")
    return (accuracy - random) / (joint - random) - 1.0
