"""Result of the analysis: groups of units, their readers, and the role of every parameter."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hatrack.support.notebook import html_table
from hatrack.units.tables import counted, folded, listed, share, shortened, table

__all__ = ["OUTPUT", "Group", "ParameterUse", "Reader", "Role", "UnitGraph", "warn_of_collapse"]

OUTPUT = -1
"""Position that stands for a module's result among its arguments: it is gated there for functions that mix it."""

MANY = 8
"""Smallest number of outputs in a single unit that is worth a warning."""

MUCH = 0.2
"""Share of entries of no unit above which a warning is worth it."""


class Role(str, enum.Enum):
    """Role of a parameter towards the units; every parameter has exactly one."""

    MIXING = "mixing"
    """Weight between units that are read and units that are written; frozen where a task uses both ends."""

    PER_UNIT = "per-unit"
    """Parameter of the units that a layer writes, such as a bias; frozen where a task uses the unit."""

    PER_TASK = "per-task"
    """Parameter of one task: embeddings, heads, batch norm; frozen wholly once its task is consolidated."""

    WHOLE = "whole"
    """Parameter shared by all units and tasks; frozen wholly with the first consolidated task."""

    UNTRAINED = "untrained"
    """Parameter with ``requires_grad=False``; frozen wholly from attaching on."""


_OF_GROUPS = ("group", "units", "read by")
_OF_PARAMETERS = ("parameter", "shape", "role", "protected with")


@dataclass(frozen=True)
class Group:
    """Group of units that are gated side by side, a contiguous stretch of every task's embedding.

    Attributes:
        name: the layer that writes them (several, joined by ``+``, when they are coupled).
        start: position of the first unit in the embedding.
        size: number of units.
        readers: the layers that read them.
        outputs: number of outputs of a layer that they stand for; more than there are units where outputs are coupled,
            as those of an attention head.
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

    def owns(self, units: Tensor) -> Tensor:
        """Return which positions of an embedding belong to the group, booleans of the shape of ``units``."""
        return (units >= self.start) & (units < self.start + self.size)


@dataclass(frozen=True)
class Reader:
    """Layer whose input is gated.

    Attributes:
        module: name of the layer; the backbone's result, which the heads read, has the name ``""``.
        argument: position of the argument that is gated; :data:`OUTPUT` for the layer's result, where functions behind
            it read the units.
        keyword: name of that argument.
        axis: its axis that counts units, negative (counted from the end).
        units: position in the embedding for every index of that axis, int64; the number of units stands for "ungated".
    """

    module: str
    argument: int
    keyword: str
    axis: int
    units: Tensor

    def value_among(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the argument that is gated, given by position or by name; None if it is not given."""
        return args[self.argument] if self.argument < len(args) else kwargs.get(self.keyword)


@dataclass(frozen=True)
class ParameterUse:
    """Use of a parameter by one layer.

    Attributes:
        sides: for each end, positions in the embedding, int64 and broadcastable to the parameter's shape; the number of
            units stands for "ungated", which every task uses. A task uses an entry if it uses all its ends.
    """

    sides: tuple[Tensor, ...]


