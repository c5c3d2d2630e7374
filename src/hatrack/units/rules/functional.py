"""Rules of layers called as functions: they read values that come in through the arguments of a module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.units.coupling import UNGATED, first_axis, touches_units
from hatrack.units.rules.elementwise import COPIES
from hatrack.units.rules.mixing import inputs_of_weight
from hatrack.units.rules.normalization import is_within, merged
from hatrack.units.rules.registry import functions, rule
from hatrack.units.rules.reshaping import RESHAPES
from hatrack.units.trace import Call, Trace

__all__ = [
    "batch_norm",
    "convolution",
    "embedding",
    "group_norm",
    "keeps_zeros",
    "layer_norm",
    "linear",
    "local_response_norm",
]

_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}


_KEEP_ZEROS = frozenset(
    [
        *(*RESHAPES, *COPIES, F.pad, *functions("dropout dropout1d dropout2d dropout3d relu relu_ relu6 leaky_relu")),
        *functions("elu gelu silu tanh hardswish mish sin abs square neg"),
    ]
)


def keeps_zeros(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a function gives 0 wherever a unit's values are 0."""
    if function is F.pad and (len(args) > 3 or kwargs.get("value")):
        return False
    try:
        return function in _KEEP_ZEROS
    except TypeError:  # not hashable
        return False


def linear(trace: Trace, call: Call) -> Tensor:
    """Read and write units of a dense layer with a weight ``(out, in)``."""
    return _mix(trace, call, axis=-1, groups=1)


@rule(*_CONVOLUTIONS)
def convolution(trace: Trace, call: Call) -> Tensor:
    """Read and write units of a convolution: weight ``(out, in / groups, *kernel)``; a depthwise one passes them on."""
    return _mix(trace, call, axis=-1 - _CONVOLUTIONS[call.target], groups=call.argument(6, "groups") or 1)


@rule(F.embedding, F.embedding_bag)
def embedding(trace: Trace, call: Call) -> Tensor:
    """Write the units of a table of vectors ``(entries, units)``, which are summed over a bag, or not."""
    table = call.argument(1, "weight")
    weights = call.argument(8, "per_sample_weights") if call.target is F.embedding_bag else None
    if isinstance(weights, Tensor):
        trace.coupling.pin(trace.labels(weights))  # each meets all columns
    if call.argument(3, "max_norm") is not None:
        raise trace.refuse(call, "max_norm rescales entries while they are looked up, so they could not be protected")
    outputs = _outputs(trace, call, table, axis=-1)
    _use(trace, table, outputs)
    return outputs.expand(call.output.shape)


@rule(*functions("layer_norm rms_norm"))
def layer_norm(trace: Trace, call: Call) -> Tensor:
    """Read what layer norm normalises, whose statistics mix units, and pass units on."""
    value = call.argument(0, "input")
    shape = call.argument(1, "normalized_shape")
    labels = trace.labels(value)
    if is_within(trace, labels, len(shape)):
        for parameter in (call.argument(2, "weight"), call.argument(3, "bias")):
            if isinstance(parameter, Tensor):
                trace.coupling.pin(trace.labels(parameter))  # all that it normalises shares it
        return merged(trace, labels, len(shape))
    axis = trace.axis_of_units(labels, range(-len(shape), 0))
    units = first_axis(trace.coupling.along(labels, axis), -axis)  # first, since it tells which axis counts units
    trace.read_inside(call, value)
    return _scaled(trace, call, units.expand(tuple(shape))).expand(labels.shape)


@rule(*functions("group_norm"))
def group_norm(trace: Trace, call: Call) -> Tensor:
    """Read the input of a group norm, whose statistics mix the units of a group, and pass units on."""
    value = call.argument(0, "input")
    units = _scaled(trace, call, trace.coupling.along(trace.labels(value), 1))
    trace.read_inside(call, value)
    return first_axis(units, value.dim() - 1).expand(value.shape)


@rule(F.batch_norm)
def batch_norm(trace: Trace, call: Call) -> Tensor:
    """Pass units on, which count along the second axis; such as the rows of a weight that is standardised.

    Statistics of the batch run over all that shares an index of that axis.
    """
    value = call.argument(0, "input")
    units = trace.coupling.along(trace.labels(value), 1)
    for position, name in ((3, "weight"), (4, "bias")):
        parameter = call.argument(position, name)
        if isinstance(parameter, Tensor):
            units = trace.coupling.couple(units, trace.labels(parameter))
    return first_axis(units, value.dim() - 1).expand(value.shape)


@rule(F.local_response_norm)
def local_response_norm(trace: Trace, call: Call) -> Tensor:
    """Read what is divided by the size of neighbouring channels, and pass units on."""
    value = call.argument(0, "input")
    units = trace.coupling.along(trace.labels(value), 1)
    trace.read_inside(call, value)
    return first_axis(units, value.dim() - 1).expand(value.shape)


def _scaled(trace: Trace, call: Call, units: Tensor) -> Tensor:
    """Couple units with those of a norm's weight and bias, where these were computed or used by themselves."""
    for position, name in ((2, "weight"), (3, "bias")):
        parameter = call.argument(position, name)
        if isinstance(parameter, Tensor):
            units = trace.coupling.couple(units, trace.labels(parameter))
    return units


def _mix(trace: Trace, call: Call, axis: int, groups: int) -> Tensor:
    """Read the units of the input along an axis and write new ones; depthwise, pass them on."""
    value, weight, bias = (call.argument(i, name) for i, name in enumerate(("input", "weight", "bias")))
    inputs = trace.coupling.along(trace.labels(value), axis)
    if 1 < groups == value.shape[axis] and touches_units(inputs):
        outputs = inputs.repeat_interleave(weight.shape[0] // groups)
        if trace.is_gated(weight):
            outputs = trace.coupling.couple(outputs, trace.coupling.along(trace.labels(weight), 0))
        _use(trace, weight, first_axis(outputs, weight.dim()))
    else:
        trace.read_inside(call, value)
        outputs = _outputs(trace, call, weight, axis=0)
        # What is not 0 where a unit is off, as after a norm, reaches all units that are written: all weights count.
        behind = inputs if trace.sources.is_cleared(value) else torch.full_like(inputs, UNGATED)
        _use(trace, weight, first_axis(outputs, weight.dim()), inputs_of_weight(behind, weight, groups))
    if isinstance(bias, Tensor):
        outputs = trace.coupling.couple(outputs, trace.labels(bias))
        _use(trace, bias, outputs)
    return first_axis(outputs, -axis).expand(call.output.shape)


def _outputs(trace: Trace, call: Call, weight: Tensor, axis: int) -> Tensor:
    """Return the units that a weight writes: new ones for a parameter, else those that its rows were computed from."""
    if trace.is_gated(weight):
        trace.weights.append(trace.coupling.along(trace.labels(weight), axis))
        return trace.weights[-1]
    if isinstance(weight, nn.Parameter):
        return trace.write(replace(call, name=trace.parameters[id(weight)]), weight.shape[axis])
    return torch.full((weight.shape[axis],), UNGATED)  # a constant: what comes out is computed behind the gates


def _use(trace: Trace, parameter: Any, *sides: Tensor) -> None:
    """Record the ends of a weight, unless it was computed: then its entries were opened as units before."""
    if isinstance(parameter, nn.Parameter) and not trace.is_gated(parameter):
        trace.use(parameter, *sides)
