"""Partial gradients: gradients of weights without entries that must not move, so that steps get cheaper over tasks.

A third of a training step goes into gradients of weights. Those of frozen entries are of no use: they are cleared, or
their effect is undone. Where whole rows of a layer's weight are frozen, or all but few rows and columns, smaller
products, or convolutions of fewer channels, give the rest. Convolutions leave out channels that are exactly 0, too, as
they are where a task's gates are closed, and with them products of 0 and of what is infinite or not a number. The
forward pass is the layer's own; so is the gradient of the input, up to the rounding that comes of zeros left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial as first_given
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.gating.folding import FoldsGates, is_called_with_hooks_of
from hatrack.gating.gates import ActiveTask, InputGate
from hatrack.gating.used_blocks import UsedBlock, may_take_blocks
from hatrack.protection.frozen import all_of, any_of

__all__ = ["PartialGradient", "PartialGradientSwitch", "partial_gradient_for"]

ENTRIES_WORTH = 100_000
"""Smallest number of entries of a dense layer's weight for which smaller products pay (measured, as all that follows:
`benchmarks/speed.py full` shows what it comes to): below, choosing takes longer than it saves."""

PRODUCTS_WORTH = 500_000_000
"""Smallest number of products of a convolution of stride 1, over the whole batch, for which fewer channels pay: all
layers of a ResNet-18 have more, the HAT paper's AlexNet one of three."""

FOLDING_WORTH = 2**16
"""Smallest number of entries of an input whose gates are multiplied with the weight instead."""

LIVE_WORTH = 0.8
"""Largest share of channels that are not 0 for which leaving out the others pays."""

FROZEN_WORTH = 0.3
"""Smallest share of frozen entries of a convolution's weight from which on channels that are 0 are looked for, though
too few rows and columns are frozen. Before, gradients keep the bits that torch gives them."""


@dataclass(frozen=True)
class _Worth:
    """Shares of a weight for which partial gradients pay.

    Attributes:
        rows: smallest share of frozen rows for which the other rows alone pay.
        block: largest share of free rows plus free columns for which rows and columns pay.
    """

    rows: float
    block: float


_DENSE, _CONVOLUTION = _Worth(0.2, 0.35), _Worth(0.35, 0.58)


