"""What the tasks of a network of masked units hold of it, and how much that is."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hatrack.capacity import Capacity, measure_capacity, measure_reuse
from hatrack.conditioning import Adaptive, Damper, UnitConditioning, attention_of_tasks, dampers
from hatrack.extracting import ExtractableNetwork
from hatrack.functional import Conditioning
from hatrack.gates import used_units
from hatrack.guarantee import attention_on_parameters
from hatrack.norm import BatchNorms
from hatrack.tasks import UnitTask
from hatrack.units import Role, UnitGraph

__all__ = ["HoldingNetwork"]


class HoldingNetwork(ExtractableNetwork):
    """A network of masked units that knows what its tasks hold.

    Attributes:
        conditioning: which entries earlier tasks hold.
        batch_norms: whose batch norms a task uses.
    """

    conditioning: UnitConditioning
    batch_norms: BatchNorms

    @abc.abstractmethod
    def _final_mask(self, state: UnitTask) -> Tensor:
        """The mask that a task in training has if it is consolidated now, ``(U,)``."""

    # ----------------------------------------------------------------------------------------------- the guarantee

    def _attention_on_parameters(self) -> Mapping[str, Tensor]:
        masks = [state.mask for state in self._consolidated_states()]
        self._cumulative = attention_of_tasks(self.conditioning, masks, self._none())
        if isinstance(self.conditioning, Adaptive):
            return {}
        separate = self.conditioning is Conditioning.PER_TASK
        holders = masks if separate else [self._cumulative] if masks else []
        return attention_on_parameters(self._graph, self.backbone, holders)

    def _renew_guarantee(self) -> None:
        super()._renew_guarantee()
        self._attachment.choose_partial_gradients(self.backbone, self._guarantee.shared)

    def _dampers(self) -> Mapping[str, Damper]:
        if not isinstance(self.conditioning, Adaptive):
            return {}
        shapes = {name: p.shape for name, p in self.backbone.named_parameters(prefix="backbone")}
        masks = [state.mask for state in self._consolidated_states()]
        return dampers(self._graph, shapes, masks, self._none())

    def _entries_of(self, state: UnitTask) -> Mapping[str, Tensor]:
        mask = (state.mask if state.consolidated else self._final_mask(state).detach()) != 0
        held = attention_on_parameters(self._graph, self.backbone, [mask])
        return {name.removeprefix("backbone."): entries for name, entries in held.items()}

    def _hand_over(self, state: UnitTask, heir: UnitTask) -> None:
        if self.batch_norms is BatchNorms.SHARED:
            heir.take_norms_of(state)

    def _sizes(self) -> Mapping[str, int]:
        return {group.name: group.size for group in self._graph.groups}

    def _rates(self) -> Tensor:
        assert isinstance(self.conditioning, Adaptive)
        state = self._in_training()
        attention = self._none() if state is None else self._attention(state)
        return self.conditioning.rates(self._graph, attention, self._cumulative)

    def _none(self) -> Tensor:
        """The attention of no task at all, ``(U,)``."""
        device = next((parameter.device for parameter in self.backbone.parameters()), None)
        return torch.zeros(self._graph.num_units, dtype=torch.bool, device=device)

    def _per_task_modules(self) -> Sequence[str]:
        return self._graph.per_task_modules

    # ------------------------------------------------------------------------------------------------- inspection

    @property
    def units(self) -> UnitGraph:
        """Groups of units, who writes and reads them, and every parameter's role; print it to see a table."""
        of_tasks = {name: p.shape for name, p in self.named_parameters() if name not in self._graph.roles}
        return replace(
            self._graph,
            uses={**self._graph.uses, **dict.fromkeys(of_tasks, ())},
            roles={**self._graph.roles, **dict.fromkeys(of_tasks, Role.PER_TASK)},
            shapes={**self._graph.shapes, **of_tasks},
        )

    def masks(self, task: str) -> dict[str, Tensor]:
        """The units that a task uses, by group: booleans ``(units of the group,)``, or numbers if masks are soft.

        For a task in training it is what consolidating it now would give.
        """
        state = self._state(task)
        mask = state.mask if state.consolidated else self._final_mask(state).detach()
        return {name: part.clone() for name, part in self._graph.split(mask).items()}

    def capacity(self) -> Capacity:
        """Share of units, per group and over all, and of shared weights that consolidated tasks use."""
        return measure_capacity(self._graph, self._cumulative, self._guarantee.held_entries())

    def usage(self) -> float:
        """Share of all units that tasks use, a task in training with what consolidating it now would give."""
        state, used = self._in_training(), self._cumulative == 1
        if state is not None:
            used = used | used_units(state.embedding.detach(), self._graph.groups)
        return float(used.float().mean()) if len(used) else 0.0

    def reuse(self) -> Tensor:
        """Share of the weights of task i that task j uses too, ``(T, T)``, over consolidated tasks (paper, Fig. 6)."""
        return measure_reuse(self._graph, [state.mask == 1 for state in self._consolidated_states()])
