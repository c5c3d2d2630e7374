"""Error of a metric by the choice of the test samples, for metrics that are no share of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hatrack.objectives.base import Objective

__all__ = ["GROUPS", "error_by_samples"]

GROUPS = 20
"""Number of groups of samples, each of which is left out once; the error is known to a sixth with them."""


@torch.no_grad()
def error_by_samples(objective: Objective, outputs: Tensor, targets: Tensor) -> float | None:
    """Estimate the standard error of a task's metric by the choice of its samples.

    The grouped jackknife (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, section 11): the metric is
    measured without each of ``G`` groups of samples, which are drawn once and for all. If the results are ``m_g``, with
    mean ``m``, the error is ``√((G − 1) / G · Σ (m_g − m)²)``.

    Args:
        objective: what outputs and targets mean.
        outputs: outputs ``(N, outputs)``.
        targets: targets, ``(N, …)``.

    Returns:
        The standard error, above 0; None where it is not known: with fewer samples than groups, where the metric is not
        defined without one of the groups, and where it is the same without each of them.
    """
    if len(outputs) < GROUPS:
        return None
    order = torch.randperm(len(outputs), generator=torch.Generator().manual_seed(0))
    group_of = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)) % GROUPS)
    measured = [objective.measure(outputs[group_of != group], targets[group_of != group]) for group in range(GROUPS)]
    if not all(map(math.isfinite, measured)):
        return None
    mean = math.fsum(measured) / GROUPS
    error = math.sqrt((GROUPS - 1) / GROUPS * math.fsum((each - mean) ** 2 for each in measured))
    return error if error > 0.0 else None
