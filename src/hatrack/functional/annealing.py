"""Annealing of gates over an epoch (Eq. 3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = [
    "annealed_scale",
    "batch_progress",
]


def batch_progress(batch: int, batches: int) -> float:
    """Compute the position of a batch within its epoch, from 0 (first) to 1 (last).

    Args:
        batch: index of the batch, counted from 0.
        batches: number of batches in the epoch, at least 1.

    Returns:
        ``batch / (batches - 1)``, and 1.0 when the epoch is a single batch.

    Raises:
        ValueError: the index does not lie in ``[0, batches)``.
    """
    if not 0 <= batch < batches:
        raise ValueError(f"batch {batch} is not one of {batches} batches (counted from 0)")
    return batch / (batches - 1) if batches > 1 else 1.0


def annealed_scale(progress: float | Tensor, s_max: float) -> Any:
    """Compute the scale of the gate at a point of the epoch (Eq. 3): ``1/s_max + (s_max − 1/s_max) · progress``.

    Args:
        progress: position within the epoch, in [0, 1]; a number or a 0-dimensional tensor.
        s_max: largest scale, > 0; the paper uses 400 and advises 25 to 800.

    Returns:
        The scale, of the type of ``progress``: ``1/s_max`` at 0 and ``s_max`` at 1.

    Raises:
        ValueError: ``progress`` is a number outside [0, 1], or ``s_max`` is not positive and finite.
    """
    if not 0.0 < s_max < float("inf"):
        raise ValueError(f"s_max must be positive and finite, not {s_max}")
    if not isinstance(progress, Tensor) and not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must lie in [0, 1], not {progress}")
    return 1.0 / s_max + (s_max - 1.0 / s_max) * progress
