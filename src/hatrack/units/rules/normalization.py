"""Normalisation layers."""

from __future__ import annotations

from torch import Tensor, nn

from hatrack.units.rules.registry import rule
from hatrack.units.trace import Call, Trace

__all__ = ["batch_norm"]


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(trace: Trace, call: Call) -> Tensor:
    """Batch norm works on every unit by itself, and every task has its own statistics and affine parameters."""
    if call.name in trace.per_task:
        raise trace.refuse(call, "a batch norm that is called twice has no rule yet: give each place its own")
    trace.per_task.append(call.name)
    return trace.labels(call.argument(0, "input"))