@dataclass(frozen=True)
class UnitGraph:
    """Units of a network, found by one labelled run of it.

    Attributes:
        num_units: number of units, the length of an embedding.
        groups: the groups, in the order of their first layer; they cover every unit once.
        readers: the layers whose input is gated, the heads included.
        uses: all uses of every parameter, by name (parameters that belong to tasks have none).
        roles: the role of every parameter, by name.
        shapes: the shape of every parameter, by name.
        per_task_modules: names of the modules of which every task has its own copy.
        outputs: position in the embedding of every output, int64, by the names of layers that open units, or pass units
            on and have parameters or statistics for each; the number of units stands for "ungated".
        unused: names of parameters that no run has reached; the first consolidated task freezes them.
        heads: position in the embedding of every channel of fused attention, int64 ``(2, E)``, by the names of layers
            whose heads are units: channels of queries and keys, and channels of values.
    """

    num_units: int
    groups: tuple[Group, ...]
    readers: tuple[Reader, ...]
    uses: Mapping[str, tuple[ParameterUse, ...]]
    roles: Mapping[str, Role]
    shapes: Mapping[str, torch.Size]
    per_task_modules: tuple[str, ...]
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    heads: Mapping[str, Tensor] = field(default_factory=dict)

    def split(self, per_unit: Tensor) -> dict[str, Tensor]:
        """Split a vector over all units, ``(num_units,)``, into one per group, by name."""
        return {group.name: per_unit[group.span] for group in self.groups}

    def group(self, name: str) -> Group:
        """Return the group of a name.

        Raises:
            KeyError: there is none.
        """
        return {group.name: group for group in self.groups}[name]

    def features(self) -> Reader:
        """Return the reading of the backbone's result by the heads: the last reader."""
        return self.readers[-1]

    def __str__(self) -> str:
        lines = [self._summary_of_groups(), *table(_OF_GROUPS, self._rows_of_groups())]
        lines += ["", self._summary_of_parameters(), *table(_OF_PARAMETERS, self._rows_of_parameters())]
        return "\n".join([*lines, *(f"\n{warning}" for warning in (*self.collapses(), *self.frozen_at_once()))])

    def _repr_html_(self) -> str:
        warnings_of = (*self.collapses(), *self.frozen_at_once())
        groups = html_table(self._summary_of_groups(), _OF_GROUPS, self._rows_of_groups())
        parameters = self._summary_of_parameters(), _OF_PARAMETERS, self._rows_of_parameters()
        return groups + html_table(*parameters, notes=warnings_of)

    def _summary_of_groups(self) -> str:
        return f"{counted(len(self.groups), 'group')}, {counted(self.num_units, 'unit')}"

    def _rows_of_groups(self) -> list[tuple[str, ...]]:
        return folded(
            (
                shortened(group.name) or "backbone",
                _size(group),
                listed([name or "heads" for name in group.readers]) or "–",
            )
            for group in self.groups
        )

    def _summary_of_parameters(self) -> str:
        entries = self.entries()
        total = sum(entries.values())
        shares = ", ".join(f"{role.value} {share(count, total)}" for role, count in entries.items() if count)
        return f"{counted(len(self.roles), 'parameter')}: {shares}"

    def _rows_of_parameters(self) -> list[tuple[str, ...]]:
        return folded(
            (
                name,
                "×".join(map(str, self.shapes[name])),
                f"{role.value}, unused" if name in self.unused else role.value,
                self._holders(name),
            )
            for name, role in self.roles.items()
        )

    def entries(self) -> dict[Role, int]:
        """Return the number of entries of parameters of each role."""
        counts = dict.fromkeys(Role, 0)
        for name, role in self.roles.items():
            counts[role] += self.shapes[name].numel()
        return counts

    def collapses(self) -> list[str]:
        """Return a sentence for each layer whose outputs are all one unit."""
        return [
            f"all {group.outputs} outputs of {shortened(group.name)} are coupled into a single unit, which the first "
            "task takes for good; more heads in attention, or nn.Linear for a product with a weight, keep them apart"
            for group in self.groups
            if group.size == 1 and group.outputs >= MANY
        ]

    def frozen_at_once(self) -> list[str]:
        """Return a sentence for each reason why many entries are frozen with the first task, with their modules."""
        found, total = [], sum(self.entries().values())
        shared = [name for name, role in self.roles.items() if role is Role.WHOLE and name not in self.unused]
        for names, why in ((shared, "they belong to no unit"), (self.unused, "no call has used them so far")):
            part = sum(map(self._size_of, names))
            if part > MUCH * total:
                owners = [(name.rpartition(".")[0] or name,) for name in sorted(names, key=self._size_of, reverse=True)]
                listing = listed([owner for (owner,) in folded(dict.fromkeys(owners))])
                found.append(
                    f"{share(part, total)} of all entries are frozen with the first task, since {why}: {listing}"
                )
        return found

    def _size_of(self, name: str) -> int:
        return self.shapes[name].numel()

    def _holders(self, name: str) -> str:
        """Return the groups that decide on a parameter, written as ``outputs × inputs``."""
        if self.roles[name] is Role.PER_TASK:
            return "its task"
        if self.roles[name] is Role.UNTRAINED:
            return "always"
        uses = [" × ".join(self._groups_of(side) for side in use.sides) for use in self.uses[name]]
        return " or ".join(list(dict.fromkeys(uses))[:3])

    def _groups_of(self, side: Tensor) -> str:
        names = [shortened(group.name) or "backbone" for group in self.groups if group.owns(side).any()]
        names += ["always"] if (side == self.num_units).any() else []
        return "+".join(names) if len(names) < 4 else f"{names[0]} + {len(names) - 1} more"


def _size(group: Group) -> str:
    return str(group.size) if group.size == group.outputs else f"{group.size} of {group.outputs} outputs"


def warn_of_collapse(graph: UnitGraph) -> None:
    """Warn of layers whose outputs are all one unit, so that a task uses the layer wholly or not at all."""
    for warning in graph.collapses():
        warnings.warn(warning, stacklevel=5)
