"""Widening of a backbone in place: layers that write a group of units get more outputs, its readers more inputs.

The network is then analysed again. The labels of that run give the new index of every old entry, since entries whose
ends are old units keep their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hatrack.errors import HatrackError, InputError
from hatrack.growth.layers import Layer, Side, draw_entries
from hatrack.state.undo import UndoLog
from hatrack.support.names import in_one_line, prefix_of
from hatrack.support.transforms import place_of
from hatrack.units import OUTPUT, Group, Role, UnitGraph

__all__ = ["DEPENDS_ON_WIDTH", "Change", "Widening", "WidthError", "why_it_fails", "widen"]

PREFIX = "backbone."
"""Prefix of the names of a backbone's parameters."""

DEPENDS_ON_WIDTH = (
    "the backbone's code goes by how many of these units there are, as h / h.shape[1] does: let it go by a number that "
    "stays, such as one kept in __init__, or leave the group as it is"
)
"""Cause and remedy where a network that is wider does not run, or gives other outputs."""


@dataclass(frozen=True)
class Change:
    """Widening of one layer.

    Attributes:
        layer: the layer.
        indices: new indices of its old inputs and outputs, in their order; without a side that has no units.
        widths: its new numbers of inputs and outputs.
    """

    layer: Layer
    indices: Mapping[Side, Tensor]
    widths: Mapping[Side, int]


@dataclass(frozen=True)
class Widening:
    """Result of widening a network.

    Attributes:
        graph: its units afterwards.
        units: new position of every old unit, int64 ``(U,)``.
        features: new index of every old feature, int64 ``(F,)``.
        changes: the layers that were widened, by name.
    """

    graph: UnitGraph
    units: Tensor
    features: Tensor
    changes: Mapping[str, Change]

    def places(self) -> dict[nn.Parameter, tuple[Tensor | None, ...]]:
        """Return new indices of the old entries of every widened parameter, along its first axes."""
        return {
            parameter: where
            for change in self.changes.values()
            for parameter, where in change.layer.places(change.indices).items()
        }


class WidthError(InputError):
    """A wider network does not run, or has other units elsewhere: its code goes by the number of its units."""


class _UnfitError(Exception):
    """Error of a group of units that cannot be widened; the text gives the reason."""


@torch.no_grad()
def widen(
    backbone: nn.Module,
    graph: UnitGraph,
    added: Mapping[str, int],
    analyze_again: Callable[[], UnitGraph],
    initial_scales: Mapping[str, float],
    generator: torch.Generator | None,
    undo_log: UndoLog,
) -> Widening:
    """Widen a backbone without gates.

    Args:
        backbone: the network.
        graph: its units.
        added: number of units to add by group, at least 1 each.
        analyze_again: finds the units of the network as it is when called.
        initial_scales: initial scale of parameters, from :func:`hatrack.growth.layers.measure_initial_scales`.
        generator: source of randomness for new entries, on the CPU; None takes torch's global one.
        undo_log: records all changes, so that the caller can take them back after a failure.

    Returns:
        The new units, and the new places of the old ones.

    Raises:
        InputError: one of the groups cannot be widened; the message gives the reason.
        WidthError: the backbone's own code stands against it, as the wider network shows when it is run.
    """
    try:
        layers = _layers_to_change(backbone, graph, added)
        widths = {name: _new_widths(name, layer, graph, added) for name, layer in layers.items()}
    except _UnfitError as error:
        raise InputError(f"{_asked(added)}: {error}") from error
    before = {}
    for name, layer in layers.items():

        def draw(own: str, shape: torch.Size, old: Tensor, name: str = name, layer: Layer = layer) -> Tensor:
            return draw_entries(layer, own, shape, old, initial_scales.get(f"{name}.{own}".lstrip(".")), generator)

        before[name] = layer.replace(widths[name], draw, undo_log)
        layer.resize(widths[name], undo_log)
    try:
        new = analyze_again()
        places = _Places(graph, new, added)
        _require_same_elsewhere(backbone, places, layers)
        indices = {name: places.sides(name) for name in layers}
        features = places.new_indices(graph.features().units, new.features().units, "the heads")
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the user's code may raise anything at a width that it was not written for
        raise WidthError(f"{_asked(added)}: {why_it_fails(error)}; {DEPENDS_ON_WIDTH}") from error
    for name, layer in layers.items():
        layer.put_back(before[name], indices[name])
    changes = {name: Change(layer, indices[name], widths[name]) for name, layer in layers.items()}
    return Widening(new, places.positions[:-1], features, changes)


