"""Layers that mix units: they read the units of their input and write units of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hatrack.units.coupling import UNGATED, compact, is_constant, touches_units
from hatrack.units.rules.registry import rule
from hatrack.units.trace import Call, Trace

__all__ = [
    "convolution",
    "embedding",
    "first_axis",
    "inputs_of_weight",
    "is_uniform",
    "linear",
    "transposed_convolution",
]


def is_uniform(labels: Tensor) -> bool:
    """Return whether labels are the same everywhere."""
    labels = compact(labels)
    return bool((labels == labels.flatten()[0]).all())


@rule(nn.Linear)
def linear(trace: Trace, call: Call) -> Tensor:
    """A dense layer: weight ``(out, in)``, units along the last axis.

    Where the last axis does not count units (mixing the tokens of every channel, say), the layer is shared by all units
    and passes them on.
    """
    labels = trace.labels(call.argument(0, "input"))
    if is_constant(labels, -1) and not is_uniform(labels):
        for parameter in call.target.parameters():
            trace.use(parameter, torch.full((1,), UNGATED))
        return labels[..., :1].expand(call.output.shape)
    return _mix(trace, call, axis=-1)


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(trace: Trace, call: Call) -> Tensor:
    """A convolution: weight ``(out, in / groups, *kernel)``, units along the channel axis.

    A depthwise one, whose groups are single channels, passes units on, where there are any. So does one over single
    positions whose channels are not what counts units, but the tokens, say: it is shared by all units.
    """
    module = call.target
    axis = -1 - len(module.kernel_size)
    labels = trace.labels(call.argument(0, "input"))
    pointwise = max(module.kernel_size) == max(module.stride) == 1 and module.padding in (
        (0,) * len(module.kernel_size),
        "valid",
    )
    if pointwise and is_constant(labels, axis) and not is_uniform(labels):
        for parameter in module.parameters():
            trace.use(parameter, torch.full((1,), UNGATED))
        return labels.narrow(axis, 0, 1).expand(call.output.shape)
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
    """A transposed convolution: weight ``(in, out / groups, *kernel)``, units along the channel axis."""
    module = call.target
    axis = -1 - len(module.kernel_size)
    kernel = (1,) * len(module.kernel_size)
    inputs = trace.read(call, call.argument(0, "input"), axis)
    outputs = trace.write(call, module.out_channels)
    per_group = outputs.view(module.groups, 1, -1).expand(-1, module.in_channels // module.groups, -1)
    trace.use_of(call, "weight", inputs.view(-1, 1, *kernel), per_group.reshape(module.in_channels, -1, *kernel))
    trace.use_of(call, "bias", outputs)
    return first_axis(outputs, -axis).expand(call.output.shape)


@rule(nn.Embedding)
def embedding(trace: Trace, call: Call) -> Tensor:
    """A table of vectors ``(entries, units)``: every column is a unit, written for whatever entry is looked up."""
    if call.target.max_norm is not None:
        raise trace.refuse(call, "max_norm rescales entries while they are looked up, so they could not be protected")
    outputs = trace.write(call, call.target.embedding_dim)
    trace.use_of(call, "weight", outputs.view(1, -1))
    return outputs.expand(call.output.shape)


def _mix(trace: Trace, call: Call, axis: int) -> Tensor:
    module = call.target
    weight: nn.Parameter = module.weight
    groups = getattr(module, "groups", 1)
    inputs = trace.read(call, call.argument(0, "input"), axis)
    outputs = trace.write(call, weight.shape[0])
    trace.use_of(call, "weight", first_axis(outputs, weight.dim()), inputs_of_weight(inputs, weight, groups))
    trace.use_of(call, "bias", outputs)
    return first_axis(outputs, -axis).expand(call.output.shape)


def inputs_of_weight(inputs: Tensor, weight: Tensor, groups: int) -> Tensor:
    """The labels that the entries of a weight ``(out, in / groups, ...)`` read, broadcastable to its shape."""
    per_group = inputs.view(groups, 1, -1).expand(-1, 1 if groups == 1 else weight.shape[0] // groups, -1)
    ends = per_group.reshape(-1, weight.shape[1])
    return ends.view(*ends.shape, *(1,) * (weight.dim() - 2))


def first_axis(labels: Tensor, dimensions: int) -> Tensor:
    """A vector as a tensor of so many axes that is 1 wide in all but the first."""
    return labels.view(-1, *(1,) * (dimensions - 1))
