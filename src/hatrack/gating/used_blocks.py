"""Blocks of weights that a final mask uses: all that a layer needs to compute with under it.

Once the mask of a task in training is final, what is off stays off: it gives nothing, and learns nothing. Layers then
take the columns and rows of their weight that the task uses, a copy as small as the task. What stands where a unit is
off is of no matter; it is what another unit gives, since functions that are singular at 0 would make a gradient of 0
into one that is not a number. The validation of a mask in training, which is final for that time, computes in the same
way. Tasks that are consolidated do not: the bits of their outputs are those of the whole layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.protection.frozen import any_of, attention_on_entries
from hatrack.support.layouts import memory_format_of
from hatrack.units import ParameterUse

__all__ = ["UsedBlock", "may_take_blocks"]

ENTRIES_WORTH = 100_000
"""Smallest number of entries of a dense layer's weight for which taking a block pays (measured, as all here)."""

PRODUCTS_WORTH = 20_000_000
"""Smallest number of products of a convolution of stride 1, over the whole batch, for which it pays."""

WORTH = 0.35
"""Largest share of the weight's entries in a block for which it pays: at that share, taking it and putting the results
and gradients in their places takes about as long as a small dense layer saves; convolutions save far more."""


def may_take_blocks() -> bool:
    """Return whether layers may compute with blocks in what goes on here.

    Compilers, tracers and function transforms cannot look for what is on. A checkpoint computes a part again when its
    task is not known any more, and what it saved then has to have the same shapes.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state()
        or torch._C._are_functorch_transforms_active()
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    )


@dataclass(frozen=True)
class UsedBlock:
    """Block of the weight ``(O, I, …)`` of a dense layer or a convolution that a mask of units uses.

    Attributes:
        rows: indices of the output features or channels that the mask has on.
        columns: indices of the input features or channels that these are computed from.
        shape: shape of the weight.
        is_gate: whether the columns are all that a gate along them leaves.
    """

    rows: Tensor
    columns: Tensor
    shape: torch.Size
    is_gate: bool

    @classmethod
    def under(
        cls, mask: Tensor, shape: torch.Size, uses: Iterable[ParameterUse], of_bias: Iterable[ParameterUse]
    ) -> UsedBlock | None:
        """Return the block that a mask uses; None where computing with the whole weight is as fast.

        Args:
            mask: booleans, ``(U,)``, True for units that are on.
            shape: shape of the weight.
            uses: its uses.
            of_bias: uses of the layer's bias; none if it has none.
        """
        if len(shape) == 2 and shape.numel() < ENTRIES_WORTH:
            return None
        uses = tuple(uses)
        attention = torch.cat([mask, mask.new_ones(1)])
        pairs = any_of(attention_on_entries(uses, attention, shape).reshape(*shape[:2], -1), 2)
        # A unit that reads nothing which is on still has its bias.
        has_row = any_of(pairs, 1) | attention_on_entries(of_bias, attention, shape[:1])
        has_column, gated = any_of(pairs, 0), len(uses) != 1
        if has_row.any() and len(shape) > 2:  # what has a single channel has every layout
            _take_two(has_row)
            gated = _take_two(has_column) or gated
        rows, columns = has_row.nonzero().flatten(), has_column.nonzero().flatten()
        if not 0 < len(rows) * len(columns) <= WORTH * pairs.numel():
            return None
        return cls(rows, columns, shape, not gated)

    @cached_property
    def sources(self) -> Tensor:
        """Return for every output feature or channel which row of the block stands there: its own, or some other."""
        places = torch.arange(self.shape[0]) % len(self.rows)
        return places.index_copy_(0, self.rows, torch.arange(len(self.rows)))

    @cached_property
    def entries(self) -> Tensor:
        """Return the positions of the block's entries in the flattened weight of a dense layer."""
        return (self.rows.unsqueeze(1) * self.shape[1] + self.columns).flatten()

    def stands_for(self, gates: int, axis: int) -> bool:
        """Return whether a gate need not be applied to an input that the block is taken from.

        It need not where it lies along the columns; a convolution may go along its units, too.

        Args:
            gates: number of gates.
            axis: axis of the input that they lie along, counted from the end.
        """
        return self.is_gate and gates == self.shape[1] and axis == 1 - len(self.shape)

    def result(self, module: nn.Module, input: Tensor, compute: _Compute) -> Tensor:  # noqa: A002 - as torch says
        """Compute the layer's result for units that are on, with some of their values where others are off.

        Args:
            module: the layer.
            input: what it is given.
            compute: computes the result from an input, a weight and a bias.
        """
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        axis = -1 if isinstance(module, nn.Linear) else 1
        block: Tensor = _TakeBlock.apply(weight, self)  # type: ignore[no-untyped-call]
        some = bias.index_select(0, self.rows) if isinstance(bias, Tensor) else None
        taken: Tensor = _Take.apply(input, self.columns, axis)  # type: ignore[no-untyped-call]
        found = compute(taken, block, some)
        result: Tensor = _Put.apply(found, self, axis)  # type: ignore[no-untyped-call]
        return result

    @staticmethod
    def is_worth(input: Tensor, weight: Tensor) -> bool:  # noqa: A002
        """Return whether a layer's input has a shape for which taking a block pays."""
        if weight.dim() == 2:
            return input.dim() >= 2
        return input.dim() == weight.dim() and input.numel() * weight[:, 0].numel() >= PRODUCTS_WORTH