@dataclass(frozen=True)
class PartialGradient:
    """Entries of a weight ``(O, I, …)`` whose gradient is computed.

    Attributes:
        rows: indices of the rows that are computed whole: output features or channels.
        columns: indices of the columns that are computed whole, input features or channels; None if there are none.
        weight: the weight; a layer that computes with another one in its place gets the whole gradient.
    """

    rows: Tensor
    columns: Tensor | None = None
    weight: nn.Parameter | None = None

    def product(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """Compute ``outputsᵀ · inputs`` at these entries, with 0 elsewhere.

        Args:
            outputs: gradient of the layer's result, ``(N, O)``.
            inputs: the layer's input, ``(N, I)``.
        """
        shape = torch.Size((outputs.shape[1], inputs.shape[1]))
        return self._put_together(outputs, inputs, shape, lambda some, others: some.t() @ others)

    def correlation(self, outputs: Tensor, inputs: Tensor, window: _ConvolutionWindow) -> Tensor:
        """Compute the gradient of a convolution's weight at these entries, with 0 elsewhere.

        Args:
            outputs: gradient of the layer's result, ``(N, O, …)``.
            inputs: the layer's input, ``(N, I, …)``.
            window: size and movement of the convolution's window.
        """
        shape = torch.Size((outputs.shape[1], inputs.shape[1], *window.size))
        return self._put_together(outputs, inputs, shape, window.of_weight)

    def among(self, live: _Live, outputs: int, inputs: int) -> PartialGradient:
        """Return the part of live channels alone, with their numbers among these, of so many channels in all."""
        columns = None if self.columns is None else _places_in(self.columns, live.inputs, inputs)
        return PartialGradient(_places_in(self.rows, live.outputs, outputs), columns)

    def _put_together(
        self, outputs: Tensor, inputs: Tensor, shape: torch.Size, gradient: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Put the gradients of columns and rows together; both tensors have their features along axis 1."""
        result = outputs.new_zeros(shape)
        if self.columns is not None and len(self.columns):
            result.index_copy_(1, self.columns, gradient(outputs, inputs.index_select(1, self.columns)))
        if len(self.rows):
            result.index_copy_(0, self.rows, gradient(outputs.index_select(1, self.rows), inputs))
        return result


def _places_in(some: Tensor, chosen: Tensor, size: int) -> Tensor:
    """Return where some indices are among chosen ones; those that are not chosen are left out."""
    wanted = torch.zeros(size, dtype=torch.bool, device=some.device).index_fill_(0, some, True)
    return wanted.index_select(0, chosen).nonzero().flatten()


class _Live(NamedTuple):
    """Channels of one call that are not 0 in every sample and place.

    Gates of a task in training are exactly 0 for most units that it does not use, and so is all that belongs to these:
    their activations, and what comes back for them. Nothing need be multiplied with it.

    Attributes:
        outputs: indices of channels in which the gradient of the layer's result is not 0.
        inputs: indices of channels in which its input is not 0.
    """

    outputs: Tensor
    inputs: Tensor

    @classmethod
    def of(cls, outputs: Tensor, inputs: Tensor) -> _Live | None:
        """Return the live channels; None where leaving out the others would not pay."""
        if not outputs.numel() or not inputs.numel():
            return None
        found = cls(_live_channels(outputs), _live_channels(inputs))
        shares = len(found.outputs) / outputs.shape[1], len(found.inputs) / inputs.shape[1]
        return found if min(shares) <= LIVE_WORTH else None

    def correlation(
        self, partial: PartialGradient, outputs: Tensor, inputs: Tensor, weight: Tensor, window: _ConvolutionWindow
    ) -> Tensor:
        """Compute the gradient of a convolution's weight from live channels.

        Args:
            partial: entries that are computed.
            outputs: gradient of the layer's result in live channels.
            inputs: the layer's input.
            weight: the weight, of which the shape and type matter alone.
            window: size and movement of the convolution's window.
        """
        part = partial.among(self, *weight.shape[:2]).correlation(outputs, inputs.index_select(1, self.inputs), window)
        rows = weight.new_zeros(len(self.outputs), *weight.shape[1:]).index_copy_(1, self.inputs, part)
        return torch.zeros_like(weight).index_copy_(0, self.outputs, rows)


def _live_channels(values: Tensor) -> Tensor:
    """Return the indices of channels, along axis 1, that are not 0 everywhere; what is not a number is not 0."""
    if values.dim() == 4 and not values.is_contiguous() and values.is_contiguous(memory_format=torch.channels_last):
        # Torch's extremes of few channels side by side take thirty times as long as this.
        return (values.movedim(1, -1).flatten(0, -2).abs().sum(0) != 0).nonzero().flatten()
    places = values.flatten(2)  # whose extremes are found without a tensor of their size
    return any_of((places.amax(2) != 0) | (places.amin(2) != 0), 0).nonzero().flatten()


def partial_gradient_for(frozen: Tensor) -> PartialGradient | None:
    """Choose the part of a weight's gradient to compute.

    Args:
        frozen: booleans, ``(O, I)`` of a dense layer or ``(O, I, …)`` of a convolution, True for frozen entries.

    Returns:
        A part with all free entries, and perhaps others; None where computing the whole gradient is faster.
    """
    is_dense = frozen.dim() == 2
    if not frozen.numel() or (is_dense and frozen.numel() < ENTRIES_WORTH):
        return None
    worth = _DENSE if is_dense else _CONVOLUTION
    pairs = frozen if is_dense else all_of(frozen.flatten(2), 2)
    rows, columns = ~all_of(pairs, 1), ~any_of(pairs, 0)
    if float(rows.float().mean()) <= 1 - worth.rows:
        return PartialGradient(rows.nonzero().flatten())
    rows = any_of(~pairs & ~columns, 1)  # rows with free entries outside of free columns
    if float(rows.float().mean() + columns.float().mean()) <= worth.block:
        return PartialGradient(rows.nonzero().flatten(), columns.nonzero().flatten())
    if not is_dense and float(pairs.float().mean()) >= FROZEN_WORTH:
        return PartialGradient(torch.arange(len(pairs), device=pairs.device))  # but for channels that are 0
    return None


class _PartialGradientLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, columns: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight, rows, columns)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows, columns = ctx.saved_tensors
        of_x, of_weight, of_bias, _, _ = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        return (
            gradient @ weight if of_x else None,
            PartialGradient(rows, columns).product(flat, x.reshape(-1, x.shape[-1])) if of_weight else None,
            flat.sum(0) if of_bias else None,
            None,
            None,
        )


@dataclass(frozen=True)
class _ConvolutionWindow:
    """Size and movement of a convolution's window, a number per axis of space."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the convolution."""
        none = [0] * len(self.stride)
        return torch.convolution(x, weight, bias, self.stride, self.padding, self.dilation, False, none, 1)

    def of_input(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Compute the gradient of the input."""
        return self._backward(gradient, x, weight, 0) if len(weight) else torch.zeros_like(x)

    def of_weight(self, gradient: Tensor, x: Tensor) -> Tensor:
        """Compute the gradient of the weight."""
        like = x.new_empty(gradient.shape[1], x.shape[1], *self.size)
        return self._backward(gradient, x, like, 1) if like.numel() else like

    def _backward(self, gradient: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
        none, wanted = [0] * len(self.stride), [which == each for each in range(3)]
        found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, self.stride, self.padding, self.dilation, False, none, 1, wanted
        )
        return found[which]


class _PartialGradientConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        columns: Tensor | None,
        window: _ConvolutionWindow,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, rows, columns)
        ctx.window = window
        return window.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows, columns = ctx.saved_tensors
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        bias_gradient = gradient.sum((0, *range(2, gradient.dim()))) if of_bias else None
        # Derivatives of a gradient are not 0 where it is: these need all channels.
        live = None if torch.is_grad_enabled() else _Live.of(gradient, x)
        partial, window = PartialGradient(rows, columns), ctx.window
        if live is None:
            input_gradient = window.of_input(gradient, x, weight) if of_x else None
            weight_gradient = partial.correlation(gradient, x, window) if of_weight else None
        else:
            gradient = gradient.index_select(1, live.outputs)
            input_gradient = window.of_input(gradient, x, weight.index_select(0, live.outputs)) if of_x else None
            weight_gradient = live.correlation(partial, gradient, x, weight, window) if of_weight else None
        return input_gradient, weight_gradient, bias_gradient, None, None, None


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class PartialGradientSwitch(FoldsGates):
    """Replacement for the ``forward`` of one layer of the backbone: the same result, with a cheaper gradient.

    While nothing is left out of the gradient, the gates of a large input are multiplied with the weight instead. Under
    a final mask, the block of the weight that it uses takes the place of the weight.

    Where anything but plain training goes on (compiling, tracing, mixed precision, function transforms), and where it
    does not pay, as on other devices than the CPU, the layer's own forward is called. There, to look for channels that
    are 0 is to wait for the device, and to launch three small kernels takes longer than to compute the whole product.

    Args:
        name: the layer's name in the backbone.
        module: the layer, dense or a convolution.
        partial_gradients: partial gradients by the names of layers; layers missing here compute all of theirs.
        active: the state shared by all gates of the network, which knows large gated inputs.
    """

    def __init__(
        self, name: str, module: nn.Module, partial_gradients: Mapping[str, PartialGradient], active: ActiveTask
    ) -> None:
        self._active = active
        self._name = name
        self.module = module
        self._partial_gradients = partial_gradients

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Return whether a module is one of torch's own dense layers or convolutions, as torch made it.

        Convolutions of several groups, and those that pad with anything but a fixed number of zeros, are not.
        """
        own = isinstance(module._parameters.get("weight"), nn.Parameter)  # not computed from others
        if not own or "forward" in vars(module):
            return False
        if isinstance(module, _CONVOLUTIONS):
            plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
            return plain and type(module) in _CONVOLUTIONS
        return type(module) is nn.Linear

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - what torch calls it
        """Compute the layer's result."""
        return self.forward_of(self.module, input)

    def folds(self, module: nn.Module, value: Tensor) -> bool:
        """Return whether gates are to be multiplied with the weight: in plain training, where that is the smaller one.

        A gradient that leaves out entries is not enough for it: that of a gate is a sum over its column of the weight.
        """
        weight = module.weight
        return (
            not torch.compiler.is_compiling()  # first, since sizes that are compared are compiled for
            and type(value) is Tensor
            and isinstance(weight, Tensor)
            and value.numel() >= FOLDING_WORTH
            and value.numel() > weight.numel()
            and torch.is_grad_enabled()
            and self._is_plain(value, weight)
            and self._pads_as_attached(module)
            and self._partial_for(module, value) is None
        )

    def forward_of(self, module: nn.Module, input: Tensor) -> Tensor:  # noqa: A002 - what torch calls it
        """Compute the result of the layer, or of a twin of it with other parameters."""
        left, weight = self._active.gates_left_to(module), module.weight
        gates, block = (None, left) if isinstance(left, UsedBlock) else (left, None)
        block = self.block_for(module, input) if left is None else block
        if block is not None:
            return block.result(module, input, first_given(self._with_weight, module))
        if gates is not None and isinstance(weight, Tensor) and self._is_plain(input, weight):
            gated = self._active.gated(weight, gates)
            with self._active.not_kept(gated):
                return self._with_weight(module, input, gated, module._parameters["bias"])
        if gates is not None:  # a compiler has begun, or a mode has changed, between the gate and the layer
            input = input * gates  # noqa: A001
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return self._plain(module, input)
        with self._active.not_kept(input):
            return self._with_gradient(module, input)

    def block_for(self, module: nn.Module, value: Tensor) -> UsedBlock | None:
        """Return the block of its weight that the layer computes a call with; None where it is the whole weight."""
        if torch.compiler.is_compiling():  # which cannot read what threads have of their own
            return None
        block, weight = self._active.block(self._name), module.weight
        if block is None or type(value) is not Tensor or not isinstance(weight, nn.Parameter) or not may_take_blocks():
            return None
        taken = (
            self._is_plain(value, weight)
            and self._pads_as_attached(module)
            and UsedBlock.is_worth(value, weight)
            and is_called_with_hooks_of(module, InputGate)  # others are to see what units that are off would be
        )
        return block if taken else None

    def _with_gradient(self, module: nn.Module, input: Tensor) -> Tensor:  # noqa: A002
        """Compute the layer's result, and what is needed for its gradient."""
        partial = self._partial_for(module, input)
        if partial is None:
            return self._plain(module, input)
        given = (input, module.weight, module.bias, partial.rows, partial.columns)
        result: Tensor
        if isinstance(module, _CONVOLUTIONS):
            assert not isinstance(module.padding, str)
            window = _ConvolutionWindow(module.kernel_size, module.stride, module.padding, module.dilation)
            result = _PartialGradientConvolution.apply(*given, window)  # type: ignore[no-untyped-call]
        else:
            result = _PartialGradientLinear.apply(*given)  # type: ignore[no-untyped-call]
        return result

    def _partial_for(self, module: nn.Module, input: Tensor) -> PartialGradient | None:  # noqa: A002
        """Return the part of the weight's gradient to compute in a call; None where it is all of it."""
        partial, weight = self._partial_gradients.get(self._name), module.weight
        if partial is None or weight is not partial.weight or not weight.requires_grad:
            return None
        if not self._is_plain(input, weight) or not self._pads_as_attached(module):
            return None
        if weight.dim() == 2:
            return partial if input.dim() >= 2 else None
        is_worth = input.dim() == weight.dim() and input.numel() * weight[:, 0].numel() >= PRODUCTS_WORTH
        return partial if is_worth else None

    @staticmethod
    def _pads_as_attached(module: nn.Module) -> bool:
        """Return whether a layer still pads with zeros, if it pads at all."""
        return getattr(module, "padding_mode", "zeros") == "zeros"

    @staticmethod
    def _is_plain(input: Tensor, weight: Tensor) -> bool:  # noqa: A002
        """Return whether nothing but plain training on a CPU goes on."""
        return (
            input.device.type == weight.device.type == "cpu"
            and input.dtype == weight.dtype
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled(input.device.type)
            and not torch._C._get_tracing_state()
            and not torch._C._are_functorch_transforms_active()
            and torch.autograd.forward_ad._current_level < 0
        )

    def _with_weight(self, module: nn.Module, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        """Compute the layer's result with another weight and bias."""
        assert isinstance(module, (nn.Linear, *_CONVOLUTIONS))
        if isinstance(module, nn.Linear):
            return F.linear(input, weight, bias)
        convolution = (F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 3]
        return convolution(input, weight, bias, module.stride, module.padding, module.dilation)

    def _plain(self, module: nn.Module, input: Tensor) -> Tensor:  # noqa: A002
        """Compute the layer's result as torch does."""
        result: Tensor = type(self.module).forward(module, input)
        return result
