"""Weights under a choice that scores make, in few passes over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hatrack.functional.blocks import as_numbers, blocks, empty_like, spare_blocks

__all__ = ["chosen_weight", "straight_through"]


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


class _ChosenWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scores: Tensor, chosen: Tensor, by_size: bool, new: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(weight, scores, chosen)
        ctx.by_size, ctx.new = by_size, new
        product = new(weight)
        (memory,) = spare_blocks(weight, 1)
        for w, mask, out in blocks(weight, chosen, out=[product]):
            assert w is not None
            assert mask is not None
            torch.mul(w, as_numbers(mask, memory[: len(w)]), out=out)
        return product

    @staticmethod
    def backward(ctx: Any, of_product: Tensor) -> tuple[Tensor | None, ...]:
        weight, scores, chosen = ctx.saved_tensors
        if torch.is_grad_enabled() or _is_batched(of_product):  # what is written piece by piece is neither
            numbers = straight_through(scores.abs() if ctx.by_size else scores, chosen)
            of_mask = of_product * weight
            return of_product * numbers, of_mask * scores.sgn() if ctx.by_size else of_mask, None, None, None
        of_weight = ctx.new(weight) if ctx.needs_input_grad[0] else None
        of_scores = ctx.new(scores) if ctx.needs_input_grad[1] else None
        (memory,) = spare_blocks(weight, 1)
        for gradient, w, values, mask, for_w, for_scores in blocks(
            of_product, weight, scores, chosen, out=[of_weight, of_scores]
        ):
            assert gradient is not None
            assert w is not None
            assert values is not None
            assert mask is not None
            spare = memory[: len(gradient)]
            if for_w is not None:
                torch.mul(gradient, as_numbers(mask, spare), out=for_w)
            if for_scores is None:
                continue
            if ctx.by_size:
                torch.mul(torch.mul(gradient, w, out=spare), torch.sgn(values, out=for_scores), out=for_scores)
            else:
                torch.mul(gradient, w, out=for_scores)
        return of_weight, of_scores, None, None, None


def _is_batched(tensor: Tensor) -> bool:
    """Return whether a tensor stands for a batch: in torch.func, or ``autograd.grad(is_grads_batched=True)``."""
    transformed: bool = torch._C._are_functorch_transforms_active()
    return transformed or torch._C._functorch.is_legacy_batchedtensor(tensor)


def chosen_weight(
    weight: Tensor,
    scores: Tensor,
    chosen: Tensor,
    *,
    by_size: bool,
    new: Callable[[Tensor], Tensor] = empty_like,
) -> Tensor:
    """Compute a weight under a choice by scores, with a gradient for every score by the straight-through estimator.

    The result is that of ``weight * straight_through(scores, chosen)``, or of ``scores.abs()`` with ``by_size``, to the
    bit in the product and all gradients. Those of the scores are ``g ⊙ W``, or ``g ⊙ W ⊙ sgn(scores)``.

    Args:
        weight: W, any shape.
        scores: score of every weight, of its shape and type.
        chosen: booleans of that shape, True where the weight passes.
        by_size: whether the choice is by ``|scores|``, whose sign then turns the gradient.
        new: function that returns a contiguous tensor like another one, with any values, for the product and the
            gradients.

    Returns:
        The product, of the shape and type of the weight.
    """
    return _ChosenWeight.apply(weight, scores, chosen, by_size, new)  # type: ignore[no-any-return, no-untyped-call]