def _take_two(chosen: Tensor) -> bool:
    """Choose a second place where there is one and a single one is chosen; return whether that was done."""
    if len(chosen) < 2 or int(chosen.sum()) != 1:
        return False
    chosen[int((~chosen).nonzero()[0])] = True
    return True


_Compute = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class _TakeBlock(torch.autograd.Function):
    """Takes the rows and columns of a weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, block: UsedBlock) -> Tensor:
        ctx.block = block
        return _places_of(_places_of(weight, block.rows, 0), block.columns, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        block: UsedBlock = ctx.block
        if len(block.shape) != 2 or _is_batched(gradient):
            wide = _among_zeros(gradient, block.columns, 1, block.shape[1])
            return _among_zeros(wide, block.rows, 0, block.shape[0]), None
        # A dense layer's takes half as long in one go.
        flat = gradient.new_zeros(block.shape.numel()).scatter_(0, block.entries, gradient.flatten())
        return flat.view(block.shape), None


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
    """Puts the values of a block's rows in their places along an axis, and any of them elsewhere, for no gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, block: UsedBlock, axis: int) -> Tensor:
        ctx.block, ctx.axis = block, axis
        layout = memory_format_of(values)
        if axis == -1 or layout is torch.contiguous_format:
            return values.index_select(axis, block.sources)
        shape = (len(values), block.shape[0], *values.shape[2:])
        result = values.new_empty(0).resize_(shape, memory_format=layout)  # a view could not be changed in place
        torch.index_select(values.movedim(1, -1), -1, block.sources, out=result.movedim(1, -1))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _places_of(gradient, ctx.block.rows, ctx.axis), None, None


def _places_of(values: Tensor, index: Tensor, axis: int) -> Tensor:
    """Return the values at some places along an axis, laid out as they are."""
    if _has_channels_last(values, axis):
        return values.movedim(1, -1).index_select(_AXES[axis], index).movedim(-1, 1)
    return values.index_select(axis, index)


def _among_zeros(values: Tensor, index: Tensor, axis: int, length: int) -> Tensor:
    """Return values at some places along an axis of so many, and 0 at the others, laid out as they are."""
    if _is_batched(values):  # which takes no values in place
        chosen = torch.eye(length, dtype=values.dtype).index_select(0, index)
        return (values.movedim(axis, -1) @ chosen).movedim(-1, axis)
    if _has_channels_last(values, axis):
        return _whole(values.movedim(1, -1), index, _AXES[axis], length).movedim(-1, 1)
    return _whole(values, index, axis, length)


def _whole(values: Tensor, index: Tensor, axis: int, length: int) -> Tensor:
    shape = list(values.shape)
    shape[axis] = length
    return values.new_zeros(shape).index_copy_(axis, index, values)


_AXES = {0: 0, 1: -1}
"""Axes of pictures, and of their weights, where channels are the last of all."""


def _has_channels_last(values: Tensor, axis: int) -> bool:
    """Return whether pictures, or a weight of these, have their channels side by side."""
    return axis in _AXES and not _is_batched(values) and memory_format_of(values) is not torch.contiguous_format


def _is_batched(tensor: Tensor) -> bool:
    """Return whether a tensor stands for a batch, as with ``autograd.grad(is_grads_batched=True)``."""
    transformed: bool = torch._C._are_functorch_transforms_active()
    return transformed or torch._C._functorch.is_legacy_batchedtensor(tensor)
