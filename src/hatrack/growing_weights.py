"""Masks of weights on a backbone, which may be widened under them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor, nn

from hatrack.growing import GrowingNetwork
from hatrack.growth import Growth, Origin, Places, widen_optimizer, widen_own_parts
from hatrack.layers import Layer, Side, UndoLog, widened
from hatrack.masks import QuadraticPenalty, WeightTask, lay_out
from hatrack.units import UnitGraph, analyze
from hatrack.widening import widen

__all__ = ["GrowingWeights"]


class GrowingWeights(GrowingNetwork[WeightTask]):
    """A network of masks of weights, in which a group of units is widened where too few of its weights are free.

    Units matter to nothing but growth: the backbone is analysed when it may have to grow, and not before.

    Args:
        backbone: maps a batch to features ``(N, F)``.
        example_input: a batch of the shape that the backbone expects.
        growth: when the backbone is widened by itself; None for never.

    Attributes:
        tether: what draws elastic weights back; None with other conditionings.
    """

    tether: QuadraticPenalty | None
    _used: list[Tensor]
    _num_features: int

    def __init__(self, backbone: nn.Module, example_input: Tensor, growth: Growth | None) -> None:
        super().__init__(backbone, example_input, growth)
        self._layout = lay_out(backbone)
        self._origin: Origin | None = None
        self._widths: dict[str, int] = {}
        if growth is not None:
            device = next(backbone.parameters()).device
            self._remember_origin(analyze(backbone, example_input.to(device), prefix="backbone."))

    def _units_now(self) -> UnitGraph:
        graph = analyze(self.backbone, self._example(), prefix="backbone.")
        self._remember_origin(graph)
        return graph

    def _remember_origin(self, graph: UnitGraph) -> None:
        self._widths = {group.name: group.size for group in graph.groups}
        if self._origin is None:
            self._origin = Origin(dict(self._widths), self._initialization.initial_scales)

    def _room(self, graph: UnitGraph) -> tuple[Mapping[str, float], Mapping[str, int]]:
        assert self._origin is not None
        free: dict[str, float] = {}
        for name, used in zip(self._layout.masked, self._used, strict=True):
            owner, _, own = name.rpartition(".")
            layer, units = Layer.of(self.backbone.get_submodule(owner)), graph.outputs.get(owner)
            if layer is None or units is None:
                continue
            rows = used.movedim(layer.tensors[own].index(Side.OUTPUTS), 0)
            for group in graph.groups:
                mine = rows[(units >= group.start) & (units < group.start + group.size)]
                if len(mine):
                    room = group.size * float((~mine).double().mean())
                    free[group.name] = min(room, free.get(group.name, room))
        return free, self._origin.widths

    def _widen(
        self, graph: UnitGraph, groups: Mapping[str, int], generator: torch.Generator | None, ledger: UndoLog
    ) -> None:
        assert self._origin is not None
        analyze_again, spread = self._units_now, self._origin.initial_scales
        widening = widen(self.backbone, graph, groups, analyze_again, spread, generator, ledger)
        places: dict[nn.Parameter, tuple[Tensor | None, ...]] = {**widening.places()}
        own: Places = {}
        for state in self._states():
            own = {**own, **self._widen_task(state, places, ledger), **widen_own_parts(state, widening, ledger)}
            if state.calibration is not None:
                features = len(widening.graph.features().units)
                ledger.set_attribute(state, "calibration", state.calibration.widened(widening.features, features))
        self._widen_tether(places, ledger)
        for optimizer in self._guard.optimizers():
            widen_optimizer(optimizer, {**places, **own}, ledger)
        self._fit(widening.graph)

    def _widen_task(
        self, state: WeightTask, places: Mapping[nn.Parameter, tuple[Tensor | None, ...]], ledger: UndoLog
    ) -> Places:
        """New weights are in no mask; copies of what has none begin with what the backbone has at new entries."""
        weights = [self.backbone.get_parameter(name) for name in self._layout.masked]
        masks = [_grown(state.mask(index), weight, places) for index, weight in enumerate(weights)]
        ledger.set_attribute(state, "shapes", tuple(weight.shape for weight in weights))
        ledger.set_attribute(state, "packed", state.packed_of(masks))
        widened_copies = {}
        for copied, name in zip(state.copies, self._layout.copied, strict=False):  # none, if all use the first task's
            original = self.backbone.get_parameter(name)
            if original in places:
                old = _grown(torch.ones_like(copied, dtype=torch.bool), original, places)
                new = _grown(copied.data, original, places)
                ledger.set_data(copied, torch.where(old, new, original.data.to(new.dtype)))
                widened_copies[copied] = places[original]
        return widened_copies

    def _widen_tether(self, places: Mapping[nn.Parameter, tuple[Tensor | None, ...]], ledger: UndoLog) -> None:
        """New weights matter to nobody."""
        for name in () if self.tether is None else self._layout.masked:
            assert self.tether is not None
            weight = self.backbone.get_parameter(name)
            for buffer in self.tether.buffers_of(name):
                ledger.set_attribute(self.tether, buffer, _grown(self.tether.get_buffer(buffer), weight, places))

    def _fit(self, graph: UnitGraph) -> None:
        self._num_features = len(graph.features().units)
        self._widths = {group.name: group.size for group in graph.groups}
        self._renew_guarantee()

    def _settings(self) -> dict[str, object]:
        if self._origin is None:
            return {}
        return {
            "growth": None if self.growth is None else asdict(self.growth),
            "origin": self._origin.to_json(),
            "widths": self._widths,
        }


def _grown(old: Tensor, parameter: nn.Parameter, places: Mapping[nn.Parameter, tuple[Tensor | None, ...]]) -> Tensor:
    """What belongs to the entries of a parameter, zero (or False) at its new ones."""
    return widened(old, parameter.shape, places[parameter]) if parameter in places else old
