"""Rules of pooling and reductions, which merge positions and keep units."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.units.coupling import UNGATED, first_axis
from hatrack.units.rules.elementwise import binary
from hatrack.units.rules.registry import functions, rule
from hatrack.units.trace import Call, Labels, Trace

__all__ = ["extreme", "interpolate", "pool", "reduce"]

_KINDS = ("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool")
_DIM_IS_THIRD = ("norm", "normalize", "linalg_vector_norm", "linalg_norm")
"""Names of functions whose third argument names the axes that are reduced; the second one elsewhere."""

MANY = 8
"""Smallest number of units of a layer that must not be merged into one."""

_POOLS = {
    target: dimensions
    for dimensions in (1, 2, 3)
    for kind in _KINDS
    for suffix in ("", "_with_indices" if "max" in kind else "")
    for target in functions(f"{kind}{dimensions}d{suffix}")
}


@rule(*_POOLS)
def pool(trace: Trace, call: Call) -> Labels:
    """Merge positions in pooling over one, two or three axes; the axis before them counts units."""
    axis = -1 - _POOLS[call.target]
    units = trace.coupling.along(trace.labels(call.argument(0, "input")), axis)
    output: Tensor = call.output[0] if isinstance(call.output, tuple) else call.output
    labels = first_axis(units, -axis).expand(output.shape)
    return (labels, labels) if isinstance(call.output, tuple) else labels


@rule(F.interpolate)
def interpolate(trace: Trace, call: Call) -> Tensor:
    """Resize all axes after the second, which counts units."""
    value = call.argument(0, "input")
    units = trace.coupling.along(trace.labels(value), 1)
    return first_axis(units, value.dim() - 1).expand(call.output.shape)


@rule(
    *functions(
        "mean sum amax amin logsumexp var std softmax softmin log_softmax cumsum norm var_mean std_mean normalize"
    ),
    torch.linalg.vector_norm,
    torch.linalg.norm,
)
def reduce(trace: Trace, call: Call) -> Labels:
    """Merge positions of one unit in reductions and running sums.

    A reduction over several units of a layer reads them, where a gate can stand before it. Where none can, and it
    leaves several units or reduces few, those that it reduces become one unit, as in a maxout.
    """
    if isinstance(call.output, tuple):
        labels = reduce(trace, replace(call, output=call.output[0]))
        return tuple(labels for _ in call.output)
    value = call.argument(0, "input")
    axes = call.argument(2 if getattr(call.target, "__name__", "") in _DIM_IS_THIRD else 1, "dim")
    axes = 1 if axes is None and call.target is F.normalize else axes
    if isinstance(value, nn.Parameter) and 0 in _chosen(axes, value):
        trace.coupling.pin(trace.labels(value))  # such as the weights of a learned mixture
    labels = trace.labels(value)
    chosen = _chosen(axes, value)
    for axis in chosen:
        parameter = isinstance(value, nn.Parameter) or trace.holds_entries_alone(labels)
        if not parameter and trace.coupling.is_across(labels, axis) and not _leaves_units(trace, call, labels, axis):
            if len(chosen) == 1:
                trace.coupling.along(labels, axis)  # first, since it tells which axis counts units
            trace.read_inside(call, value)
            if call.output.shape == value.shape:
                return trace.labels(value)  # what comes of a unit that is off depends on those that are on
            labels = torch.full(value.shape, UNGATED)
            break
        labels = trace.coupling.merge(labels, axis).expand(labels.shape)
    if call.output.shape == value.shape:
        return labels
    for axis in reversed(chosen):
        labels = labels.narrow(axis, 0, 1) if call.output.dim() == value.dim() else labels.select(axis, 0)
    return labels


def _chosen(axes: Any, value: Tensor) -> list[int]:
    """Return the axes that are reduced, counted from the front, in order; all of them if none is named."""
    if axes is None or isinstance(axes, bool) or axes in ((), []):
        return list(range(value.dim()))
    return sorted(axis % value.dim() for axis in ([axes] if isinstance(axes, int) else axes))


def _leaves_units(trace: Trace, call: Call, labels: Tensor, axis: int) -> bool:
    """Return whether a reduction may merge several units: others are left, or there are few and no gate can be."""
    cannot_read = trace.sources.of(call.argument(0, "input")) is None
    if trace.coupling.is_across_any_but(labels, [axis]):
        return cannot_read or not trace.holds_entries(labels)
    return cannot_read and labels.shape[axis] < MANY


@rule(*functions("max min"))
def extreme(trace: Trace, call: Call) -> Labels:
    """Couple the units of two values of which the larger or smaller is taken, or reduce a single value."""
    return (binary if isinstance(call.argument(1, "other"), Tensor) else reduce)(trace, call)
