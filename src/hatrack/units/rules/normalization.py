"""Normalisation layers.

Their shift reaches every position, padding that belonged to no unit included: from there on it belongs to the unit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hatrack.units.coupling import UNGATED
from hatrack.units.rules.registry import rule
from hatrack.units.trace import Call, Labels, Trace

__all__ = ["batch_norm", "group_norm", "instance_norm", "is_within", "layer_norm", "merged"]

_AXES_AFTER_CHANNELS = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(trace: Trace, call: Call) -> Tensor:
    """Batch norm works on every unit by itself, and every task has its own statistics and affine parameters."""
    if call.name in trace.per_task:
        raise trace.refuse(call, "a batch norm that is called twice has no rule yet: give each place its own")
    trace.per_task.append(call.name)
    labels = trace.labels(call.argument(0, "input"))
    if call.target.track_running_stats:
        channels = labels.movedim(1, 0).flatten(1)
        largest = channels.amax(dim=1)
        if bool(((channels == largest.unsqueeze(1)) | (channels == UNGATED)).all()):  # else a channel is several units
            trace.pass_on(call, largest)
        return labels
    units = trace.coupling.along(labels, 1)  # statistics of the batch, which run over all that shares a channel
    trace.pass_on(call, units)
    return units.view(-1, *(1,) * (labels.dim() - 2)).expand(labels.shape)


@rule(*_AXES_AFTER_CHANNELS)
def instance_norm(trace: Trace, call: Call) -> Labels:
    """Instance norm works on every unit by itself; running statistics, if it has any, are every task's own."""
    if call.target.track_running_stats:
        return batch_norm(trace, call)
    labels = trace.labels(call.argument(0, "input"))
    after = next(count for kind, count in _AXES_AFTER_CHANNELS.items() if isinstance(call.target, kind))
    units = trace.coupling.along(labels, -1 - after)
    trace.pass_on(call, units)
    trace.use_of(call, "weight", units)
    trace.use_of(call, "bias", units)
    return units.view(-1, *(1,) * after).expand(labels.shape)


@rule(nn.LayerNorm, nn.RMSNorm)
def layer_norm(trace: Trace, call: Call) -> Tensor:
    """Layer norm mixes units in its statistics: it reads what it normalises, and passes units on.

    Statistics run over the original width, in which units that are off count as zeros. Where it normalises within each
    head of an attention, say, what it normalises becomes one unit, and nothing is read.
    """
    value = call.argument(0, "input")
    normalized = len(call.target.normalized_shape)
    labels = trace.labels(value)
    if is_within(trace, labels, normalized):
        for name in ("weight", "bias"):
            trace.use_of(call, name, torch.full((1,), UNGATED))
        return merged(trace, labels, normalized)
    axis = trace.axis_of_units(labels, range(-normalized, 0))
    units = trace.read(call, value, axis)
    per_entry = units.view(-1, *(1,) * (-axis - 1)).expand(labels.shape[-normalized:])
    trace.use_of(call, "weight", per_entry)
    trace.use_of(call, "bias", per_entry)
    return per_entry.expand(labels.shape)


@rule(nn.GroupNorm)
def group_norm(trace: Trace, call: Call) -> Tensor:
    """Group norm mixes the units of a group in its statistics: it reads its input, and passes units on."""
    value = call.argument(0, "input")
    units = trace.read(call, value, 1 - value.dim())
    trace.use_of(call, "weight", units)
    trace.use_of(call, "bias", units)
    return units.view(-1, *(1,) * (value.dim() - 2)).expand(value.shape)


def is_within(trace: Trace, labels: Tensor, normalized: int) -> bool:
    """Return whether the last axes lie within something that there are several of in one layer, such as heads."""
    if any(bool(((labels >= start) & (labels <= end)).any()) for start, end in trace.entries):
        return False  # entries of a parameter, such as tokens of features, are units only until they meet others
    last = range(labels.dim() - normalized, labels.dim())
    return any(trace.coupling.is_across(labels, axis) for axis in last) and trace.coupling.is_across_any_but(
        labels, last
    )


def merged(trace: Trace, labels: Tensor, normalized: int) -> Tensor:
    """Make all that lies along the last axes one unit each."""
    for axis in range(-normalized, 0):
        labels = trace.coupling.merge(labels, axis).expand(labels.shape)
    return labels
