"""The equations of hard attention to the task, one pure function each.

Serrà, Surís, Miron and Karatzoglou, *Overcoming catastrophic forgetting with hard attention to the task*, ICML 2018
(called "the paper" below; equation numbers are its own).
The rest of hatrack is wiring around them (`hatrack.protection` does Eq. 2 bit by bit, and is tested against the one
here).

Notation: a *unit* is a neuron of a dense layer or a filter of a convolution; ``e`` is a task's embedding (one real
number per unit), ``a`` its attention or mask (one number in [0, 1] per unit), ``s`` the scale of the gate.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "EMBEDDING_BOUND",
    "GATE_FLUSH",
    "SATURATION_BOUND",
    "Compensation",
    "Conditioning",
    "GateFunction",
    "Regularization",
    "adaptive_freedom",
    "annealed_scale",
    "attention_regularization",
    "batch_progress",
    "compensated_gate",
    "compensation_factor",
    "condition_gradient",
    "cumulative_attention",
    "faded_attention",
    "forgetting_ratio",
    "gate",
    "gate_slope",
    "gated_weight",
    "hard_attention",
    "layer_prices",
    "layered_regularization",
    "quadratic_distance",
    "share_taken",
    "supervised_contrast",
    "turned_logits",
    "unweighted_regularization",
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
_BELOW_FLUSH: Mapping[torch.dtype, float] = {dtype: _before(GATE_FLUSH, dtype) for dtype in _TYPES}
_BELOW_TINY: Mapping[torch.dtype, float] = {dtype: _before(torch.finfo(dtype).tiny, dtype) for dtype in _TYPES}


# ---------------------------------------------------------------------------------------------------------------- gates


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
    return torch.threshold(a, _BELOW_FLUSH[a.dtype], 0.0)


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
    return torch.threshold(slope, _BELOW_TINY[slope.dtype], 0.0)


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


# -------------------------------------------------------------------------------------------------- weights under gates


_BLOCK = 2**18
"""Number of entries to work on at a time on a CPU: they and their results stay in its cache, whereas a further pass
over memory takes longer than computing something. Smaller blocks spend more time on calls than they save (measured)."""

_SUMMED = 2**16
"""Number of gates to add up at a time, on which the last bits of a cost depend."""

_NEVER_DENORMAL = 260.0
"""Largest scale above which no compensated slope is denormal: up to the bound of embeddings ``σ(1 − σ)`` is at least
1/406, and a decay that is not 0 is 1.6 times the smallest normal number."""

_BITS = math.log2(math.e)
"""Powers of 2 to a power of e."""

_CLOSED, _OPEN = -30.0, 50.0
"""Scaled embeddings below which a gate is flushed to 0, and above which it is exactly 1, in all types. Beyond them a
sigmoid meets denormal numbers on its way, and takes four times as long."""


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


class _GatedWeight(torch.autograd.Function):
    """Function that saves its inputs alone and computes the gate again, which is faster than reading it from memory.

    Inputs stay saved after a backward pass, so that the product and the cost may be differentiated one after the other.
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
        product, costs, spare = new(weight), [], _spare(e, 2)
        for w, values, counted, out in _blocks(weight, e, free, product):
            assert w is not None
            assert values is not None
            x, other = (memory[: len(values)] for memory in spare)
            a = _gate_into(x, torch.mul(values, scale, out=x))
            torch.mul(w, a.to(w.dtype), out=out)
            costs += _sums(a, None if counted is None else _numbers(counted, other))
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
        spare = _spare(e, 3)
        for w, values, counted, gradient, for_w, for_e in _blocks(weight, e, ctx.free, of_product, of_weight, of_e):
            assert w is not None
            assert values is not None
            x, a, slope = (memory[: len(values)] for memory in spare)
            _gate_into(a, torch.mul(values, ctx.scale, out=x))
            if for_w is not None and gradient is not None:
                torch.mul(gradient, a.to(w.dtype), out=for_w)
            if for_e is None:
                continue
            if in_place:
                _slope_into(slope, values, x, a, ctx.s_max)
                numbers = None if counted is None or of_cost is None else _numbers(counted, x)
                _of_embedding_into(for_e, slope, (a, x), w, gradient, numbers, of_cost)
                continue
            factors = gate_factors(values, a, ctx.scale, ctx.s_max, ctx.compensation)
            parts = [] if gradient is None else [gradient * w]
            if of_cost is not None:
                parts.append(of_cost.expand_as(a) if counted is None else of_cost * _numbers(counted, x))
            of_gates = [_times(part.to(a.dtype), factors) for part in parts]
            torch.add(*of_gates, out=for_e) if len(of_gates) == 2 else for_e.copy_(of_gates[0] if of_gates else 0.0 * a)
        return of_weight, of_e, None, None, None, None, None