def _asked(added: Mapping[str, int]) -> str:
    asked = ", ".join(f"{name or 'backbone'} by {count}" for name, count in added.items())
    return f"the network cannot be widened ({asked})"


def why_it_fails(error: Exception) -> str:
    """Return the reason why a wider network does not run, from the error that running it has raised."""
    if isinstance(error, (HatrackError, _UnfitError)):
        return str(error)
    said = in_one_line(error)
    return f"it does not run then ({type(error).__name__}{said and f': {said}'}{place_of(error)})"


# -------------------------------------------------------------------------------------------------- which layers change


def _layers_to_change(backbone: nn.Module, graph: UnitGraph, added: Mapping[str, int]) -> dict[str, Layer]:
    """Find all layers that write, pass on or read a group, and check that each of them can be widened."""
    modules = dict(backbone.named_modules())
    layers: dict[str, Layer] = {}

    def include(name: str, group: Group, does: str) -> None:
        layer = Layer.of(modules[name])
        if layer is None:
            kind = type(modules[name]).__name__
            raise _UnfitError(
                f"{group.name!r} is {does} {name or 'the backbone'!r} ({kind}), which takes a fixed number of units"
            )
        untrained = [
            parameter
            for own, _ in modules[name].named_parameters()
            if graph.roles.get(parameter := f"{prefix_of(name)}{own}") is Role.UNTRAINED
        ]
        if untrained:
            raise _UnfitError(f"{group.name!r} is {does} {name!r}, whose {untrained[0]!r} is untrained")
        layers[name] = layer

    for group in map(graph.group, added):
        for name in group.name.split("+"):
            if name not in graph.outputs:
                raise _UnfitError(f"the units of {group.name!r} come from {name!r}, which is no layer")
        for name, units in graph.outputs.items():
            if group.owns(units).any():
                include(name, group, "written or passed on by")
        for reader in graph.readers[:-1]:
            if group.owns(reader.units).any():
                include(reader.module, group, "read by")
                if reader.argument == OUTPUT:
                    raise _UnfitError(f"what is behind {reader.module!r} mixes the units of {group.name!r}")
                if Side.INPUTS not in layers[reader.module].sizes.values():
                    raise _UnfitError(f"{reader.module!r} reads {group.name!r} and cannot be wider")
    _require_parameters_covered(backbone, graph, added, layers)
    return layers


def _require_parameters_covered(
    backbone: nn.Module, graph: UnitGraph, added: Mapping[str, int], layers: Mapping[str, Layer]
) -> None:
    """Check that every parameter with entries for a group belongs to one layer that will be widened."""
    owners: dict[int, list[str]] = {}
    for name, module in backbone.named_modules():
        for _, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for name, parameter in backbone.named_parameters():
        for group in map(graph.group, added):
            sides = [side for use in graph.uses[PREFIX + name] for side in use.sides]
            affected = any(group.owns(side).any() for side in sides)
            owned = owners[id(parameter)]
            if affected and not set(owned) <= set(layers):
                raise _UnfitError(
                    f"{name!r} has entries for the units of {group.name!r}, and no rule says how it grows"
                )
            if len(owned) > 1 and any(owner in layers for owner in owned):
                raise _UnfitError(f"{name!r} is shared by the layers {', '.join(map(repr, owned))}")


