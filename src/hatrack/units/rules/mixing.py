"""Rules of layers that mix units: they read the units of their input and write units of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hatrack.units.coupling import UNGATED, first_axis, is_constant, is_uniform, touches_units
from hatrack.units.rules.registry import rule
from hatrack.units.trace import Call, Trace

__all__ = [
    "axis_of_positions_with_units",
    "bilinear",
    "convolution",
    "embedding",
    "inputs_of_weight",
    "linear",
    "transposed_convolution",
]


@rule(nn.Linear)
def linear(trace: Trace, call: Call) -> Tensor:
    """Read and write units of a dense layer: weight ``(out, in)``, units along the last axis.

    Where the last axis does not count units (mixing the tokens of every channel, say), the layer is shared by all units
    and passes them on.
    """
    labels = trace.labels(call.argument(0, "input"))
    return _shared(trace, call, labels, -1) if _is_shared(labels, -1) else _mix(trace, call, -1)


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(trace: Trace, call: Call) -> Tensor:
    """Read and write units of a convolution: weight ``(out, in / groups, *kernel)``, units along the channel axis.

    A depthwise one, whose groups are single channels, passes units on, where there are any. A convolution over single
    positions is shared by all units and passes them on, if another axis than the channels counts them, such as tokens.
    One that runs along the units, as in efficient channel attention, reads them there, and all tasks use its weight.
    """
    module = call.target
    axis = -1 - len(module.kernel_size)
    labels = trace.labels(call.argument(0, "input"))
    pointwise = max(module.kernel_size) == max(module.stride) == 1 and module.padding in (
        (0,) * len(module.kernel_size),
        "valid",
    )
    if pointwise and _is_shared(labels, axis):
        return _shared(trace, call, labels, axis)
    along = axis_of_positions_with_units(trace, labels, axis)
    if along is not None:
        trace.read(call, call.argument(0, "input"), along)
        single = torch.full((1,), UNGATED)  # which would be broadcast over all units that it was computed from
        outputs = single if module.out_channels == 1 else trace.write(call, module.out_channels)
        trace.use_of(call, "weight", first_axis(outputs, module.weight.dim()))
        trace.use_of(call, "bias", outputs)
        return first_axis(outputs, -axis).expand(call.output.shape)
    if 1 < module.groups == module.in_channels and touches_units(labels):
        inputs = trace.coupling.along(labels, axis)
        outputs = inputs.repeat_interleave(module.out_channels // module.in_channels)
        trace.pass_on(call, outputs)
        trace.use_of(call, "weight", first_axis(outputs, module.weight.dim()))
        trace.use_of(call, "bias", outputs)
        return first_axis(outputs, -axis).expand(call.output.shape)
    return _mix(trace, call, axis)


@rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(trace: Trace, call: Call) -> Tensor:
    """Read and write units of a transposed convolution: weight ``(in, out / groups, *kernel)``."""
    module = call.target
    axis = -1 - len(module.kernel_size)
    kernel = (1,) * len(module.kernel_size)
    inputs = trace.read(call, call.argument(0, "input"), axis)
    outputs = trace.write(call, module.out_channels)
    per_group = outputs.view(module.groups, 1, -1).expand(-1, module.in_channels // module.groups, -1)
    trace.use_of(call, "weight", inputs.view(-1, 1, *kernel), per_group.reshape(module.in_channels, -1, *kernel))
    trace.use_of(call, "bias", outputs)
    return first_axis(outputs, -axis).expand(call.output.shape)


@rule(nn.Bilinear)
def bilinear(trace: Trace, call: Call) -> Tensor:
    """Read two inputs and write units of their products: weight ``(out, in1, in2)``."""
    first = trace.read(call, call.argument(0, "input1"), -1, argument=0, keyword="input1")
    second = trace.read(call, call.argument(1, "input2"), -1, argument=1, keyword="input2")
    outputs = trace.write(call, call.target.out_features)
    trace.use_of(call, "weight", outputs.view(-1, 1, 1), first.view(1, -1, 1), second.view(1, 1, -1))
    trace.use_of(call, "bias", outputs)
    return outputs.expand(call.output.shape)


@rule(nn.Embedding, nn.EmbeddingBag)
def embedding(trace: Trace, call: Call) -> Tensor:
    """Write the units of a table of vectors ``(entries, units)``: every column is a unit, whatever is looked up."""
    weights = call.argument(2, "per_sample_weights") if isinstance(call.target, nn.EmbeddingBag) else None
    if isinstance(weights, Tensor):
        trace.coupling.pin(trace.labels(weights))  # each meets all columns
    if call.target.max_norm is not None:
        raise trace.refuse(call, "max_norm rescales entries while they are looked up, so they could not be protected")
    outputs = trace.write(call, call.target.embedding_dim)
    trace.use_of(call, "weight", outputs.view(1, -1))
    return outputs.expand(call.output.shape)


def axis_of_positions_with_units(trace: Trace, labels: Tensor, channels: int) -> int | None:
    """Return the one axis of positions that runs through units of a layer, if all channels are alike; else None.

    Args:
        trace: the trace.
        labels: labels of what a convolution reads.
        channels: the axis of the channels, negative; axes of positions follow.
    """
    if not is_constant(labels, channels):
        return None
    across = [axis for axis in range(channels + 1, 0) if trace.coupling.is_across(labels, axis)]
    return across[0] if len(across) == 1 else None


def _is_shared(labels: Tensor, axis: int) -> bool:
    """Return whether a layer along this axis would treat all units alike, since another axis counts them."""
    return is_constant(labels, axis) and not is_uniform(labels)


def _shared(trace: Trace, call: Call, labels: Tensor, axis: int) -> Tensor:
    """Use all parameters of a layer for every unit, and pass units on."""
    for parameter in call.target.parameters():
        trace.use(parameter, torch.full((1,), UNGATED))
    return labels.narrow(axis, 0, 1).expand(call.output.shape)


def _mix(trace: Trace, call: Call, axis: int) -> Tensor:
    """Read the units of the input along an axis, and write units of the layer's own."""
    weight: nn.Parameter = call.target.weight
    groups = getattr(call.target, "groups", 1)
    inputs = trace.read(call, call.argument(0, "input"), axis)
    outputs = trace.write(call, weight.shape[0])
    trace.use_of(call, "weight", first_axis(outputs, weight.dim()), inputs_of_weight(inputs, weight, groups))
    trace.use_of(call, "bias", outputs)
    return first_axis(outputs, -axis).expand(call.output.shape)


def inputs_of_weight(inputs: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Return the labels that the entries of a weight ``(out, in / groups, ...)`` read, broadcastable to its shape."""
    per_group = inputs.view(groups, 1, -1).expand(-1, 1 if groups == 1 else weight.shape[0] // groups, -1)
    ends = per_group.reshape(-1, weight.shape[1])
    return ends.view(*ends.shape, *(1,) * (weight.dim() - 2))
