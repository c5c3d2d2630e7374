"""What earlier tasks hold of the gradient of a later one (the HAT paper, section 2.3 and Eq. 2)."""

from __future__ import annotations

import enum

import torch
from torch import Tensor

__all__ = ["Conditioning", "condition_gradient", "cumulative_attention"]


class Conditioning(enum.Enum):
    """Which entries of a weight earlier tasks hold."""

    CUMULATIVE = "cumulative"
    """Those between units that any tasks use (Eq. 2): an entry is held although one task uses only its one end, and
    another task only its other end."""

    PER_TASK = "per-task"
    """Those between units that one and the same task uses: exact too, and more entries stay free."""


def cumulative_attention(previous: Tensor | None, current: Tensor) -> Tensor:
    """Attention of all tasks so far: the element-wise maximum ``a^{≤t} = max(a^t, a^{≤t−1})`` (the paper, section 2.3).

    Args:
        previous: ``a^{≤t−1}``, or None before the first task, which stands for zeros.
        current: ``a^t``, numbers in [0, 1] or booleans, of the shape of ``previous``.

    Returns:
        ``a^{≤t}``, of the shape and type of ``current``.
    """
    return current if previous is None else torch.maximum(previous, current)


def condition_gradient(gradient: Tensor, *attentions: Tensor) -> Tensor:
    """Gradient of a parameter with the share that earlier tasks hold taken out (Eq. 2).

    ``g' = [1 − min(a_out, a_in)] g``. Where the minimum is one the result is exactly zero, also if the gradient is
    infinite or not a number, which a product with zero would not be.

    Args:
        gradient: gradient of the parameter.
        *attentions: cumulative attentions, each broadcastable to the gradient's shape, numbers in [0, 1]: output side
            ``(O, 1)`` and input side ``(1, I)`` for a dense weight, the output side alone for a bias. A side that has
            no attention, such as a network's input, is left out, which is what a one there would mean.

    Returns:
        The conditioned gradient, of the shape of ``gradient``.

    Raises:
        ValueError: no attention was given.
    """
    if not attentions:
        raise ValueError("conditioning needs at least one attention")
    held = attentions[0]
    for attention in attentions[1:]:
        held = torch.minimum(held, attention)
    return torch.where(held == 1, 0.0, gradient * (1 - held.to(gradient.dtype)))
