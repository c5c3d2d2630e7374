"""Weights under gates of their own, in few passes over memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hatrack.functional.blocks import as_numbers, blocks, empty_like, spare_blocks
from hatrack.functional.gates import BELOW_FLUSH, BELOW_TINY, SATURATION_BOUND, Compensation, gate_factors

__all__ = ["gated_weight"]

_NEVER_DENORMAL = 260.0
"""Largest scale above which no compensated slope is denormal: up to the bound of embeddings ``σ(1 − σ)`` is at least
1/406, and a decay that is not 0 is above twice the smallest normal number."""

_BITS = math.log2(math.e)
"""Powers of 2 to a power of e."""

_CLOSED, _OPEN = -30.0, 50.0
"""Scaled embeddings below which a gate is flushed to 0, and above which it is exactly 1, in all types. Beyond them a
sigmoid meets denormal numbers on its way, and takes four times as long."""


class _GatedWeight(torch.autograd.Function):
    """Function that saves its inputs and the gates, all of which stay as they are in a backward pass.

    So the product and the cost may be differentiated one after the other.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        e: Tensor,
        free: Tensor | None,
        scale: float,
        s_max: float,
        compensation: Compensation,
        new: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        ctx.weight, ctx.e, ctx.free = weight, e, free
        ctx.scale, ctx.s_max, ctx.compensation, ctx.new = scale, s_max, compensation, new
        ctx.versions = weight._version, e._version
        ctx.set_materialize_grads(False)
        product, costs, spare = new(weight), [], spare_blocks(e, 2)
        ctx.gates = new(e) if any(ctx.needs_input_grad) else None
        for w, values, counted, out, gates in blocks(weight, e, free, out=[product, ctx.gates]):
            assert w is not None
            assert values is not None
            x, other = (memory[: len(values)] for memory in spare)
            a = _gate_into(x if gates is None else gates, torch.mul(values, scale, out=x))
            torch.mul(w, a.to(w.dtype), out=out)
            costs.append(a.sum() if counted is None else torch.dot(a, as_numbers(counted, other)))
        return product, torch.stack(costs).sum() if costs else e.new_zeros(())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_product: Tensor | None, of_cost: Tensor | None) -> tuple[Tensor | None, ...]:
        if (ctx.weight._version, ctx.e._version) != ctx.versions:
            raise RuntimeError("a weight or its embedding was modified in place between the forward and backward pass")
        weight, e, wants_weight = ctx.weight, ctx.e, ctx.needs_input_grad[0] and of_product is not None
        of_weight = ctx.new(weight) if wants_weight else None
        of_e = ctx.new(e) if ctx.needs_input_grad[1] else None
        in_place = ctx.compensation is Compensation.EXACT and weight.dtype == e.dtype
        spare = spare_blocks(e, 2)
        for w, values, counted, gradient, a, for_w, for_e in blocks(
            weight, e, ctx.free, of_product, ctx.gates, out=[of_weight, of_e]
        ):
            assert w is not None
            assert values is not None
            assert a is not None
            if for_w is not None and gradient is not None:
                torch.mul(gradient, a.to(w.dtype), out=for_w)
            if for_e is None:
                continue
            x, slope = (memory[: len(values)] for memory in spare)
            if in_place:
                _slope_into(slope, values, x, ctx.scale, ctx.s_max)
                numbers = None if counted is None or of_cost is None else as_numbers(counted, x)
                _of_embedding_into(for_e, slope, x, w, gradient, numbers, of_cost)
                continue
            factors = gate_factors(values, a, ctx.scale, ctx.s_max, ctx.compensation)
            parts = [] if gradient is None else [gradient * w]
            if of_cost is not None:
                parts.append(of_cost.expand_as(a) if counted is None else of_cost * as_numbers(counted, x))
            of_gates = [_times(part.to(a.dtype), factors) for part in parts]
            torch.add(*of_gates, out=for_e) if len(of_gates) == 2 else for_e.copy_(of_gates[0] if of_gates else 0.0 * a)
        return of_weight, of_e, None, None, None, None, None


