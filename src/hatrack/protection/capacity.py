"""Capacity of a network that its tasks use, and the reuse of weights between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hatrack.protection.frozen import attention_on_entries
from hatrack.support.notebook import html_table
from hatrack.units import ParameterUse, Role, UnitGraph

__all__ = ["Capacity", "common_entries", "measure_capacity", "measure_reuse"]

_ENTRIES_AT_ONCE = 1 << 24
"""Number of entries of masks to convert to floats at a time; counts up to 2^24 are exact in float32."""


@dataclass(frozen=True)
class Capacity:
    """Shares of a network that consolidated tasks use, each in [0, 1].

    Attributes:
        groups: share of used units, by group; of used weights, by parameter, where masks are about weights; of used
            modules (PathNet), or of weights that are not 0 (DEN), by layer.
        units: share of used units over all groups; 0 for a network without units, None where masks are about weights.
        weights: share of the entries of shared parameters that are frozen, that masks of weights use, or (DEN) that are
            not 0.
        parameters: number of entries of shared parameters, which grows with the network; untrained ones do not count.
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

    def _repr_html_(self) -> str:
        units = "" if self.units is None else f"{self.units:.1%} of the units and "
        title = f"{units}{self.weights:.1%} of {self.parameters:,} weights are in use"
        what = "parameter" if self.units is None else "group"
        return html_table(title, (what, "in use"), ((n or "backbone", f"{s:.1%}") for n, s in self.groups.items()))


def measure_capacity(graph: UnitGraph, cumulative: Tensor, num_frozen: int) -> Capacity:
    """Measure the shares of a network with masks of units that are in use.

    Args:
        graph: the network's units.
        cumulative: attention of all consolidated tasks, ``(U,)``, booleans or numbers (used means exactly 1).
        num_frozen: number of frozen entries of shared parameters.
    """
    used = cumulative == 1
    left_out = (Role.PER_TASK, Role.UNTRAINED)
    entries = sum(shape.numel() for name, shape in graph.shapes.items() if graph.roles[name] not in left_out)
    return Capacity(
        {name: float(part.float().mean()) for name, part in graph.split(used).items()},
        float(used.float().mean()) if graph.num_units else 0.0,
        num_frozen / entries if entries else 0.0,
        entries,
    )


def measure_reuse(graph: UnitGraph, masks: Sequence[Tensor]) -> Tensor:
    """Measure the share of the weights of task i that task j uses too (the HAT paper, Fig. 6).

    Args:
        graph: the network's units.
        masks: units that each task uses, booleans ``(U,)``.

    Returns:
        ``(T, T)``, rows i and columns j, with ones on the diagonal; 0 where a task uses no weight at all.
    """
    if not masks:
        return torch.zeros(0, 0)
    on = torch.stack([torch.cat([mask, mask.new_ones(1)]) for mask in masks])
    shared = torch.zeros(len(masks), len(masks), dtype=torch.float64)  # counts, exact up to 2^53
    for name, uses in graph.uses.items():
        if graph.roles[name] is Role.MIXING:
            shape = graph.shapes[name]
            counted = _shared_by_sides(uses, on, shape)
            if counted is None:
                counted = common_entries([attention_on_entries(uses, mask, shape) for mask in on]).double()
            shared += counted
    shares: Tensor = shared / shared.diagonal().clamp_min(1).unsqueeze(1)
    return shares.float()


def _shared_by_sides(uses: Sequence[ParameterUse], on: Tensor, shape: torch.Size) -> Tensor | None:
    """Count the entries of a parameter that two tasks have in common, ``(T, T)``, without looking at each entry.

    The entries that a task uses are an outer product of the units that it uses on each side; so are common entries.

    Returns:
        The counts; None if the sides do not vary along axes of their own.
    """
    sides = uses[0].sides
    axes = [axis for side in sides for axis in _varying(side, len(shape))]
    if len(uses) != 1 or len(set(axes)) != len(axes):
        return None
    rest = math.prod(size for axis, size in enumerate(shape) if axis not in axes)
    counts = torch.full((len(on), len(on)), float(rest), dtype=torch.float64)
    for side in sides:
        used = on[:, side.flatten().to(on.device)].to(torch.float64).cpu()
        counts *= used @ used.T
    return counts


def _varying(side: Tensor, dim: int) -> list[int]:
    """Return the axes of a parameter along which one of its sides has more than one entry."""
    return [dim - side.dim() + axis for axis, size in enumerate(side.shape) if size > 1]


def common_entries(masks: Sequence[Tensor]) -> Tensor:
    """Count the entries that any two masks have in common, ``(T, T)``, int64, on the CPU.

    Products of matrices do it, some columns at a time: a thousand tasks make half a million pairs.

    Args:
        masks: T booleans of one shape.
    """
    tasks = len(masks)
    common = torch.zeros(tasks, tasks, dtype=torch.int64)
    if not tasks:
        return common
    flat = [mask.reshape(-1) for mask in masks]
    step = max(1, _ENTRIES_AT_ONCE // tasks)
    for start in range(0, len(flat[0]), step):
        part = torch.stack([mask[start : start + step] for mask in flat]).float()
        common += (part @ part.T).round().long().cpu()
    return common
