"""Metrics of a run, as pure functions of the matrix of its scores.

``matrix[t][τ]`` is the score on task τ after task t was learned, such as the accuracy; entries above the diagonal are
None. Where a smaller score is the better one, differences are taken the other way round: forgetting is what got worse.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "Matrix",
    "average_accuracy",
    "average_score",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "learning_accuracy",
]

Matrix = Sequence[Sequence[float | None]]
"""Rows of a square, lower triangular matrix; None above the diagonal."""


def average_accuracy(matrix: Matrix) -> float:
    """Compute the mean accuracy over all tasks after the last one: the mean of the last row.

    Raises:
        ValueError: the matrix is empty or a value is missing.
    """
    return average_score(matrix)


def average_score(matrix: Matrix) -> float:
    """Compute the mean score over all tasks after the last one, of whatever metric all have in common.

    Raises:
        ValueError: the matrix is empty or a value is missing.
    """
    last = _known(matrix, len(matrix) - 1)
    return sum(last) / len(last)


def forgetting(matrix: Matrix, *, larger_is_better: bool = True) -> float:
    """Compute the mean loss of accuracy since each task was learned: the mean over τ < T of ``A[τ][τ] − A[T][τ]``.

    Args:
        matrix: scores.
        larger_is_better: direction of the metric; where it is false, the loss is ``A[T][τ] − A[τ][τ]``.

    Returns:
        A difference of scores; 0 for a single task, negative if they became better afterwards.

    Raises:
        ValueError: the matrix is empty or a value is missing.
    """
    last = _known(matrix, len(matrix) - 1)
    drops = [_known(matrix, task)[task] - last[task] for task in range(len(matrix) - 1)]
    mean = sum(drops) / len(drops) if drops else 0.0
    return mean if larger_is_better else 0.0 - mean


def backward_transfer(matrix: Matrix, *, larger_is_better: bool = True) -> float:
    """Compute the effect of later tasks on earlier ones: forgetting with reversed sign (Lopez-Paz and Ranzato 2017)."""
    return 0.0 - forgetting(matrix, larger_is_better=larger_is_better)


def learning_accuracy(matrix: Matrix) -> float:
    """Compute the mean accuracy on every task right after learning it: the mean of the diagonal (Riemer et al., 2019).

    Raises:
        ValueError: the matrix is empty or a value is missing.
    """
    _known(matrix, len(matrix) - 1)
    diagonal = [_known(matrix, task)[task] for task in range(len(matrix))]
    return sum(diagonal) / len(diagonal)


def forward_transfer(matrix: Matrix, alone: Sequence[float], *, larger_is_better: bool = True) -> float:
    """Compute the effect of earlier tasks on later ones: the mean over τ > 1 of ``A[τ][τ]`` − accuracy when alone.

    Tasks have heads of their own, so that no task can be tested before it is learned; accuracy right after it is
    compared with that of a network that learned nothing else (the "intransigence" of Chaudhry et al., 2018, with the
    sign reversed and another reference).

    Args:
        matrix: accuracies.
        alone: accuracy on every task of a network of its own.
        larger_is_better: direction of the metric.

    Returns:
        A difference of scores, above 0 if earlier tasks helped; 0 for a single task.

    Raises:
        ValueError: the matrix is empty or a value is missing.
    """
    _known(matrix, len(matrix) - 1)
    gains = [_known(matrix, task)[task] - alone[task] for task in range(1, len(matrix))]
    mean = sum(gains) / len(gains) if gains else 0.0
    return mean if larger_is_better else 0.0 - mean


def _known(matrix: Matrix, row: int) -> list[float]:
    if not matrix:
        raise ValueError("the matrix has no rows")
    values = [value for value in matrix[row][: row + 1] if value is not None]
    if len(values) != row + 1:
        raise ValueError(f"row {row} of the matrix has missing values")
    return values
