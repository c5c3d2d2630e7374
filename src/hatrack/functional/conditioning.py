"""Conditioning of gradients: what earlier tasks hold (Eq. 2)."""

from __future__ import annotations

import enum

import torch
from torch import Tensor

__all__ = [
    "Conditioning",
    "adaptive_freedom",
    "condition_gradient",
    "cumulative_attention",
    "faded_attention",
]


class Conditioning(enum.Enum):
    """Rule for which entries of a weight earlier tasks freeze."""

    CUMULATIVE = "cumulative"
    """Entries between units that any tasks use (Eq. 2), even if one task uses one end and another task the other."""

    PER_TASK = "per-task"
    """Entries between units that one and the same task uses: exact too, and more entries stay free."""


def cumulative_attention(previous: Tensor | None, current: Tensor) -> Tensor:
    """Compute the attention of all tasks so far: ``a^{≤t} = max(a^t, a^{≤t−1})``, by element (the paper, section 2.3).

    Args:
        previous: ``a^{≤t−1}``, or None before the first task, which stands for zeros.
        current: ``a^t``, numbers in [0, 1] or booleans, of the shape of ``previous``.

    Returns:
        ``a^{≤t}``, of the shape and type of ``current``.
    """
    return current if previous is None else torch.maximum(previous, current)


def condition_gradient(gradient: Tensor, *attentions: Tensor) -> Tensor:
    """Take the share that earlier tasks freeze out of the gradient of a parameter (Eq. 2).

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


def faded_attention(previous: Tensor | None, current: Tensor, keep: float) -> Tensor:
    """Compute cumulative attention of which every later task leaves a share: ``max(a^t, keep · a^{≤t−1})``.

    The HAT paper speaks of "a more online mode" in which the oldest tasks are forgotten for the sake of new ones, and
    gives no formula; this one is hatrack's own.

    Args:
        previous: ``a^{≤t−1}``, numbers in [0, 1], or None before the first task.
        current: ``a^t``, numbers in [0, 1] or booleans, of the shape of ``previous``.
        keep: share of a task's attention that is left after one more task, in [0, 1]; 1 forgets nothing.

    Returns:
        Numbers in [0, 1], of the shape of ``current``.
    """
    numbers = current.float() if current.dtype == torch.bool else current
    return numbers if previous is None else torch.maximum(numbers, keep * previous.to(numbers.dtype))


def adaptive_freedom(uses: Tensor, rate: float | Tensor) -> Tensor:
    """Compute the share of a gradient that AdaHAT leaves, by the number of tasks on the weight: ``r / (n + r)``.

    Wang et al., *AdaHAT: adaptive hard attention to the task in task-incremental learning*, ECML PKDD 2024. HAT would
    leave nothing wherever n is 1 or more.

    Args:
        uses: n, number of earlier tasks that use the weight's ends: the smaller number of the two; any shape.
        rate: r > 0, ``α / (ε + R)``: a number, or a tensor that fits the shape of ``uses``.

    Returns:
        Factors in (0, 1]: 1 where no task relies on the weight.
    """
    return rate / (uses + rate)
