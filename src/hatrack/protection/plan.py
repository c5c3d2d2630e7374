"""Protection plan: immutable record of all frozen entries, and digests that show whether they have moved."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from hatrack.masks.tasks import TaskState
from hatrack.protection.conditioning import Damper
from hatrack.protection.frozen import Backup, FrozenEntries, attention_on_entries, digest, digest_of_entries, larger
from hatrack.support.names import prefix_of
from hatrack.units import Role, UnitGraph

__all__ = ["ProtectionPlan", "attention_on_parameters", "find_changes", "find_nonfinite", "take_digests"]


@dataclass(frozen=True)
class ProtectionPlan:
    """Protection that follows from the masks of the consolidated tasks.

    Attributes:
        shared: parameters of the backbone with frozen entries, and the bits of these.
        own: fully frozen tensors, with backups: the consolidated tasks' own, buffers of the backbone, and its untrained
            parameters once a task is consolidated.
        damped: parameters of the backbone that move less, but are not frozen, with dampers that say how much less.
        untrained: untrained parameters of the backbone, which are fully frozen, and in ``own`` only once there is
            something that relies on their values.
    """

    shared: tuple[tuple[nn.Parameter, FrozenEntries], ...]
    own: tuple[tuple[Tensor, Backup], ...]
    damped: tuple[tuple[nn.Parameter, Damper], ...] = ()
    untrained: tuple[nn.Parameter, ...] = ()

    @classmethod
    def derive(
        cls,
        attention: Mapping[str, Tensor],
        backbone: nn.Module,
        consolidated: Sequence[TaskState],
        dampers: Mapping[str, Damper] = MappingProxyType({}),
        buffers: Sequence[Tensor] = (),
        untrained: Sequence[str] = (),
    ) -> ProtectionPlan:
        """Derive the protection, for the values that parameters have now.

        Args:
            attention: how much the consolidated tasks rely on every entry of the backbone's parameters, by
                ``backbone.`` and name, booleans (hard) or numbers in [0, 1] (soft). Parameters missing from the mapping
                are unprotected.
            backbone: the network.
            consolidated: the consolidated tasks.
            dampers: factors of the steps of parameters, by the same names.
            buffers: buffers of the backbone that are frozen.
            untrained: names of the backbone's untrained parameters, which are frozen whatever their attention.
        """
        parameters = dict(backbone.named_parameters(prefix="backbone"))
        never = tuple(parameters.pop(f"backbone.{name}") for name in untrained)
        records = [(p, FrozenEntries.of(p, attention[name])) for name, p in parameters.items() if name in attention]
        shared = tuple((parameter, record) for parameter, record in records if record is not None)
        own = [(value, Backup.of(value)) for state in consolidated for value in (*state.parameters(), *state.buffers())]
        own += [(value, Backup.of(value)) for value in (*buffers, *(never if consolidated else ()))]
        damped = tuple((parameter, dampers[name]) for name, parameter in parameters.items() if name in dampers)
        return cls(shared, tuple(own), damped, never)

    def num_frozen(self) -> int:
        """Return the number of frozen entries of shared parameters."""
        return sum(int(entries.frozen.sum()) for _, entries in self.shared)

    def frozen(self) -> dict[int, Tensor]:
        """Return by identity of a tensor booleans of its shape, True for frozen entries."""
        everywhere = {id(parameter): torch.ones_like(parameter, dtype=torch.bool) for parameter in self.untrained}
        return everywhere | {id(parameter): record.frozen for parameter, record in self.all()}

    def all(self) -> list[tuple[Tensor, FrozenEntries | Backup]]:
        """Return every tensor whose frozen entries have saved values, and the record that restores them."""
        return [*self.shared, *self.own]


def attention_on_parameters(graph: UnitGraph, backbone: nn.Module, masks: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return how much every entry of a backbone's parameters is relied on, by masks of units.

    Args:
        graph: the units of the backbone.
        backbone: the network.
        masks: attention over all units, ``(U,)``; an entry's is the largest of what each of them says.

    Returns:
        For the name of every trained parameter a tensor of its shape, of the type of the masks.
    """
    return {
        name: _attention_on_parameter(graph, name, parameter, masks)
        for name, parameter in backbone.named_parameters(prefix="backbone")
        if graph.roles[name] is not Role.UNTRAINED
    }


def _attention_on_parameter(graph: UnitGraph, name: str, parameter: Tensor, masks: Sequence[Tensor]) -> Tensor:
    relied_on = torch.zeros((), dtype=torch.bool, device=parameter.device).expand(parameter.shape)
    for index, mask in enumerate(masks):
        attention = attention_on_entries(graph.uses[name], torch.cat([mask, mask.new_ones(1)]), parameter.shape)
        relied_on = larger(relied_on, attention) if index else attention
    return relied_on


def take_digests(
    plan: ProtectionPlan,
    backbone: nn.Module,
    consolidated: Sequence[TaskState],
    per_task_modules: Sequence[str],
    checked: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Return digests of everything frozen: entries by parameter, buffers, and the states of consolidated tasks.

    Args:
        plan: the protection plan.
        backbone: the network.
        consolidated: the consolidated tasks.
        per_task_modules: names of the layers and of single buffers that every task has a copy of; no task reads
            the backbone's own.
        checked: digests that were compared just now; those of tasks in them are not taken again.
    """
    names = {id(parameter): name for name, parameter in backbone.named_parameters(prefix="backbone")}
    digests = {names[id(parameter)]: digest_of_entries(parameter, entries.frozen) for parameter, entries in plan.shared}
    if consolidated:
        digests |= {names[id(parameter)]: digest({"untrained": parameter}) for parameter in plan.untrained}
        per_task = tuple(prefix_of(name) for name in per_task_modules)
        own_buffers = {f"backbone.{name}" for name in per_task_modules}
        digests |= {
            name: digest({"buffer": buffer})
            for name, buffer in backbone.named_buffers(prefix="backbone")
            if not name.startswith(per_task) and name not in own_buffers
        }
    for state in consolidated:
        task = f"task {state.name}"
        if task in checked:
            digests[task] = checked[task]
        else:
            digests[task] = digest({name: v for name, v in state.state_dict().items() if name != "_extra_state"})
    return digests


def find_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names whose digest has changed or is missing.

    Args:
        before: earlier digests by name.
        now: present digests by name.
    """
    return [name for name, value in before.items() if now.get(name) != value]


def find_nonfinite(backbone: nn.Module, untrained: Collection[str] = ()) -> list[str]:
    """Return the names of parameters with values that are infinite or not a number.

    Such a value spoils outputs even where a mask is off, since zero times infinity is not a number. What is untrained
    has always been so, as a mask of attention that is kept as a parameter.

    Args:
        backbone: the network.
        untrained: names of its untrained parameters, which may have any values.
    """
    return [
        name
        for name, parameter in backbone.named_parameters(prefix="backbone")
        if parameter.is_floating_point()
        and parameter.numel()
        and name.removeprefix("backbone.") not in untrained
        and not _is_finite(parameter.detach())
    ]


def _is_finite(values: Tensor) -> bool:
    """Return whether all values are finite; smallest and largest take a third of the time of ``torch.isfinite``."""
    return all(math.isfinite(float(bound)) for bound in torch.aminmax(values))