def _gate_into(a: Tensor, x: Tensor) -> Tensor:
    """Compute the gate of a scaled embedding in memory that is given, to the bit as :func:`hatrack.functional.gate`."""
    torch.clamp(x, _CLOSED, _OPEN, out=a).sigmoid_()
    return torch.threshold_(a, BELOW_FLUSH[a.dtype], 0.0)


def _slope_into(slope: Tensor, e: Tensor, spare: Tensor, scale: float, s_max: float) -> Tensor:
    """Compute the slope of a compensated gate, ``s_max σ(e)(1 − σ(e))`` with its decay, in memory that is given.

    Its last bits are not those of the gates of units: s_max is a power of 2 here, as the decay is, whose powers take a
    fourth of the time of torch's exponentials, and the derivative of a sigmoid is one pass. For units, which are few,
    that would buy nothing.

    Args:
        slope: memory for the result, of the embedding's shape and type.
        e: embedding.
        spare: memory of the same kind, which is written over.
        scale: present scale.
        s_max: largest scale.
    """
    numbers = torch.finfo(e.dtype)
    lowest = math.log2(numbers.tiny) + 1.0  # an integer, of which the power is exact
    decay, powers = torch.abs(e, out=spare), math.log2(s_max)
    if e.dtype.itemsize > 2:
        torch.sub(SATURATION_BOUND * _BITS + powers, decay, alpha=scale * _BITS, out=decay)
        decay.clamp_(lowest, powers).exp2_()
        torch.threshold_(decay, 2.0**lowest * (1.0 + 4.0 * numbers.eps), 0.0)
    else:  # whose numbers are so far apart that the bound itself would move
        torch.sub(SATURATION_BOUND, decay.mul_(scale), out=decay).mul_(_BITS).clamp_(lowest, 0.0).exp2_()
        torch.threshold_(decay, 2.0**lowest * (1.0 + 4.0 * numbers.eps), 0.0).mul_(s_max)
    torch.ops.aten.sigmoid_backward.grad_input(decay, torch.sigmoid(e, out=slope), grad_input=slope)
    return slope if s_max > _NEVER_DENORMAL else torch.threshold_(slope, BELOW_TINY[slope.dtype], 0.0)


def _of_embedding_into(
    result: Tensor,
    slope: Tensor,
    spare: Tensor,
    weight: Tensor,
    of_product: Tensor | None,
    free: Tensor | None,
    of_cost: Tensor | None,
) -> None:
    """Compute the gradient of an embedding from those of the product and of the cost; spare memory is written over."""
    if of_product is None and of_cost is None:
        result.zero_()
        return
    priced = of_cost if of_cost is None or free is None else torch.mul(free, of_cost, out=spare)
    if priced is None:
        assert of_product is not None
        torch.mul(of_product, weight, out=result)
    elif of_product is None:
        result.copy_(priced)
    else:
        torch.addcmul(priced, of_product, weight, out=result)
    result.mul_(slope)


def _times(part: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    for factor in factors:
        part = part * factor
    return part


def gated_weight(
    weight: Tensor,
    e: Tensor,
    free: Tensor | None,
    scale: float,
    s_max: float,
    compensation: Compensation = Compensation.EXACT,
    new: Callable[[Tensor], Tensor] = empty_like,
) -> tuple[Tensor, Tensor]:
    """Compute a gated weight, ``W ⊙ σ(s · E)``, and the sum of its gates over free entries.

    The result is that of ``a = compensated_gate(e, ...)``, ``weight * a`` and ``(a * free).sum()``, to the bit in the
    product and the gradient of the weight, and but for rounding in the other gradient, several times as fast on a CPU.
    Its gradients cannot be differentiated again.

    Args:
        weight: W, any shape.
        e: embedding of every weight, of that shape, within [-6, 6].
        free: True where an entry costs something and False where not, or 1 and 0, of that shape; None where all do.
        scale: the gate's present scale s, > 0.
        s_max: largest scale, > 0.
        compensation: which arithmetic the embedding's gradient follows.
        new: function that returns a contiguous tensor like another one, with any values, for the product and the
            gradients.

    Returns:
        The product, of the shape and type of the weight, and a scalar: the sum of the gates of the free entries.
    """
    product, cost = _GatedWeight.apply(weight, e, free, scale, s_max, compensation, new)  # type: ignore[no-untyped-call]
    return product, cost
