"""Layers that mix units: they read the units of their input and write units of their own."""

from __future__ import annotations

from torch import Tensor, nn

from hatrack.units.rules.registry import rule
from hatrack.units.trace import Call, Trace

__all__ = ["convolution", "linear"]


@rule(nn.Linear)
def linear(trace: Trace, call: Call) -> Tensor:
    """A dense layer: weight ``(out, in)``, units along the last axis."""
    return _mix(trace, call, axis=-1)


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(trace: Trace, call: Call) -> Tensor:
    """A convolution: weight ``(out, in, *kernel)``, units along the channel axis."""
    module = call.target
    if module.transposed:
        raise trace.refuse(call, "there is no rule for transposed convolutions yet")
    if module.groups != 1:
        raise trace.refuse(call, "there is no rule for grouped convolutions yet")
    return _mix(trace, call, axis=-1 - len(module.kernel_size))


def _mix(trace: Trace, call: Call, axis: int) -> Tensor:
    weight: nn.Parameter = call.target.weight
    inputs = trace.read(call, call.argument(0, "input"), axis)
    outputs = trace.write(call, weight.shape[0])
    kernel = (1,) * (weight.dim() - 2)
    trace.use(weight, outputs.view(-1, 1, *kernel), inputs.view(1, -1, *kernel))
    trace.use(call.target.bias, outputs)
    positions = (1,) * (-axis - 1)
    return outputs.view(-1, *positions).expand(call.output.shape)