def _numbers(free: Tensor, spare: Tensor) -> Tensor:
    """Convert booleans to numbers in memory that is given; numbers of the same type stay as they are."""
    if free.dtype == spare.dtype:
        return free
    return spare.copy_(free.view(torch.uint8) if free.dtype == torch.bool else free)  # six times as fast as of booleans


def _sums(gates: Tensor, free: Tensor | None) -> list[Tensor]:
    """Return the sums of a block's gates, piece by piece; with 1 and 0 given, of the free ones alone."""
    size = _SUMMED if gates.device.type == "cpu" else max(1, len(gates))
    parts = torch.split(gates, size)
    if free is None:
        return [part.sum() for part in parts]
    return [torch.dot(part, counted) for part, counted in zip(parts, torch.split(free, size), strict=True)]


def _gate_into(a: Tensor, x: Tensor) -> Tensor:
    """Compute the gate of a scaled embedding, to the bit as :func:`gate` does, in memory that is given."""
    torch.clamp(x, _CLOSED, _OPEN, out=a).sigmoid_()
    return torch.threshold_(a, _BELOW_FLUSH[a.dtype], 0.0)


def _slope_into(slope: Tensor, e: Tensor, x: Tensor, spare: Tensor, s_max: float) -> Tensor:
    """Compute the slope of :func:`_compensated_slope` but for last bits, in memory that is given.

    Powers of 2 take a fourth of the time of exponentials, and torch's derivative of a sigmoid is one pass.

    Args:
        slope: memory for the result, of the embedding's shape and type.
        e: embedding.
        x: scaled embedding, which is written over.
        spare: memory of the same kind, which is written over.
        s_max: largest scale.
    """
    numbers = torch.finfo(e.dtype)
    lowest = math.log2(numbers.tiny) + 1.0  # an integer, of which the power is exact
    decay = torch.sub(SATURATION_BOUND * _BITS, x.abs_(), alpha=_BITS, out=x).clamp_(lowest, 0.0).exp2_()
    torch.threshold_(decay, 2.0**lowest * (1.0 + 4.0 * numbers.eps), 0.0).mul_(s_max)
    torch.ops.aten.sigmoid_backward.grad_input(decay, torch.sigmoid(e, out=spare), grad_input=slope)
    return slope if s_max > _NEVER_DENORMAL else torch.threshold_(slope, _BELOW_TINY[slope.dtype], 0.0)


def _of_embedding_into(
    result: Tensor,
    slope: Tensor,
    spare: tuple[Tensor, Tensor],
    weight: Tensor,
    of_product: Tensor | None,
    free: Tensor | None,
    of_cost: Tensor | None,
) -> None:
    """Compute the gradient of an embedding from those of the product and of the cost; spare memory is written over."""
    part, priced = spare
    if of_product is None and of_cost is None:
        result.zero_()
        return
    part = part.zero_() if of_product is None else torch.mul(of_product, weight, out=part)
    if of_cost is not None:
        part.add_(of_cost if free is None else torch.mul(free, of_cost, out=priced))
    torch.mul(part, slope, out=result)


