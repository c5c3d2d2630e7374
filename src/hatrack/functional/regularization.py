"""Regularization of the units that a task uses (the HAT paper, Eq. 5)."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Regularization", "attention_regularization", "share_taken", "unweighted_regularization"]


class Regularization(enum.Enum):
    """Kind of cost for the use of units."""

    WEIGHTED_L1 = "weighted-l1"
    """Share of free units (Eq. 5): units that earlier tasks use cost nothing."""

    L1 = "l1"
    """Mean of the attention over all units, used before or not (the HAT paper, appendix D)."""

    L2 = "l2"
    """Mean of the squared attention over all units (the HAT paper, appendix D)."""


def attention_regularization(
    attention: Tensor | Sequence[Tensor], cumulative: Tensor | Sequence[Tensor] | None = None
) -> Tensor:
    """Compute the share of the free units that a task uses: the attention-weighted L1 term R (Eq. 5).

    ``R = Σ a (1 − a^{<t}) / Σ (1 − a^{<t})``, both sums over the units of all layers together.

    Args:
        attention: ``a^t``, one tensor over all units, or one per layer.
        cumulative: ``a^{<t}`` likewise (numbers in [0, 1] or booleans); None before the first task.

    Returns:
        A scalar in [0, 1]; 0 when no unit is free.
    """
    current = [attention] if isinstance(attention, Tensor) else list(attention)
    if cumulative is None:
        before = [torch.zeros_like(a) for a in current]
    else:
        before = [cumulative] if isinstance(cumulative, Tensor) else list(cumulative)
    free = torch.cat([1.0 - b.to(a.dtype).flatten() for a, b in zip(current, before, strict=True)])
    taken = torch.dot(torch.cat([a.flatten() for a in current]), free)
    return share_taken(taken, free.sum())


def share_taken(taken: Tensor, free: Tensor) -> Tensor:
    """Divide a sum over free units by their number; 0 if no unit is free.

    Args:
        taken: sum of the attention over free units, a scalar.
        free: number of free units, a scalar.
    """
    return torch.where(free > 0, taken / free.clamp_min(torch.finfo(free.dtype).tiny), 0.0)


def unweighted_regularization(attention: Tensor, kind: Regularization) -> Tensor:
    """Compute the share of all units that a task uses, also of units in use before: ``Σ a / N`` or ``Σ a² / N``.

    Args:
        attention: ``a^t``, over all units.
        kind: :attr:`Regularization.L1` or :attr:`Regularization.L2`.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: the weighted kind was asked for, which needs the attention of earlier tasks.
    """
    if kind is Regularization.WEIGHTED_L1:
        raise ValueError("the weighted kind is attention_regularization, which knows the earlier tasks")
    return (attention if kind is Regularization.L1 else attention.square()).mean()
