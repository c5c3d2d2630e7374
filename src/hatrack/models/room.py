"""Plan for tasks to come: free units or weights, and a rough number of tasks that they are enough for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hatrack.support.notebook import html_table

__all__ = ["GroupPlan", "Plan", "make_plan"]


@dataclass(frozen=True)
class GroupPlan:
    """Free capacity of one group of units, or of one parameter with masks of weights.

    Attributes:
        size: number of units (weights).
        free: number of units (weights) that no consolidated task uses.
        per_task: mean number that a task so far used and no task before it did.
        tasks_left: number of further tasks that the free ones are enough for, rounded down; None if no task so far
            used any.
    """

    size: int
    free: int
    per_task: float
    tasks_left: int | None


@dataclass(frozen=True)
class Plan:
    """Rough estimate of the capacity left for further tasks.

    It assumes that further tasks are as large as the tasks so far. In a nearly full network tasks share more and use
    fewer free units, since only those cost, so that a network seldom has no room for a task; the task then has fewer
    units of its own.

    Attributes:
        groups: plans by group of units, or by parameter.
        tasks: number of consolidated tasks that the estimate is based on.
        tasks_left: number of further tasks that fit into the fullest group; None without a task to estimate from.
        bottleneck: name of that group; None without a task to estimate from.
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
        return "\n".join([*lines, self._guess()])

    def _repr_html_(self) -> str:
        rows = (
            (name or "backbone", part.size, part.free, f"{part.per_task:.1f}", part.tasks_left)
            for name, part in self.groups.items()
        )
        return html_table(self._guess(), ("group", "size", "free", "taken per task", "tasks left"), rows)

    def _guess(self) -> str:
        if self.tasks_left is None:
            return "nothing to guess from yet: how many more tasks fit is not known"
        return f"roughly {self.tasks_left} more tasks fit, by {self.bottleneck or 'backbone'}"


def make_plan(sizes: Mapping[str, int], masks: Sequence[Mapping[str, Tensor]]) -> Plan:
    """Estimate the capacity left from the masks of tasks.

    Args:
        sizes: number of units by group, or of weights by parameter.
        masks: masks of each consolidated task by group: booleans, or numbers in [0, 1], of which 1/2 and more count as
            used.
    """
    groups = {}
    for name, size in sizes.items():
        used = torch.zeros(size, dtype=torch.bool)
        for mask in masks:
            used |= (mask[name] >= 0.5).flatten().cpu()
        free = size - int(used.sum())
        per_task = (size - free) / len(masks) if masks else 0.0
        groups[name] = GroupPlan(size, free, per_task, math.floor(free / per_task) if per_task else None)
    bounded = {name: part.tasks_left for name, part in groups.items() if part.tasks_left is not None}
    bottleneck = min(bounded, key=lambda name: bounded[name]) if bounded else None
    return Plan(groups, len(masks), None if bottleneck is None else bounded[bottleneck], bottleneck)
