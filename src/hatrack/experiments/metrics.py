"""Metrics of a run, as pure functions of its accuracy matrix.

``matrix[t][τ]`` is the accuracy on task τ after task t was learned; entries above the diagonal are None.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Matrix", "average_accuracy", "backward_transfer", "forgetting", "forward_transfer", "learning_accuracy"]

Matrix = Sequence[Sequence[float | None]]
"""Rows of a square, lower triangular matrix; None above the diagonal."""


def average_accuracy(matrix: Matrix) -> float:
    """Compute the mean accuracy over all tasks after the last one: the mean of the last row.

    Raises:
        ValueError: the matrix is empty or a value is missing.
    """
    last = _known(matrix, len(matrix) - 1)
    return sum(last) / len(last)


def forgetting(matrix: Matrix) -> float:
    """Compute the mean loss of accuracy since each task was learned: the mean over τ < T of ``A[τ][τ] − A[T][τ]``.

    Returns:
        A share; 0 for a single task, negative if accuracy grew afterwards.

    Raises:
        ValueError: the matrix is empty or a value is missing.
    """
    last = _known(matrix, len(matrix) - 1)
    drops = [_known(matrix, task)[task] - last[task] for task in range(len(matrix) - 1)]
    return sum(drops) / len(drops) if drops else 0.0


def backward_transfer(matrix: Matrix) -> float:
    """Compute the effect of later tasks on earlier ones: forgetting with reversed sign (Lopez-Paz and Ranzato 2017)."""
    return 0.0 - forgetting(matrix)


def learning_accuracy(matrix: Matrix) -> float:
    """Compute the mean accuracy on every task right after learning it: the mean of the diagonal (Riemer et al., 2019).

    Raises:
        ValueError: the matrix is empty or a value is missing.
    """
    _known(matrix, len(matrix) - 1)
    diagonal = [_known(matrix, task)[task] for task in range(len(matrix))]
    return sum(diagonal) / len(diagonal)


def forward_transfer(matrix: Matrix, alone: Sequence[float]) -> float:
    """Compute the effect of earlier tasks on later ones: the mean over τ > 1 of ``A[τ][τ]`` − accuracy when alone.

    Tasks have heads of their own, so that no task can be tested before it is learned; accuracy right after it is
    compared with that of a network that learned nothing else (the "intransigence" of Chaudhry et al., 2018, with the
    sign reversed and another reference).

    Args:
        matrix: accuracies.
        alone: accuracy on every task of a network of its own.

    Returns:
        A difference of shares; 0 for a single task.

    Raises:
        ValueError: the matrix is empty or a value is missing.
    """
    _known(matrix, len(matrix) - 1)
    gains = [_known(matrix, task)[task] - alone[task] for task in range(1, len(matrix))]
    return sum(gains) / len(gains) if gains else 0.0


def _known(matrix: Matrix, row: int) -> list[float]:
    if not matrix:
        raise ValueError("the matrix has no rows")
    values = [value for value in matrix[row][: row + 1] if value is not None]
    if len(values) != row + 1:
        raise ValueError(f"row {row} of the matrix has missing values")
    return values
