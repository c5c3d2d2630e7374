"""Gates of an embedding (Eq. 1), and their gradient with what makes up for the annealing (section 2.5)."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "BELOW_FLUSH",
    "BELOW_TINY",
    "EMBEDDING_BOUND",
    "GATE_FLUSH",
    "SATURATION_BOUND",
    "Compensation",
    "GateFunction",
    "compensated_gate",
    "compensation_factor",
    "gate",
    "gate_factors",
    "gate_slope",
    "hard_attention",
]

EMBEDDING_BOUND = 6.0
"""Bound of embeddings, which are clamped to [-6, 6] after every step (the paper, section 2.5)."""

SATURATION_BOUND = 50.0
"""Bound of ``|s·e|`` inside the hyperbolic cosine of the compensation (the paper, section 2.5)."""

GATE_FLUSH = 1e-12
"""Smallest gate; gates below it are exactly zero.

A sigmoid at s = 400 gives values such as 1e-39, and a matrix product on such *denormal* numbers runs several times
slower on a CPU. At 1e-12 the product of two gates, which is what reaches a weight's gradient, is still a normal number.
"""


def _before(number: float, dtype: torch.dtype) -> float:
    """Return the last number of a type before a positive one, to compare "at least" with an operator for "above"."""
    exact = torch.tensor(number, dtype=dtype).double()
    # Half precision has no nextafter; all numbers below its smallest normal one are as far apart as the last two.
    step = exact - torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    if dtype is torch.float16:
        return max(0.0, float(step))
    return float(torch.nextafter(exact.to(dtype), torch.zeros((), dtype=dtype)))


_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

BELOW_FLUSH: Mapping[torch.dtype, float] = {dtype: _before(GATE_FLUSH, dtype) for dtype in _TYPES}
"""Number of a type just below :data:`GATE_FLUSH`, up to which gates are set to 0."""

BELOW_TINY: Mapping[torch.dtype, float] = {dtype: _before(torch.finfo(dtype).tiny, dtype) for dtype in _TYPES}
"""Number of a type just below its smallest normal one, up to which slopes are set to 0."""


class Compensation(enum.Enum):
    """Arithmetic by which an embedding's gradient makes up for the annealed scale (the paper, section 2.5)."""

    EXACT = "exact"
    """Formula of the paper in exact arithmetic: inside the bound the gate's slope is that of ``s_max · σ(e)``."""

    FLOAT32 = "float32"
    """Formula of the paper evaluated step by step, as in the authors' code: where ``σ(s·e)`` rounds to one, the
    gradient is lost, and fewer units change between on and off."""

    NONE = "none"
    """Plain derivative ``s · σ'(s·e)``, without compensation."""


class GateFunction(enum.Enum):
    """Function that turns a scaled embedding into attention.

    The paper uses the sigmoid and notes that others are possible. All of these rise from 0 to 1, are 1/2 at 0 with the
    sigmoid's slope there, 1/4, and treat both sides alike: ``f(−x) = 1 − f(x)``. So a unit is on where its embedding
    is positive, whichever is chosen.
    """

    SIGMOID = "sigmoid"
    """``1 / (1 + exp(−x))``."""

    HARD_SIGMOID = "hard-sigmoid"
    """``x/4 + 1/2``, limited to [0, 1]: exactly 0 or 1 outside (−2, 2)."""

    ARCTAN = "arctan"
    """``1/2 + arctan(π x / 4) / π``: far tails, which fall like 1/x."""

    SOFTSIGN = "softsign"
    """``1/2 + x / (2 (2 + |x|))``: the farthest tails."""

    STEP = "step"
    """0 or 1 at any scale, with the sigmoid's slope for a gradient (straight through)."""


def gate(e: Tensor, scale: float | Tensor, function: GateFunction = GateFunction.SIGMOID) -> Tensor:
    """Compute the attention of a task over units (Eq. 1): ``a = σ(s · e)``.

    Args:
        e: embedding, any shape.
        scale: the gate's scale s, > 0.
        function: the gate function σ.

    Returns:
        Attention in [0, 1], of the shape of ``e``; values below :data:`GATE_FLUSH` are exactly 0.
    """
    x = scale * e
    if function is GateFunction.HARD_SIGMOID:
        return (x / 4.0 + 0.5).clamp(0.0, 1.0)
    if function is GateFunction.ARCTAN:
        return torch.atan(x * (math.pi / 4.0)) / math.pi + 0.5
    if function is GateFunction.SOFTSIGN:
        return x / (2.0 * (2.0 + x.abs())) + 0.5
    if function is GateFunction.STEP:
        return hard_attention(e).to(e.dtype)
    a = torch.sigmoid(x)
    return torch.threshold(a, BELOW_FLUSH[a.dtype], 0.0)


def gate_slope(x: Tensor, function: GateFunction = GateFunction.SIGMOID) -> Tensor:
    """Compute the derivative of a gate function, at most 1/4.

    Args:
        x: scaled embedding ``s · e``, any shape.
        function: the gate function; the step's slope is the sigmoid's.

    Returns:
        Numbers of the shape of ``x``, none negative.
    """
    if function is GateFunction.HARD_SIGMOID:
        return torch.where(x.abs() < 2.0, 0.25, 0.0).to(x.dtype)
    if function is GateFunction.ARCTAN:
        return 0.25 / (1.0 + (x * (math.pi / 4.0)).square())
    if function is GateFunction.SOFTSIGN:
        return 1.0 / (2.0 + x.abs()).square()
    sigma = torch.sigmoid(x)
    return sigma * (1.0 - sigma)


