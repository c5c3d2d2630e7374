"""Blocks of weights that a final mask uses: all that a layer needs to compute with under it.

Once the mask of a task in training is final, what is off stays off: it gives nothing, and learns nothing. Layers then
take the columns and rows of their weight that the task uses, a copy as small as the task, and put 0 where a unit is
off. The validation of a mask in training, which is final for that time, computes in the same way. Tasks that are
consolidated do not: the bits of their outputs are those of the whole layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.protection.frozen import any_of, attention_on_entries
from hatrack.units import ParameterUse

__all__ = ["UsedBlock"]

ENTRIES_WORTH = 100_000
"""Smallest number of entries of a dense layer's weight for which taking a block pays (measured, as all here)."""

PRODUCTS_WORTH = 20_000_000
"""Smallest number of products of a convolution of stride 1, over the whole batch, for which it pays."""

WORTH = 0.35
"""Largest share of the weight's entries in a block for which it pays: at that share, taking it and putting the results
and gradients in their places takes about as long as a small dense layer saves; convolutions save far more."""


@dataclass(frozen=True)
class UsedBlock:
    """Block of the weight ``(O, I, …)`` of a dense layer or a convolution that a mask of units uses.

    Attributes:
        rows: indices of the output features or channels that the mask has on.
        columns: indices of the input features or channels that these are computed from.
        entries: positions of the block's entries in the flattened weight of a dense layer; None for a convolution.
        is_of_one_use: whether the weight is used once, so that the layer need not be given a gated input: the columns
            are all that the gate leaves.
    """

    rows: Tensor
    columns: Tensor
    entries: Tensor | None
    is_of_one_use: bool

    @classmethod
    def under(
        cls, mask: Tensor, weight: Tensor, uses: Iterable[ParameterUse], of_bias: Iterable[ParameterUse]
    ) -> UsedBlock | None:
        """Return the block that a mask uses; None where computing with the whole weight is as fast.

        Args:
            mask: booleans, ``(U,)``, True for units that are on.
            weight: the weight.
            uses: its uses.
            of_bias: uses of the layer's bias; none if it has none.
        """
        if weight.dim() == 2 and weight.numel() < ENTRIES_WORTH:
            return None
        uses = tuple(uses)
        attention = torch.cat([mask, mask.new_ones(1)])
        pairs = any_of(attention_on_entries(uses, attention, weight.shape).reshape(*weight.shape[:2], -1), 2)
        # A unit that reads nothing which is on still has its bias.
        has_row = any_of(pairs, 1) | attention_on_entries(of_bias, attention, weight.shape[:1])
        rows, columns = has_row.nonzero().flatten(), any_of(pairs, 0).nonzero().flatten()
        if not 0 < len(rows) * len(columns) <= WORTH * pairs.numel():
            return None
        entries = (rows.unsqueeze(1) * weight.shape[1] + columns).flatten() if weight.dim() == 2 else None
        return cls(rows, columns, entries, len(uses) == 1)

    def result(self, module: nn.Module, input: Tensor, compute: _Compute) -> Tensor:  # noqa: A002 - as torch says
        """Compute the layer's result for units that are on, and 0 for the others.

        Args:
            module: the layer.
            input: what it is given.
            compute: computes the result from an input, a weight and a bias.
        """
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        axis = -1 if isinstance(module, nn.Linear) else 1
        block: Tensor = _TakeBlock.apply(weight, self.rows, self.columns, self.entries)  # type: ignore[no-untyped-call]
        some = bias.index_select(0, self.rows) if isinstance(bias, Tensor) else None
        found = compute(_take(input, self.columns, axis), block, some)
        result: Tensor = _Put.apply(found, self.rows, axis, len(weight))  # type: ignore[no-untyped-call]
        return result

    @staticmethod
    def is_worth(input: Tensor, weight: Tensor) -> bool:  # noqa: A002
        """Return whether a layer's input has a shape for which taking a block pays."""
        if weight.dim() == 2:
            return input.dim() >= 2
        return input.dim() == weight.dim() and input.numel() * weight[:, 0].numel() >= PRODUCTS_WORTH


_Compute = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _take(values: Tensor, index: Tensor, axis: int) -> Tensor:
    taken: Tensor = _Take.apply(values, index, axis)  # type: ignore[no-untyped-call]
    return taken


class _TakeBlock(torch.autograd.Function):
    """Takes the rows and columns of a weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor, columns: Tensor, entries: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, columns, entries)
        ctx.shape = weight.shape
        return _places_of(_places_of(weight, rows, 0), columns, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, entries = ctx.saved_tensors
        if entries is None:
            whole = _among_zeros(_among_zeros(gradient, columns, 1, ctx.shape[1]), rows, 0, ctx.shape[0])
        else:  # a dense layer's, which takes half as long in one go
            whole = gradient.new_zeros(ctx.shape.numel()).scatter_(0, entries, gradient.flatten()).view(ctx.shape)
        return whole, None, None, None


class _Take(torch.autograd.Function):
    """Takes some places along an axis; torch's own gradient of that adds up, one number after the other."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, axis: int) -> Tensor:
        ctx.save_for_backward(index)
        ctx.axis, ctx.length = axis, values.shape[axis]
        return _places_of(values, index, axis)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return _among_zeros(gradient, index, ctx.axis, ctx.length), None, None


class _Put(torch.autograd.Function):
    """Puts values at some places along an axis, and 0 at the others."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, axis: int, length: int) -> Tensor:
        ctx.save_for_backward(index)
        ctx.axis = axis
        return _among_zeros(values, index, axis, length)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return _places_of(gradient, index, ctx.axis), None, None, None


def _places_of(values: Tensor, index: Tensor, axis: int) -> Tensor:
    """Return the values at some places along an axis, laid out as they are."""
    if axis in _AXES and _has_channels_last(values):
        return values.movedim(1, -1).index_select(_AXES[axis], index).movedim(-1, 1)
    return values.index_select(axis, index)


def _among_zeros(values: Tensor, index: Tensor, axis: int, length: int) -> Tensor:
    """Return values at some places along an axis of so many, and 0 at the others, laid out as they are."""
    if axis in _AXES and _has_channels_last(values):
        return _whole(values.movedim(1, -1), index, _AXES[axis], length).movedim(-1, 1)
    return _whole(values, index, axis, length)


def _whole(values: Tensor, index: Tensor, axis: int, length: int) -> Tensor:
    shape = list(values.shape)
    shape[axis] = length
    return values.new_zeros(shape).index_copy_(axis, index, values)


_AXES = {0: 0, 1: -1}
"""Axes of pictures, and of their weights, where channels are the last of all."""


def _has_channels_last(values: Tensor) -> bool:
    """Return whether pictures, or a weight of these, have their channels side by side."""
    return values.dim() == 4 and not values.is_contiguous() and values.is_contiguous(memory_format=torch.channels_last)