def _times(part: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    for factor in factors:
        part = part * factor
    return part


def _block_size(tensor: Tensor) -> int:
    return max(1, min(_BLOCK, tensor.numel()) if tensor.device.type == "cpu" else tensor.numel())


def _spare(like: Tensor, count: int) -> list[Tensor]:
    """Return memory for so many results of a block."""
    return [torch.empty(_block_size(like), dtype=like.dtype, device=like.device) for _ in range(count)]


def _blocks(first: Tensor, *others: Tensor | None) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield the same entries of several tensors of one shape, piece by piece; None for a tensor that is None."""
    size = _block_size(first)
    flat = [None if tensor is None else tensor.detach().contiguous().view(-1) for tensor in (first, *others)]
    pieces = [None if tensor is None else torch.split(tensor, size) for tensor in flat]
    for number in range(-(-first.numel() // size)):
        yield tuple(None if parts is None else parts[number] for parts in pieces)


def gated_weight(
    weight: Tensor,
    e: Tensor,
    free: Tensor | None,
    scale: float,
    s_max: float,
    compensation: Compensation = Compensation.EXACT,
    new: Callable[[Tensor], Tensor] = _empty_like,
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


# --------------------------------------------------------------------------------------------------------- conditioning


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


# ------------------------------------------------------------------------------------------------------------ annealing


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


# ------------------------------------------------------------------------------------------------------- regularization


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


# ------------------------------------------------------------------------------------------------- penalties and ratios


def quadratic_distance(
    parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor], importance: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Compute the weighted squared distance ``Σ Ω (θ − θ*)²``, a scalar.

    Args:
        parameters: θ by name.
        anchor: θ* by the same names.
        importance: Ω by the same names; None weighs all alike, with 1.
    """
    terms = []
    for name, parameter in parameters.items():
        squared = (parameter - anchor[name]).square()
        terms.append((squared if importance is None else importance[name] * squared).sum())
    return torch.stack(terms).sum()


def proximal(value: Tensor, anchor: Tensor, stiffness: Tensor | float) -> Tensor:
    """Compute the proximal step of a penalty, ``(θ + k θ*) / (1 + k)``: where ``‖x − θ‖² + k ‖x − θ*‖²`` is least.

    Args:
        value: θ.
        anchor: θ*, of its shape.
        stiffness: k, at least 0, a number or of that shape: the step size times the curvature of the penalty. At 0 the
            value stays as it is, to the bit; at infinity it is the anchor.

    Returns:
        A tensor of the value's shape, between value and anchor.
    """
    if isinstance(stiffness, Tensor):
        share = stiffness.reciprocal().add_(1.0).reciprocal_()  # k / (1 + k), also of an infinite k
        return torch.lerp(value, anchor, share)
    return value if stiffness == 0.0 else torch.lerp(value, anchor, 1.0 / (1.0 + 1.0 / stiffness))


def forgetting_ratio(accuracy: float, random: float, joint: float) -> float:
    """Compute the forgetting ratio of a task (Eq. 6): ``ρ = (A − A_R) / (A_J − A_R) − 1``.

    Args:
        accuracy: accuracy of the method on a task, after later tasks.
        random: accuracy of a random classifier that knows the class shares.
        joint: accuracy of training on all the tasks so far at once.

    Returns:
        0 when the method is as good as joint training, −1 when it is as bad as chance, above 0 when it is better than
        joint training. Not a number when joint training is no better than chance, since the ratio then says nothing.
    """
    if joint == random:
        return float("nan")
    return (accuracy - random) / (joint - random) - 1.0


def turned_logits(features: Tensor, weight: Tensor, bias: Tensor | None = None, turns: int = 4) -> Tensor:
    """Return logits of all classes in all turns for a picture in each of its turns.

    ``W_{c,r} · f_s + b_c`` is the logit of class c turned by r for the picture turned by s, where ``f_s`` is what
    :class:`hatrack.backbones.QuarterTurns` has of its features at their own scale, and ``W_{c,r}`` the r-th part of the
    head's row c. The mean over r = s is what the head answers for the picture. After Kim et al., *Continual learning
    based on OOD detection and task masking*, 2022; they have a bias for every turn, which the mean cannot tell from one
    for all.

    Args:
        features: features of the turns side by side, divided by their number, ``(N, R F)``.
        weight: weight of the head, ``(C, R F)``.
        bias: bias of the head, ``(C,)``; None for none.
        turns: R, the number of turns.

    Returns:
        ``(N, R, R C)``: the picture's turn s, then the class and its turn, ``R c + r``.
    """
    each = features.shape[1] // turns
    logits = turns * features.reshape(-1, turns, each) @ weight.reshape(-1, each).T
    return logits if bias is None else logits + bias.repeat_interleave(turns)


def supervised_contrast(projected: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Compute the supervised contrastive loss (Khosla et al., NeurIPS 2020, Eq. 2), a scalar.

    ``mean_i −1/|P(i)| Σ_{p ∈ P(i)} log( exp(z_i·z_p / T) / Σ_{a ≠ i} exp(z_i·z_a / T) )``, where ``z`` are the
    projections at length 1, and P(i) are the other samples with the label of i.

    Args:
        projected: projections of samples, ``(N, D)``.
        labels: their labels, int64 ``(N,)``; a sample with a label of its own does not count.
        temperature: T, above 0.

    Returns:
        The loss; 0 where no two samples have the same label.
    """
    z = torch.nn.functional.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similar = (z @ z.T / temperature).masked_fill(itself, -math.inf)
    logs = similar - similar.logsumexp(1, keepdim=True)
    positive = (labels.unsqueeze(1) == labels) & ~itself
    counts = positive.sum(1)
    of_samples = torch.where(positive, logs, 0.0).sum(1) / counts.clamp_min(1)
    return -of_samples.sum() / (counts > 0).sum().clamp_min(1)
