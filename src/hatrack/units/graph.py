"""The result of the analysis: groups of units, who reads them, and what every parameter is to them."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Group", "ParameterUse", "Reader", "Role", "UnitGraph", "warn_of_collapse"]

MANY = 8
"""From how many outputs on it is worth a warning if they are one unit."""


class Role(str, enum.Enum):
    """What a parameter is to the units; every parameter has exactly one role."""

    MIXING = "mixing"
    """Connects units that are read with units that are written: a weight. Held where one task uses both ends."""

    PER_UNIT = "per-unit"
    """Belongs to the units it is written for: a bias. Held where a task uses the unit."""

    PER_TASK = "per-task"
    """Each task has its own: embeddings, heads, batch norm. Held wholly once its task is consolidated."""

    WHOLE = "whole"
    """Shared by all units and tasks. Held wholly from the first consolidated task on."""


@dataclass(frozen=True)
class Group:
    """Units that are gated side by side, as a contiguous stretch of every task's embedding.

    Attributes:
        name: the layer that writes them (several, joined by ``+``, when they are coupled).
        start: position of the first unit in the embedding.
        size: number of units.
        readers: the layers that read them.
        outputs: how many outputs of a layer they stand for; more than there are units where outputs are coupled, as
            those of an attention head.
    """

    name: str
    start: int
    size: int
    readers: tuple[str, ...]
    outputs: int

    @property
    def span(self) -> slice:
        """The group's stretch of an embedding."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class Reader:
    """A layer whose input is gated.

    Attributes:
        module: name of the layer; the backbone's result, which the heads read, has the name ``""``.
        argument: position of the argument that is gated.
        keyword: name of that argument.
        axis: its axis that counts units, negative (counted from the end).
        units: position in the embedding for every index of that axis, int64; the number of units stands for "ungated".
    """

    module: str
    argument: int
    keyword: str
    axis: int
    units: Tensor


@dataclass(frozen=True)
class ParameterUse:
    """One use of a parameter by one layer.

    Attributes:
        sides: for each end, positions in the embedding, int64 and broadcastable to the parameter's shape; the number of
            units stands for "ungated", which counts as used by every task. An entry matters to a task if the task uses
            all its ends.
    """

    sides: tuple[Tensor, ...]


@dataclass(frozen=True)
class UnitGraph:
    """Units of a network, found by one labelled run of it.

    Attributes:
        num_units: number of units, the length of an embedding.
        groups: the groups, in the order of their first layer; they cover every unit once.
        readers: the layers whose input is gated, the heads included.
        uses: for the name of every parameter all its uses (parameters that belong to tasks have none).
        roles: the role of every parameter, by name.
        shapes: the shape of every parameter, by name.
        per_task_modules: names of the modules of which every task has its own copy.
        outputs: for layers that open units, or have something for each unit that they pass on, by name: position in the
            embedding for every output, int64; the number of units stands for "ungated".
    """

    num_units: int
    groups: tuple[Group, ...]
    readers: tuple[Reader, ...]
    uses: Mapping[str, tuple[ParameterUse, ...]]
    roles: Mapping[str, Role]
    shapes: Mapping[str, torch.Size]
    per_task_modules: tuple[str, ...]
    outputs: Mapping[str, Tensor] = field(default_factory=dict)

    def split(self, per_unit: Tensor) -> dict[str, Tensor]:
        """Cut a vector over all units, ``(num_units,)``, into one per group."""
        return {group.name: per_unit[group.span] for group in self.groups}

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            KeyError: there is none.
        """
        return {group.name: group for group in self.groups}[name]

    def features(self) -> Reader:
        """What the heads read: the last reader."""
        return self.readers[-1]

    def __str__(self) -> str:
        lines = [f"{_count(len(self.groups), 'group')}, {_count(self.num_units, 'unit')}"]
        lines += _table(
            ("group", "units", "read by"),
            [
                (group.name or "backbone", _size(group), ", ".join(name or "heads" for name in group.readers) or "–")
                for group in self.groups
            ],
        )
        lines += ["", _count(len(self.roles), "parameter")]
        lines += _table(
            ("parameter", "shape", "role", "protected with"),
            [
                (name, "×".join(map(str, self.shapes[name])), role.value, self._holders(name))
                for name, role in self.roles.items()
            ],
        )
        return "\n".join(lines)

    def _holders(self, name: str) -> str:
        """The groups that decide on a parameter, written as ``outputs × inputs``."""
        if self.roles[name] is Role.PER_TASK:
            return "its task"
        uses = [" × ".join(self._groups_of(side) for side in use.sides) for use in self.uses[name]]
        return " or ".join(dict.fromkeys(uses))

    def _groups_of(self, side: Tensor) -> str:
        positions = set(side.flatten().tolist())
        names = [g.name or "backbone" for g in self.groups if any(g.start <= p < g.start + g.size for p in positions)]
        return "+".join(names + (["always"] if self.num_units in positions else []))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(group: Group) -> str:
    return str(group.size) if group.size == group.outputs else f"{group.size} of {group.outputs} outputs"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in [head, *rows]
    ]


def warn_of_collapse(graph: UnitGraph) -> None:
    """Warn of layers all of whose outputs are one single unit: a task uses the layer wholly, or not at all."""
    for group in graph.groups:
        if group.size == 1 and group.outputs >= MANY:
            warnings.warn(
                f"all {group.outputs} outputs of {group.name} are coupled into a single unit, which the first task "
                "takes for good; more heads in attention, or nn.Linear for a product with a weight, keep them apart",
                stacklevel=3,
            )
