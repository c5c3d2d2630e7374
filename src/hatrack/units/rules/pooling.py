"""Pooling: positions are merged, units are not."""

from __future__ import annotations

from torch import Tensor

from hatrack.units.rules.registry import functions, rule
from hatrack.units.trace import Call, Labels, Trace

__all__ = ["pool"]

_KINDS = ("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool")
_POOLS = {
    target: dimensions
    for dimensions in (1, 2, 3)
    for kind in _KINDS
    for suffix in ("", "_with_indices" if "max" in kind else "")
    for target in functions(f"{kind}{dimensions}d{suffix}")
}


@rule(*_POOLS)
def pool(trace: Trace, call: Call) -> Labels:
    """Pooling over one, two or three axes; the axis before them counts units."""
    axis = -1 - _POOLS[call.target]
    units = trace.coupling.along(trace.labels(call.argument(0, "input")), axis)
    positions = (1,) * (-axis - 1)
    output: Tensor = call.output[0] if isinstance(call.output, tuple) else call.output
    labels = units.view(-1, *positions).expand(output.shape)
    return (labels, labels) if isinstance(call.output, tuple) else labels
