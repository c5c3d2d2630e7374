"""What lets a network of masked units be widened in place, between tasks."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.attachment import Attachment
from hatrack.errors import GuaranteeError, InputError
from hatrack.forgettable import ForgettableNetwork
from hatrack.growth import (
    Growth,
    Origin,
    changed_answers,
    plan_growth,
    require_growable,
    widen_optimizer,
    widen_tasks,
)
from hatrack.layers import Ledger
from hatrack.poison import find_leak
from hatrack.tasks import UnitTask
from hatrack.units import Rule, UnitGraph, analyze
from hatrack.widening import widen

__all__ = ["GrowingNetwork"]


class GrowingNetwork(ForgettableNetwork[UnitTask]):
    """A network whose units are masked by gates on a backbone, and that gets more of them when it is full.

    Args:
        backbone: maps a batch to features ``(N, F)``.
        example_input: a batch of the shape that the backbone expects, on any device.
        growth: when the backbone is widened by itself; None for never.
        gate_inputs: whether input features are units.
        rules: how modules treat units that hatrack does not understand by itself.

    Attributes:
        growth: when the backbone is widened by itself.
        gate_inputs: whether input features are units.
    """

    _cumulative: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        example_input: Tensor,
        growth: Growth | None,
        gate_inputs: bool,
        rules: Mapping[Any, Rule] | None,
    ) -> None:
        super().__init__(backbone, example_input)
        self.growth, self.gate_inputs, self._rules = growth, gate_inputs, rules
        device = next((p.device for p in backbone.parameters()), example_input.device)
        self._graph = self._analyze(example_input.to(device))
        self._origin = Origin.of(self._graph, backbone)
        self._attachment = Attachment(self._graph, backbone)

    def _analyze(self, example: Tensor) -> UnitGraph:
        return analyze(self.backbone, example, prefix="backbone.", gate_inputs=self.gate_inputs, rules=self._rules)

    def _analyze_again(self) -> UnitGraph:
        return self._analyze(self._example())

    @abc.abstractmethod
    def _none(self) -> Tensor:
        """The attention of no task at all, ``(U,)``."""

    def grow(self, groups: Mapping[str, int], *, generator: torch.Generator | None = None) -> None:
        """Widen the backbone in place: more units for later tasks, which no task so far uses.

        The parameters stay the same objects, and optimizers that :meth:`protect` knows keep what they remember (others
        have to be made anew). Outputs of consolidated tasks agree with those before up to rounding, since kernels sum
        in another order for another shape (about 1e-6 of their scale in float32); between widenings they stay
        bit-identical as ever. New entries are uniform, as widely spread as the layer's were at first.

        Gradients that were not used yet are dropped. Code from ``torch.compile`` is compiled again. With several
        processes grow on all of them before the next task's wrapper is made, which shares the new weights.

        Args:
            groups: how many units to add to each group, at least 1; the groups of ``net.units``.
            generator: source of randomness on the CPU; torch's global one if left out.

        Raises:
            InputError: there is no such group, or it cannot be widened (the message says why); or a task is in
                training.
            GuaranteeError: protected entries had moved before, or outputs would change. Nothing is changed then.
        """
        self._require_attached()
        require_growable(groups, self._graph)
        if self.task_in_training is not None:
            raise InputError(f"the network grows between tasks: consolidate {self.task_in_training!r} first")
        self.check()
        ledger, old, before = Ledger(), self._graph, self._answers()
        with torch.inference_mode(False), torch.no_grad():
            try:
                self._widen(groups, generator, ledger)
                differing = changed_answers(before, self._answers())
                leak = find_leak(self._attachment, self._graph, self.backbone, self._example())
                if differing or leak is not None:
                    what = f"the outputs of {', '.join(differing)}" if differing else f"what holds {leak}"
                    raise GuaranteeError(f"widening {', '.join(groups)} would change {what}; nothing was changed")
            except BaseException:
                ledger.undo()
                self._attach_anew(old)
                raise
            self._digests = self._take_digests()

    def _grow_if_full(self, generator: torch.Generator | None) -> None:
        """Widen the groups of which too little is free, as far as they can be."""
        if self.growth is None or self._detached:
            return
        wanted = plan_growth(self.growth, self._graph, self._cumulative, self._origin)
        refusals = {name: self._why_not_grow({name: count}) for name, count in wanted.items()}
        possible = {name: count for name, count in wanted.items() if refusals[name] is None}
        if possible:
            self.grow(possible, generator=generator)
        elif wanted:
            warnings.warn(f"no full group can grow: {next(iter(refusals.values()))}", stacklevel=3)

    def _why_not_grow(self, groups: Mapping[str, int]) -> str | None:
        """Try to widen, and take it back; None if that went well."""
        ledger, old = Ledger(), self._graph
        with torch.inference_mode(False), torch.no_grad():
            try:
                self._widen(groups, torch.Generator(), ledger)
            except InputError as error:
                return str(error)
            finally:
                ledger.undo()
                self._attach_anew(old)
        return None

    def _widen(self, groups: Mapping[str, int], generator: torch.Generator | None, ledger: Ledger) -> None:
        self._attachment.detach(self.backbone)
        spread = self._origin.spread
        widening = widen(self.backbone, self._graph, groups, self._analyze_again, spread, generator, ledger)
        places = {**widening.places(), **widen_tasks(self._states(), widening, ledger)}
        for optimizer in self._guard.optimizers():
            widen_optimizer(optimizer, places, ledger)
        self._attach_anew(widening.graph)

    def _attach_anew(self, graph: UnitGraph) -> None:
        self._attachment.detach(self.backbone)
        self._graph = graph
        device = self._none().device
        self._attachment = Attachment(graph, self.backbone).to(device)
        self._renew_guarantee()

    def _example(self) -> Tensor:
        return torch.zeros(self.example_shape, dtype=self._example_dtype, device=self._none().device)

    def _answers(self) -> dict[str, Tensor]:
        shape = (16, *self.example_shape[1:])
        return {state.name: self._answer(state, shape) for state in self._consolidated_states()}

    def _settings(self) -> dict[str, object]:
        return {
            "gate_inputs": self.gate_inputs,
            "growth": None if self.growth is None else asdict(self.growth),
            "origin": self._origin.to_json(),
            "widths": {group.name: group.size for group in self._graph.groups},
        }