def hard_attention(e: Tensor) -> Tensor:
    """Compute the gate's limit for an infinite scale: the units that a task uses.

    Args:
        e: embedding, any shape.

    Returns:
        Booleans of the shape of ``e``, True where ``e > 0``, that is where ``σ(s·e) > 1/2`` for every s.
    """
    return e > 0


def compensation_factor(e: Tensor, scale: float | Tensor, s_max: float) -> Tensor:
    """Compute the factor of the gradient of an embedding (the paper, section 2.5).

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
    """Compute the derivative of the gate times the compensation factor, in closed form and without overflow.

    The gate's slope is ``s / (2 [cosh(s e) + 1])``, so that inside the bound the product is ``s_max · σ(e)(1 − σ(e))``
    and outside it decays as ``[cosh(50) + 1] / [cosh(s e) + 1]``, which is ``exp(50 − |s e|)`` to 21 digits.
    """
    sigma = torch.sigmoid(e)
    lowest, floor = _lowest_decay(sigma.dtype)
    decay = (scale * e).abs_().neg_().add_(SATURATION_BOUND).clamp_(lowest, 0.0).exp_()
    decay = torch.threshold(decay, floor, 0.0)
    slope = (s_max * sigma).mul_(1.0 - sigma).mul_(decay)
    return torch.threshold(slope, BELOW_TINY[slope.dtype], 0.0)


def _lowest_decay(dtype: torch.dtype) -> tuple[float, float]:
    """Return the least exponent of a decay, and the decay up to which it is set to 0.

    Denormal numbers are several times slower, and so are exponentials that would give them: these are clamped a little
    above, and then set to 0. The margin is wider than rounding, narrower than the change by a digit of e.
    """
    numbers = torch.finfo(dtype)
    lowest = math.log(numbers.tiny) + 0.5
    return lowest, math.exp(lowest) * (1.0 + 4.0 * numbers.eps)


def gate_factors(
    e: Tensor,
    a: Tensor,
    scale: float | Tensor,
    s_max: float,
    compensation: Compensation,
    function: GateFunction = GateFunction.SIGMOID,
) -> tuple[Tensor, ...]:
    """Compute the factors by which a compensated gate multiplies a gradient, one after the other.

    Args:
        e: embedding, any shape.
        a: its gate, of that shape.
        scale: the gate's scale s.
        s_max: largest scale.
        compensation: which arithmetic the gradient follows.
        function: the gate function.

    Returns:
        One or two tensors of that shape.
    """
    sigmoid = function is GateFunction.SIGMOID
    if compensation is Compensation.EXACT:
        return (_compensated_slope(e, scale, s_max) if sigmoid else s_max * gate_slope(e, function),)
    slope = scale * a * (1.0 - a) if sigmoid else scale * gate_slope(scale * e, function)
    return (slope,) if compensation is Compensation.NONE else (slope, compensation_factor(e, scale, s_max))


class _CompensatedGate(torch.autograd.Function):
    # One method, not two: with a setup_context of its own torch looks up the signature of forward at every call.
    @staticmethod
    def forward(
        ctx: Any, e: Tensor, scale: float | Tensor, s_max: float, compensation: Compensation, function: GateFunction
    ) -> Tensor:
        ctx.scale, ctx.s_max, ctx.compensation, ctx.function = scale, s_max, compensation, function
        a = gate(e, scale, function)
        ctx.save_for_backward(e, a)
        return a

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        e, a = ctx.saved_tensors
        plain = gradient
        for factor in gate_factors(e, a, ctx.scale, ctx.s_max, ctx.compensation, ctx.function):
            plain = plain * factor
        return plain, None, None, None, None


def compensated_gate(
    e: Tensor,
    scale: float | Tensor,
    s_max: float,
    compensation: Compensation = Compensation.EXACT,
    function: GateFunction = GateFunction.SIGMOID,
) -> Tensor:
    """Compute the gate of Eq. 1 with a gradient that is compensated for the annealing (the paper, section 2.5).

    Without compensation the embeddings hardly move: a large scale leaves them a gradient only in a narrow band around
    zero, a small one a gradient that is too weak. Doing it here, in the backward pass of the gate, leaves nothing to be
    repaired after ``loss.backward()``.

    Args:
        e: embedding, any shape, within [-6, 6].
        scale: the gate's present scale s, > 0; a number or a 0-dimensional tensor.
        s_max: largest scale, > 0.
        compensation: which arithmetic the gradient follows; the float32 formula holds for the sigmoid alone.
        function: the gate function.

    Returns:
        Attention in [0, 1], of the shape of ``e``. Its gradient with respect to ``e`` is not that of a sigmoid: it is
        ``s_max σ(e)(1 − σ(e))`` where ``|s·e| ≤ 50`` and decays as ``exp(50 − |s·e|)`` outside. For other gate
        functions, which need no such limit, it is ``s_max f'(e)`` everywhere.

    Raises:
        ValueError: the float32 compensation was asked for with a gate function other than the sigmoid.
    """
    if compensation is Compensation.FLOAT32 and function is not GateFunction.SIGMOID:
        raise ValueError(
            f"the float32 compensation is the sigmoid's; take exact or none with the {function.value} gate"
        )
    return _CompensatedGate.apply(e, scale, s_max, compensation, function)  # type: ignore[no-any-return, no-untyped-call]
