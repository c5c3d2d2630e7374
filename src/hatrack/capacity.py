"""How much of a network its tasks use, and how much they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hatrack.protect import attention_on_entries
from hatrack.units import Role, UnitGraph

__all__ = ["Capacity", "measure_capacity", "measure_reuse"]


@dataclass(frozen=True)
class Capacity:
    """Shares of a network that consolidated tasks use, each in [0, 1].

    Attributes:
        groups: share of used units, by group; of used weights, by parameter, where masks are about weights; or of used
            modules, by layer (PathNet).
        units: share of used units over all groups; 0 for a network without units, None where tasks do not hold units.
        weights: share of the entries of shared parameters that must not move, or that masks of weights let through.
        parameters: number of entries of shared parameters, which says how far a network has grown.
    """

    groups: dict[str, float]
    units: float | None
    weights: float
    parameters: int

    def __str__(self) -> str:
        parts = [f"{name} {share:.0%}" for name, share in self.groups.items()]
        if self.units is None:
            return f"weights {self.weights:.0%} ({', '.join(parts)})"
        return f"units {self.units:.0%} ({', '.join(parts)}), weights {self.weights:.0%}"


def measure_capacity(graph: UnitGraph, cumulative: Tensor, held_entries: int) -> Capacity:
    """Shares in use.

    Args:
        graph: the network's units.
        cumulative: attention of all consolidated tasks, ``(U,)``, booleans or numbers (used means exactly 1).
        held_entries: how many entries of shared parameters must not move.

    Returns:
        The shares.
    """
    used = cumulative == 1
    entries = sum(shape.numel() for name, shape in graph.shapes.items() if graph.roles[name] is not Role.PER_TASK)
    return Capacity(
        {name: float(part.float().mean()) for name, part in graph.split(used).items()},
        float(used.float().mean()) if graph.num_units else 0.0,
        held_entries / entries if entries else 0.0,
        entries,
    )


def measure_reuse(graph: UnitGraph, masks: Sequence[Tensor]) -> Tensor:
    """Share of the weights of task i that task j uses too (the HAT paper, Fig. 6).

    Args:
        graph: the network's units.
        masks: for each task the units it uses, booleans ``(U,)``.

    Returns:
        ``(T, T)``, rows i and columns j, with ones on the diagonal; 0 where a task uses no weight at all.
    """
    tasks = len(masks)
    shared = torch.zeros(tasks, tasks, dtype=torch.int64)
    for name, uses in graph.uses.items():
        if graph.roles[name] is not Role.MIXING:
            continue
        active = [attention_on_entries(uses, torch.cat([mask, mask.new_ones(1)]), graph.shapes[name]) for mask in masks]
        for i in range(tasks):
            for j in range(i, tasks):
                shared[i, j] += int((active[i] & active[j]).sum())
    shared = shared.triu() + shared.triu(1).T
    return shared / shared.diagonal().clamp_min(1).unsqueeze(1)
