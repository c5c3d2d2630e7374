"""Gates on a backbone, which may be widened under them."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.attachment import Attachment
from hatrack.growing import GrowingNetwork
from hatrack.growth import Growth, Origin, free_units, widen_optimizer, widen_tasks
from hatrack.layers import Ledger
from hatrack.poison import find_leak
from hatrack.tasks import UnitTask
from hatrack.units import Rule, UnitGraph, analyze
from hatrack.widening import widen

__all__ = ["GatedNetwork"]


class GatedNetwork(GrowingNetwork[UnitTask]):
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
        super().__init__(backbone, example_input, growth)
        self.gate_inputs, self._rules = gate_inputs, rules
        device = next((p.device for p in backbone.parameters()), example_input.device)
        self._graph = self._analyze(example_input.to(device))
        self._origin = Origin.of(self._graph, backbone)
        self._attachment = Attachment(self._graph, backbone, self)

    def _analyze(self, example: Tensor) -> UnitGraph:
        return analyze(self.backbone, example, prefix="backbone.", gate_inputs=self.gate_inputs, rules=self._rules)

    def _analyze_again(self) -> UnitGraph:
        return self._analyze(self._example())

    def _units_now(self) -> UnitGraph:
        return self._graph

    def _room(self, graph: UnitGraph) -> tuple[Mapping[str, float], Mapping[str, int]]:
        return free_units(graph, self._cumulative), self._origin.widths

    @abc.abstractmethod
    def _none(self) -> Tensor:
        """The attention of no task at all, ``(U,)``."""

    def _widen(
        self, graph: UnitGraph, groups: Mapping[str, int], generator: torch.Generator | None, ledger: Ledger
    ) -> None:
        self._attachment.detach(self.backbone)
        spread = self._origin.spread
        widening = widen(self.backbone, graph, groups, self._analyze_again, spread, generator, ledger)
        places = {**widening.places(), **widen_tasks(self._states(), widening, ledger)}
        for optimizer in self._guard.optimizers():
            widen_optimizer(optimizer, places, ledger)
        self._fit(widening.graph)

    def _fit(self, graph: UnitGraph) -> None:
        self._attachment.detach(self.backbone)
        self._graph = graph
        device = self._none().device
        self._attachment = Attachment(graph, self.backbone, self).to(device)
        self._renew_guarantee()

    def _find_leak(self) -> str | None:
        return find_leak(self._attachment, self._graph, self.backbone, self._example())

    def _settings(self) -> dict[str, object]:
        return {
            "gate_inputs": self.gate_inputs,
            "growth": None if self.growth is None else asdict(self.growth),
            "origin": self._origin.to_json(),
            "widths": {group.name: group.size for group in self._graph.groups},
        }
