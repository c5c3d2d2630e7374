"""Protection plan: an immutable record of all that must not move, and digests that show it has not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from hatrack.conditioning import Damper
from hatrack.protect import Keepsake, Shield, attention_on_entries, digest
from hatrack.tasks import TaskState
from hatrack.units import UnitGraph

__all__ = ["Guarantee", "attention_on_parameters", "find_changes", "find_values_that_spread", "take_digests"]


@dataclass(frozen=True)
class Guarantee:
    """The protection that follows from the masks of the consolidated tasks.

    Attributes:
        shared: the backbone's parameters that are held in part, with what holds them.
        own: the consolidated tasks' own parameters and buffers, and the backbone's buffers, which are frozen whole.
        damped: the backbone's parameters that are held by nobody, but move less, with what says how much less.
    """

    shared: tuple[tuple[nn.Parameter, Shield], ...]
    own: tuple[tuple[Tensor, Keepsake], ...]
    damped: tuple[tuple[nn.Parameter, Damper], ...] = ()

    @classmethod
    def around(
        cls,
        attention: Mapping[str, Tensor],
        backbone: nn.Module,
        consolidated: Sequence[TaskState],
        dampers: Mapping[str, Damper] = MappingProxyType({}),
        buffers: Sequence[Tensor] = (),
    ) -> Guarantee:
        """Derive the protection, for the values that parameters have now.

        Args:
            attention: how much the consolidated tasks rely on every entry of the backbone's parameters, by
                ``backbone.`` and name, booleans (hard) or numbers in [0, 1] (soft); what is left out is not held.
            backbone: the network.
            consolidated: the consolidated tasks.
            dampers: what scales the steps of parameters, by the same names.
            buffers: buffers of the backbone that are frozen.
        """
        shared = [
            (parameter, Shield.around(parameter, attention[name]))
            for name, parameter in backbone.named_parameters(prefix="backbone")
            if name in attention
        ]
        own = [
            (value, Keepsake.of(value)) for state in consolidated for value in (*state.parameters(), *state.buffers())
        ]
        own += [(buffer, Keepsake.of(buffer)) for buffer in buffers]
        damped = [
            (parameter, dampers[name])
            for name, parameter in backbone.named_parameters(prefix="backbone")
            if name in dampers
        ]
        return cls(_with_shield(shared), tuple(own), tuple(damped))

    def held_entries(self) -> int:
        """Number of entries of shared parameters that must not move."""
        return sum(int(shield.held.sum()) for _, shield in self.shared)

    def held(self) -> dict[int, Tensor]:
        """By identity of a parameter, True where an entry must not move."""
        return {id(parameter): keeper.held for parameter, keeper in self.all()}

    def all(self) -> list[tuple[Tensor, Shield | Keepsake]]:
        """Every tensor of which something is held, with what holds it."""
        return [*self.shared, *self.own]


def attention_on_parameters(graph: UnitGraph, backbone: nn.Module, masks: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return how much every entry of a backbone's parameters is relied on, by masks of units.

    Args:
        graph: the units of the backbone.
        backbone: the network.
        masks: attention over all units, ``(U,)``; an entry's is the largest of what each of them says.

    Returns:
        For the name of every parameter a tensor of its shape, of the type of the masks.
    """
    return {
        name: _held(graph, name, parameter, masks) for name, parameter in backbone.named_parameters(prefix="backbone")
    }


def _held(graph: UnitGraph, name: str, parameter: Tensor, masks: Sequence[Tensor]) -> Tensor:
    held = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
    for index, mask in enumerate(masks):
        attention = attention_on_entries(graph.uses[name], torch.cat([mask, mask.new_ones(1)]), parameter.shape)
        held = torch.maximum(held, attention) if index else attention
    return held


def take_digests(
    guarantee: Guarantee,
    backbone: nn.Module,
    consolidated: Sequence[TaskState],
    per_task_modules: Sequence[str],
    checked: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Digests of all that must not move: held entries by parameter, buffers by name, consolidated tasks whole.

    Args:
        guarantee: what is held.
        backbone: the network.
        consolidated: the consolidated tasks.
        per_task_modules: names of the layers and of single buffers that every task has a copy of; no task looks at
            the backbone's own.
        checked: digests that were compared just now; those of tasks in them are not taken again.
    """
    names = {id(parameter): name for name, parameter in backbone.named_parameters(prefix="backbone")}
    digests = {
        names[id(parameter)]: digest({"held": shield.held, "values": parameter[shield.held]})
        for parameter, shield in guarantee.shared
    }
    if consolidated:
        per_task = tuple(f"backbone.{name}." for name in per_task_modules)
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
    """Names of what has moved, or is no longer there."""
    return [name for name, value in before.items() if now.get(name) != value]


def find_values_that_spread(backbone: nn.Module) -> list[str]:
    """Names of parameters with values that are infinite or not a number.

    Such a value spoils outputs even where a mask is off, since zero times infinity is not a number.
    """
    return [
        name
        for name, parameter in backbone.named_parameters(prefix="backbone")
        if parameter.is_floating_point() and not torch.isfinite(parameter).all()
    ]


def _with_shield(
    candidates: Sequence[tuple[nn.Parameter, Shield | None]],
) -> tuple[tuple[nn.Parameter, Shield], ...]:
    return tuple((parameter, shield) for parameter, shield in candidates if shield is not None)
