"""The equations of hard attention to the task, one pure function each.

Serrà, Surís, Miron and Karatzoglou, *Overcoming catastrophic forgetting with hard attention to the task*, ICML 2018
(called "the paper" below; equation numbers are its own).
The rest of hatrack is wiring around them (`hatrack.protect` does Eq. 2 bit by bit, and is tested against the one here).

Notation: a *unit* is a neuron of a dense layer or a filter of a convolution; ``e`` is a task's embedding (one real
number per unit), ``a`` its attention or mask (one number in [0, 1] per unit), ``s`` the scale of the gate.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "EMBEDDING_BOUND",
    "GATE_FLUSH",
    "SATURATION_BOUND",
    "Compensation",
    "Conditioning",
    "annealed_scale",
    "attention_regularization",
    "batch_progress",
    "compensated_gate",
    "compensation_factor",
    "condition_gradient",
    "cumulative_attention",
    "forgetting_ratio",
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


class Conditioning(enum.Enum):
    """Which entries of a weight earlier tasks hold."""

    CUMULATIVE = "cumulative"
    """Those between units that any tasks use (Eq. 2): an entry is held although one task uses only its one end, and
    another task only its other end."""

    PER_TASK = "per-task"
    """Those between units that one and the same task uses: exact too, and more entries stay free."""


def batch_progress(batch: int, batches: int) -> float:
    """Position of a batch within its epoch, from 0 (first) to 1 (last).

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
    """Scale of the gate at a point of the epoch (Eq. 3): ``1/s_max + (s_max − 1/s_max) · progress``.

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


def attention_regularization(
    attention: Tensor | Sequence[Tensor], cumulative: Tensor | Sequence[Tensor] | None = None
) -> Tensor:
    """Share of the still free units that a task takes: the attention-weighted L1 term R (Eq. 5).

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
    total = free.sum()
    return torch.where(total > 0, taken / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)


def forgetting_ratio(accuracy: float, random: float, joint: float) -> float:
    """How much of what joint training reaches is still there (Eq. 6): ``ρ = (A − A_R) / (A_J − A_R) − 1``.

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
