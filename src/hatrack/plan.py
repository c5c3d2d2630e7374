"""How much room is left, and roughly for how many more tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GroupPlan", "Plan", "make_plan"]


@dataclass(frozen=True)
class GroupPlan:
    """The room in one group of units, or in one parameter where masks are about weights.

    Attributes:
        size: how many units (weights) there are.
        free: how many no consolidated task uses.
        per_task: how many a task took so far that no task before it had, on the mean over tasks.
        tasks_left: for how many more tasks that is enough, rounded down; None if no task so far took any.
    """

    size: int
    free: int
    per_task: float
    tasks_left: int | None


@dataclass(frozen=True)
class Plan:
    """How much room is left.

    A rough guess: it takes tasks to come for as large as the tasks so far. Tasks that find little room share more and
    take less, since what is free costs and what is used does not, so that a network seldom refuses a task; it learns
    it with less of its own.

    Attributes:
        groups: by group of units, or by parameter.
        tasks: number of consolidated tasks that the guess is made from.
        tasks_left: how many more tasks fit into the fullest group; None where nothing can be said.
        bottleneck: the name of that group; None where nothing can be said.
    """

    groups: Mapping[str, GroupPlan]
    tasks: int
    tasks_left: int | None
    bottleneck: str | None

    def __str__(self) -> str:
        lines = [
            f"{name or 'backbone'}: {part.free} of {part.size} free, {part.per_task:.1f} taken per task"
            for name, part in self.groups.items()
        ]
        if self.tasks_left is None:
            return "\n".join([*lines, "nothing to guess from yet: how many more tasks fit is not known"])
        guess = f"roughly {self.tasks_left} more tasks fit, by {self.bottleneck or 'backbone'}"
        return "\n".join([*lines, guess])


def make_plan(sizes: Mapping[str, int], masks: Sequence[Mapping[str, Tensor]]) -> Plan:
    """Plan from what tasks use.

    Args:
        sizes: number of units by group, or of weights by parameter.
        masks: for each consolidated task, in order, what it uses by group: booleans, or numbers in [0, 1], of which 1/2
            and more counts as used.
    """
    groups = {}
    for name, size in sizes.items():
        used = torch.zeros(size, dtype=torch.bool)
        for mask in masks:
            used |= (mask[name] >= 0.5).flatten().cpu()
        free, taken = size - int(used.sum()), int(used.sum())
        per_task = taken / len(masks) if masks else 0.0
        groups[name] = GroupPlan(size, free, per_task, math.floor(free / per_task) if per_task else None)
    bounded = {name: part.tasks_left for name, part in groups.items() if part.tasks_left is not None}
    bottleneck = min(bounded, key=lambda name: bounded[name]) if bounded else None
    return Plan(groups, len(masks), None if bottleneck is None else bounded[bottleneck], bottleneck)
