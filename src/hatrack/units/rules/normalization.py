"""Rules of normalisation layers.

Their shift reaches every position, also padding that belonged to no unit: from there on it belongs to the unit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hatrack.support.untrained import is_untrained_norm
from hatrack.units.coupling import UNGATED, compact, first_axis, is_constant
from hatrack.units.rules.registry import rule
from hatrack.units.trace import Call, Labels, Trace

__all__ = ["batch_norm", "group_norm", "instance_norm", "is_within", "layer_norm", "merged"]

_AXES_AFTER_CHANNELS = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def batch_norm(trace: Trace, call: Call) -> Tensor:
    """Pass units on: batch norm works on each by itself, and every task has its own statistics and parameters.

    An untrained one has statistics that never move, and may be called in several places.
    """
    again = call.name in trace.per_task
    if again and not is_untrained_norm(call.target):
        raise trace.refuse(call, "a batch norm that is called twice has no rule yet: give each place its own")
    trace.per_task += [] if again else [call.name]
    labels = trace.labels(call.argument(0, "input"))
    if call.target.track_running_stats:
        channels = compact(labels).movedim(1, 0).flatten(1)
        largest = channels.amax(dim=1)
        if bool(((channels == largest.unsqueeze(1)) | (channels == UNGATED)).all()):  # else a channel is several units
            trace.pass_on(call, largest.expand(labels.shape[1]))
        return labels
    units = trace.coupling.along(labels, 1)  # statistics of the batch, which run over all that shares a channel
    trace.pass_on(call, units)
    return first_axis(units, labels.dim() - 1).expand(labels.shape)


@rule(*_AXES_AFTER_CHANNELS)
def instance_norm(trace: Trace, call: Call) -> Labels:
    """Pass units on: instance norm works on each by itself; running statistics, if there are any, are per task."""
    if call.target.track_running_stats:
        return batch_norm(trace, call)
    labels = trace.labels(call.argument(0, "input"))
    after = next(count for kind, count in _AXES_AFTER_CHANNELS.items() if isinstance(call.target, kind))
    units = trace.coupling.along(labels, -1 - after)
    trace.pass_on(call, units)
    _use_affine(trace, call, units)
    return first_axis(units, after + 1).expand(labels.shape)


@rule(nn.LayerNorm, nn.RMSNorm)
def layer_norm(trace: Trace, call: Call) -> Tensor:
    """Read what layer norm normalises, whose statistics mix units, and pass units on.

    Statistics run over the original width, in which units that are off count as zeros. Where it normalises within each
    head of an attention, say, each head becomes one unit, and nothing is read.
    """
    value = call.argument(0, "input")
    normalized = len(call.target.normalized_shape)
    labels = trace.labels(value)
    if is_within(trace, labels, normalized):
        _use_affine(trace, call, torch.full((1,), UNGATED))
        return merged(trace, labels, normalized)
    axis = trace.axis_of_units(labels, range(-normalized, 0))
    units = trace.read(call, value, axis)
    per_entry = first_axis(units, -axis).expand(labels.shape[-normalized:])
    _use_affine(trace, call, per_entry)
    return per_entry.expand(labels.shape)


@rule(nn.GroupNorm)
def group_norm(trace: Trace, call: Call) -> Tensor:
    """Read the input of a group norm, whose statistics mix the units of a group, and pass units on."""
    value = call.argument(0, "input")
    units = trace.read(call, value, 1 - value.dim())
    _use_affine(trace, call, units)
    return first_axis(units, value.dim() - 1).expand(value.shape)


def _use_affine(trace: Trace, call: Call, units: Tensor) -> None:
    for name in ("weight", "bias"):
        trace.use_of(call, name, units)


def is_within(trace: Trace, labels: Tensor, normalized: int) -> bool:
    """Return whether the last axes lie within something that there are several of in one layer, such as heads."""
    if trace.holds_entries(labels):
        return False
    last = range(labels.dim() - normalized, labels.dim())
    of_one_unit = all(is_constant(labels, axis) for axis in last)  # such as a head, which is one already
    return (of_one_unit or any(trace.coupling.is_across(labels, axis) for axis in last)) and (
        trace.coupling.is_across_any_but(labels, last)
    )


def merged(trace: Trace, labels: Tensor, normalized: int) -> Tensor:
    """Merge all units along the last axes into one.

    Args:
        trace: the trace.
        labels: labels of a value.
        normalized: number of axes.
    """
    for axis in range(-normalized, 0):
        labels = trace.coupling.merge(labels, axis).expand(labels.shape)
    return labels
