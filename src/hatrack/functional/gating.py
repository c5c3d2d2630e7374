"""The gate (the HAT paper, Eq. 1) and the gradient that reaches an embedding through it (section 2.5)."""

from __future__ import annotations

import enum
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "EMBEDDING_BOUND",
    "GATE_FLUSH",
    "SATURATION_BOUND",
    "Compensation",
    "compensated_gate",
    "compensation_factor",
    "gate",
    "hard_attention",
]

EMBEDDING_BOUND = 6.0
"""Embeddings are clamped to [-6, 6] after every step (the paper, section 2.5)."""

SATURATION_BOUND = 50.0
"""The compensation limits ``|s·e|`` to 50 inside its hyperbolic cosine (the paper, section 2.5)."""

GATE_FLUSH = 1e-12
"""Gates below this are exactly zero.

A sigmoid at s = 400 gives values such as 1e-39, and a matrix product on such *denormal* numbers runs several times
slower on a CPU. At 1e-12 the product of two gates, which is what reaches a weight's gradient, is still a normal number.
"""


class Compensation(enum.Enum):
    """How the gradient that reaches an embedding makes up for the annealed scale (the paper, section 2.5)."""

    EXACT = "exact"
    """The paper's formula in exact arithmetic: inside the bound the gate's slope is that of ``s_max · σ(e)``."""

    FLOAT32 = "float32"
    """The same formula evaluated step by step, as the authors' code does: where ``σ(s·e)`` rounds to one, the gradient
    is lost, and fewer units change their mind."""

    NONE = "none"
    """No compensation: the plain derivative ``s · σ'(s·e)``."""


def gate(e: Tensor, scale: float | Tensor) -> Tensor:
    """Attention of a task over units (Eq. 1): ``a = σ(s · e)``.

    Args:
        e: embedding, any shape.
        scale: the gate's scale s, > 0.

    Returns:
        Attention in [0, 1], of the shape of ``e``; values below :data:`GATE_FLUSH` are exactly 0.
    """
    a = torch.sigmoid(scale * e)
    return torch.where(a < GATE_FLUSH, 0.0, a)


def hard_attention(e: Tensor) -> Tensor:
    """The gate's limit for an infinite scale: which units a task uses.

    Args:
        e: embedding, any shape.

    Returns:
        Booleans of the shape of ``e``, True where ``e > 0``, that is where ``σ(s·e) > 1/2`` for every s.
    """
    return e > 0


def compensation_factor(e: Tensor, scale: float | Tensor, s_max: float) -> Tensor:
    """What the gradient of an embedding is multiplied by (the paper, section 2.5).

    ``s_max [cosh(s e) + 1] / (s [cosh(e) + 1])`` with ``|s e|`` limited to 50 inside the cosine.

    Args:
        e: embedding, any shape, within [-6, 6].
        scale: the scale s at which the gradient was taken, > 0.
        s_max: largest scale, > 0.

    Returns:
        Positive factors of the shape of ``e``.
    """
    limited = (scale * e).clamp(-SATURATION_BOUND, SATURATION_BOUND)
    return s_max * (torch.cosh(limited) + 1.0) / (scale * (torch.cosh(e) + 1.0))


def _compensated_slope(e: Tensor, scale: float | Tensor, s_max: float) -> Tensor:
    """Derivative of the gate times the compensation factor, in closed form and without overflow.

    The gate's slope is ``s / (2 [cosh(s e) + 1])``, so that inside the bound the product is ``s_max · σ(e)(1 − σ(e))``
    and outside it decays as ``[cosh(50) + 1] / [cosh(s e) + 1]``, which is ``exp(50 − |s e|)`` to 21 digits.
    """
    sigma = torch.sigmoid(e)
    decay = torch.exp(-torch.relu((scale * e).abs() - SATURATION_BOUND))
    slope = s_max * sigma * (1.0 - sigma) * decay
    return torch.where(slope < torch.finfo(slope.dtype).tiny, 0.0, slope)  # denormal numbers are slow


class _CompensatedGate(torch.autograd.Function):
    @staticmethod
    def forward(e: Tensor, scale: float | Tensor, s_max: float, compensation: Compensation) -> Tensor:
        return gate(e, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        e, ctx.scale, ctx.s_max, ctx.compensation = inputs
        ctx.save_for_backward(e, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        e, a = ctx.saved_tensors
        if ctx.compensation is Compensation.EXACT:
            return gradient * _compensated_slope(e, ctx.scale, ctx.s_max), None, None, None
        plain = gradient * ctx.scale * a * (1.0 - a)
        if ctx.compensation is Compensation.FLOAT32:
            plain = plain * compensation_factor(e, ctx.scale, ctx.s_max)
        return plain, None, None, None


def compensated_gate(
    e: Tensor, scale: float | Tensor, s_max: float, compensation: Compensation = Compensation.EXACT
) -> Tensor:
    """The gate of Eq. 1 whose gradient is already compensated for the annealing (the paper, section 2.5).

    Without compensation the embeddings hardly move: a large scale leaves them a gradient only in a narrow band around
    zero, a small one a gradient that is too weak. Doing it here, in the backward pass of the gate, leaves nothing to be
    repaired after ``loss.backward()``.

    Args:
        e: embedding, any shape, within [-6, 6].
        scale: the gate's present scale s, > 0; a number or a 0-dimensional tensor.
        s_max: largest scale, > 0.
        compensation: which arithmetic the gradient follows.

    Returns:
        Attention in [0, 1], of the shape of ``e``. Its gradient with respect to ``e`` is not that of a sigmoid: it is
        ``s_max σ(e)(1 − σ(e))`` where ``|s·e| ≤ 50`` and decays as ``exp(50 − |s·e|)`` outside.
    """
    return _CompensatedGate.apply(e, scale, s_max, compensation)  # type: ignore[no-any-return, no-untyped-call]
