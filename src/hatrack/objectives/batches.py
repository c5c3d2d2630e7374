"""Targets and losses of samples of several tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.objectives.base import Objective
from hatrack.objectives.classification import Classification

__all__ = ["joined_loss", "joined_targets"]


def joined_targets(objectives: Sequence[Objective], targets: Sequence[Tensor]) -> Tensor:
    """Join the targets of several tasks.

    Args:
        objectives: objective of every task.
        targets: targets of its samples.

    Returns:
        Targets as they are for one task, and classes ``(N,)`` for tasks of classes; else float64 ``(N, width)``, see
        :meth:`Objective.packed`.
    """
    if len(targets) == 1:
        return targets[0]
    if all(isinstance(objective, Classification) for objective in objectives):
        return torch.cat(list(targets))
    packed = [objective.packed(part) for objective, part in zip(objectives, targets, strict=True)]
    widest = max(part.shape[1] for part in packed)
    return torch.cat([F.pad(part, (0, widest - part.shape[1])) for part in packed])


def joined_loss(objectives: Sequence[Objective], outputs: Tensor, targets: Tensor, task_of: Tensor) -> Tensor:
    """Return the mean loss of samples of several tasks, a scalar.

    Args:
        objectives: objective of every task.
        outputs: ``(N, most outputs)``; what is behind a task's last one does not count, and is −inf for classes.
        targets: as from :func:`joined_targets`.
        task_of: index of every sample's task, int64 ``(N,)``.
    """
    if len(objectives) == 1:
        return objectives[0].loss(outputs, targets)
    if all(isinstance(objective, Classification) and objective.weights is None for objective in objectives):
        return F.cross_entropy(outputs, targets)
    total = outputs.new_zeros(())
    for index, objective in enumerate(objectives):
        rows = (task_of == index).nonzero().squeeze(1)
        if len(rows):
            loss = objective.loss(outputs[rows, : objective.outputs], objective.unpacked(targets[rows]))
            total = total + loss * (len(rows) / len(outputs))
    return total
