"""Figures of a run, as pure functions of its accuracy matrix.

``matrix[t][τ]`` is the accuracy on task τ after task t was learned; entries above the diagonal are None.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Matrix", "average_accuracy", "backward_transfer", "forgetting"]

Matrix = Sequence[Sequence[float | None]]
"""Rows of a square, lower triangular matrix; None above the diagonal."""


def average_accuracy(matrix: Matrix) -> float:
    """Mean accuracy over all tasks after the last one: the mean of the last row.

    Raises:
        ValueError: the matrix is empty or a value is missing.
    """
    last = _known(matrix, len(matrix) - 1)
    return sum(last) / len(last)


def forgetting(matrix: Matrix) -> float:
    """Mean loss of accuracy since each task was learned: the mean over τ < T of ``A[τ][τ] − A[T][τ]``.

    Returns:
        A share; 0 for a single task, negative if accuracy grew afterwards.

    Raises:
        ValueError: the matrix is empty or a value is missing.
    """
    last = _known(matrix, len(matrix) - 1)
    drops = [_known(matrix, task)[task] - last[task] for task in range(len(matrix) - 1)]
    return sum(drops) / len(drops) if drops else 0.0


def backward_transfer(matrix: Matrix) -> float:
    """What learning later tasks did to earlier ones: forgetting with the sign reversed (Lopez-Paz and Ranzato 2017)."""
    return 0.0 - forgetting(matrix)


def _known(matrix: Matrix, row: int) -> list[float]:
    if not matrix:
        raise ValueError("the matrix has no rows")
    values = [value for value in matrix[row][: row + 1] if value is not None]
    if len(values) != row + 1:
        raise ValueError(f"row {row} of the matrix has missing values")
    return values