def _new_widths(name: str, layer: Layer, graph: UnitGraph, added: Mapping[str, int]) -> dict[Side, int]:
    """Compute the new numbers of inputs and outputs of a layer."""
    labels = _labels(graph, name)
    widths = {side: layer.width(side) for side in set(layer.sizes.values())}
    for side, units in labels.items():
        widths[side] += sum(count * _share(units, graph.group(group), name) for group, count in added.items())
    if layer.groups == 1:
        return widths
    inside, outside = (layer.width(side) // layer.groups for side in (Side.INPUTS, Side.OUTPUTS))
    if Side.INPUTS not in labels and widths[Side.OUTPUTS] % outside == 0:  # depthwise: passes units on
        widths[Side.INPUTS] = widths[Side.OUTPUTS] // outside * inside
    if widths[Side.INPUTS] * outside != widths[Side.OUTPUTS] * inside or widths[Side.INPUTS] % inside:
        raise _UnfitError(
            f"{name!r} is a convolution in {layer.groups} groups: each more takes {inside} inputs and {outside} outputs"
        )
    return widths


def _share(units: Tensor, group: Group, name: str) -> int:
    """Return the number of indices of an axis for each unit of a group, which must be the same for all of them."""
    counts = torch.bincount(units[group.owns(units)] - group.start, minlength=group.size)
    if bool((counts != counts[0]).any()):
        raise _UnfitError(f"{name!r} does not treat all units of {group.name!r} alike")
    return int(counts[0])


def _labels(graph: UnitGraph, name: str) -> dict[Side, Tensor]:
    """Return the units that a layer reads and writes, for each side that has units."""
    labels = {Side.OUTPUTS: graph.outputs[name]} if name in graph.outputs else {}
    readers = (reader for reader in graph.readers[:-1] if reader.module == name and reader.argument != OUTPUT)
    reader = next(readers, None)
    return labels if reader is None else {**labels, Side.INPUTS: reader.units}


# --------------------------------------------------------------------------------------------------- where old units go


class _Places:
    """Places of the old units in the widened network: the first ones of every group, in their order."""

    def __init__(self, old: UnitGraph, new: UnitGraph, added: Mapping[str, int]) -> None:
        expected = [(group.name, group.size + added.get(group.name, 0)) for group in old.groups]
        if [(group.name, group.size) for group in new.groups] != expected:
            raise _UnfitError("its units are then grouped in another way")
        self.old, self.new = old, new
        starts = [
            torch.arange(now.start, now.start + was.size) for was, now in zip(old.groups, new.groups, strict=True)
        ]
        self.positions = torch.cat([*starts, torch.tensor([new.num_units])])
        self._is_old = torch.zeros(new.num_units + 1, dtype=torch.bool)
        self._is_old[self.positions] = True

    def new_indices(self, before: Tensor, now: Tensor, name: str) -> Tensor:
        """Return the new indices of the old entries of an axis.

        Args:
            before: units along the old axis.
            now: units along the new one.
            name: the layer that the axis belongs to, for a message.
        """
        indices = self._is_old[now].nonzero().flatten()
        if not torch.equal(now[indices], self.positions[before]):
            raise _UnfitError(f"old and new units would come in another order to {name!r}")
        return indices

    def sides(self, name: str) -> dict[Side, Tensor]:
        """Return the new indices of a layer's old inputs and outputs, for each side that has units."""
        before, now = _labels(self.old, name), _labels(self.new, name)
        if before.keys() != now.keys():
            raise _UnfitError(f"{name!r} then reads or writes other units")
        return {side: self.new_indices(before[side], now[side], name) for side in before}

    def same(self, before: Tensor, now: Tensor) -> bool:
        """Return whether a tensor that was not widened has the same units at the same places."""
        return torch.equal(self.positions[before], now)


def _require_same_elsewhere(backbone: nn.Module, places: _Places, layers: Mapping[str, Layer]) -> None:
    """Check that only the widened layers have changed their units."""
    old, new = places.old, places.new
    gates = [(reader.module, reader.argument, reader.axis) for reader in old.readers]
    if [(reader.module, reader.argument, reader.axis) for reader in new.readers] != gates:
        raise _UnfitError("units are then read at other places")
    for before, now in zip(old.readers[:-1], new.readers[:-1], strict=True):
        if before.module not in layers and not places.same(before.units, now.units):
            raise _UnfitError(f"{before.module!r} then reads other units")
    changed = {id(p) for layer in layers.values() for p in layer.module.parameters()}
    for name, parameter in backbone.named_parameters():
        uses, uses_now = old.uses[PREFIX + name], new.uses[PREFIX + name]
        if len(uses) != len(uses_now) or old.roles[PREFIX + name] is not new.roles[PREFIX + name]:
            raise _UnfitError(f"{name!r} then has another role")
        pairs = [
            pair for use, now in zip(uses, uses_now, strict=True) for pair in zip(use.sides, now.sides, strict=True)
        ]
        if id(parameter) not in changed and not all(places.same(*pair) for pair in pairs):
            raise _UnfitError(f"the entries of {name!r} then belong to other units")
