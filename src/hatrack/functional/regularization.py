"""Regularization of attention: what a mask costs (Eqs. 4 and 5)."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "Regularization",
    "attention_regularization",
    "layer_prices",
    "layered_regularization",
    "share_taken",
    "unweighted_regularization",
]


class Regularization(enum.Enum):
    """Kind of cost for the use of units."""

    WEIGHTED_L1 = "weighted-l1"
    """Share of free units (Eq. 5): units that earlier tasks use cost nothing."""

    LAYERED_L1 = "layered-l1"
    """The same, but for units of narrow layers, which cost more: layers weigh by the square root of their free units.

    Eq. 5 counts all units alike. Where layers differ in width, as in a convolutional network, the first ones are full
    after a few tasks, while there is much room behind them.
    """

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


def layered_regularization(attention: Sequence[Tensor], cumulative: Sequence[Tensor] | None = None) -> Tensor:
    """Compute the share of the free units that a task uses, where narrow layers count for more than their units.

    ``R = Σ_l √n_l r_l / Σ_l √n_l`` over the layers, with the share ``r_l`` of a layer's free units that the task uses
    (Eq. 5, of that layer alone) and their number ``n_l``. A unit of a layer costs ``1/√n_l``: four times as much where
    there are a sixteenth of the units. With layers of one width it is Eq. 5.

    Args:
        attention: ``a^t``, one tensor per layer.
        cumulative: ``a^{<t}`` likewise (numbers in [0, 1] or booleans); None before the first task.

    Returns:
        A scalar in [0, 1]; 0 when no unit is free.
    """
    before = [torch.zeros_like(a) for a in attention] if cumulative is None else cumulative
    prices = [layer_prices(1.0 - b.to(a.dtype)) for a, b in zip(attention, before, strict=True)]
    taken = [torch.dot(a.flatten(), price.flatten()) for a, price in zip(attention, prices, strict=True)]
    return share_taken(torch.stack(taken).sum(), torch.stack([price.sum() for price in prices]).sum())


def layer_prices(free: Tensor) -> Tensor:
    """Compute what the units of a layer cost in :func:`layered_regularization`, up to a factor common to all layers.

    Args:
        free: ``1 − a^{<t}`` of the layer's units, any shape.

    Returns:
        Numbers of that shape, whose sum is the square root of the number of free units.
    """
    number = free.sum()
    return free / torch.where(number > 0, number, 1.0).sqrt()


def share_taken(taken: Tensor, free: Tensor) -> Tensor:
    """Divide a sum over free units by their number; 0 if no unit is free.

    Args:
        taken: sum of the attention over free units, a scalar.
        free: number of free units, a scalar.
    """
    return taken / torch.where(free > 0, free, 1.0)  # dividing by next to nothing, gradients would overflow to NaN


def unweighted_regularization(attention: Tensor, kind: Regularization) -> Tensor:
    """Compute the share of all units that a task uses, also of units in use before: ``Σ a / N`` or ``Σ a² / N``.

    Args:
        attention: ``a^t``, over all units.
        kind: :attr:`Regularization.L1` or :attr:`Regularization.L2`.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: a weighted kind was asked for, which needs the attention of earlier tasks.
    """
    if kind not in (Regularization.L1, Regularization.L2):
        raise ValueError(
            "weighted kinds are attention_regularization and layered_regularization, which know the earlier tasks"
        )
    return (attention if kind is Regularization.L1 else attention.square()).mean()
