"""Selection of entries: the largest of a tensor, a selection that gradients pass, and masked weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["apply_mask", "largest", "straight_through"]


def largest(values: Tensor, count: int) -> Tensor:
    """Choose a tensor's largest entries; of equal ones the first.

    Args:
        values: any shape.
        count: number of entries to choose, 0 up to all of them.

    Returns:
        Booleans of that shape, True at exactly ``count`` entries.

    Raises:
        ValueError: there are not that many entries.
    """
    flat = values.detach().flatten()
    if not 0 <= count <= len(flat):
        raise ValueError(f"{count} of {len(flat)} entries cannot be chosen")
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    least = flat.kthvalue(len(flat) - count + 1).values
    chosen = flat > least
    missing = count - int(chosen.sum())
    chosen[(flat == least).nonzero()[:missing, 0]] = True
    return chosen.view(values.shape)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, chosen: Tensor) -> Tensor:
        return chosen.to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(scores: Tensor, chosen: Tensor) -> Tensor:
    """Convert a choice to numbers 0 and 1 whose gradient reaches the scores unchanged.

    Args:
        scores: scores that the choice was made by.
        chosen: booleans of that shape.

    Returns:
        Numbers of the shape and type of the scores (Bengio, Léonard and Courville, 2013, arXiv:1308.3432).
    """
    return _StraightThrough.apply(scores, chosen)  # type: ignore[no-any-return, no-untyped-call]


def apply_mask(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Return a weight with 0 where its mask is off; a product with zero would keep infinities.

    Args:
        weight: any shape.
        mask: booleans of that shape; None keeps all entries.
    """
    return weight if mask is None else weight.masked_fill(~mask, 0.0)
