"""Analysis of a network: labelled runs, and the groups of units and roles of parameters that follow from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.errors import InputError, UnsupportedError
from hatrack.state.movement import scratch_of
from hatrack.state.turns import asking_owners
from hatrack.support.inputs import Inputs
from hatrack.support.interface import PLAIN, Interface
from hatrack.support.names import in_one_line
from hatrack.support.untrained import untrained_norms, untrained_parameters
from hatrack.units.computed import why_it_moves
from hatrack.units.coupling import UNGATED, is_constant
from hatrack.units.decisions import MOST_WAYS, Decisions, Way
from hatrack.units.graph import Group, ParameterUse, Reader, Role, UnitGraph
from hatrack.units.paths import Path, PathRecord
from hatrack.units.rules import RuleBook
from hatrack.units.run import labelled_run, united
from hatrack.units.trace import Call, Rule, Trace
from hatrack.units.untrained import with_untrained_ungated

__all__ = ["analyze", "are_same", "follow", "resolve", "why_not_extended"]

FEATURES = ""
"""Name in the graph for the backbone's result, which the heads read."""

INPUTS = "inputs"
"""Name of the group of input features, if these are gated."""

_RESULT = "."
"""Name of the backbone's result during the run: no module can have it, while ``""`` is the model itself, which is a
reader if it is a single layer."""


def analyze(
    model: nn.Module,
    example_input: Inputs,
    prefix: str = "",
    *,
    gate_inputs: bool = False,
    rules: Mapping[Any, Rule] | None = None,
    interface: Interface = PLAIN,
    untrained: Collection[str] | None = None,
) -> UnitGraph:
    """Find the units of a network by running it once.

    Where a network of tasks has the model or parts of it in its backbone, a copy is run in its place: other threads may
    ask that network meanwhile, and those who change it wait. Functions among the model's attributes, such as
    ``self.f = lambda h: relu(self.b(h))``, call the original's layers in a copy, too, as when the network was attached:
    layers that only they reach are found as parameters that no layer has, which is coarser and as safe.

    Args:
        model: maps a batch to features. It is run in evaluation mode and left as it was; a copy shares its parameters.
        example_input: a batch of the shape that the model expects.
        prefix: put before every parameter's name in the result, such as ``"backbone."``.
        gate_inputs: make every feature of the input a unit of a group ``inputs``, for features that are independent of
            each other. Features that a layer treats alike, such as the pixels of a channel, become one unit.
        rules: rules for this model alone, which go before the registered ones: by a module's name, its type, or a
            function; None for none.
        interface: how the model is called, and what of its result are its features.
        untrained: names of its untrained parameters, whose units belong to no group; None for those that have
            ``requires_grad=False`` now.

    Returns:
        The groups of units, who reads them, and the role of every parameter.

    Raises:
        UnsupportedError: the model uses an operation that no rule explains, or a parameter that no rule saw; or it is
            inside a network of tasks and cannot be copied.
        InputError: the model does not map the example to features, or cannot run on it at all; or a rule is
            given for a module that it does not have.
    """
    with asking_owners(model) as is_owned:
        untrained = untrained_parameters(model) if untrained is None else untrained
        # Hooks that announce modules would be called by other threads, too, and modes be changed under them.
        run = _copied(model) if is_owned else model
        found = follow(
            Trace(), run, example_input, gate_inputs=gate_inputs, rules=rules, interface=interface, untrained=untrained
        )
        return resolve(found, run, prefix, untrained)


def _copied(model: nn.Module) -> nn.Module:
    """Copy a model to be run without a trace in it.

    Raises:
        UnsupportedError: it cannot be copied, such as one that holds a lock.
    """
    try:
        with torch.inference_mode(False):
            return scratch_of(model)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # copying may run the user's code
        raise UnsupportedError(
            f"{type(model).__name__}: it has parts of a network of tasks, which other threads may ask, so that only a "
            f"copy may be analysed, and it cannot be copied ({type(error).__name__}: {in_one_line(error)}); analyse it "
            "before they are attached, or after detach()"
        ) from error


def follow(
    found: Trace,
    model: nn.Module,
    example_input: Inputs,
    *,
    training: bool = False,
    grad: bool = False,
    gate_inputs: bool = False,
    rules: Mapping[Any, Rule] | None = None,
    moving: Sequence[str] = (),
    interface: Interface = PLAIN,
    untrained: Collection[str] = (),
    paths: dict[Way, Path] | None = None,
) -> Trace:
    """Run a network for an input of another shape or in another mode, and add the findings to earlier ones.

    Args:
        found: findings of earlier runs; they stay as they are.
        model: as for :func:`analyze`, without gates.
        example_input: a batch.
        training: run in training mode, not in evaluation mode.
        grad: run with gradients.
        gate_inputs: as for :func:`analyze`.
        rules: as for :func:`analyze`.
        moving: names of buffers that have other values at other times.
        interface: as for :func:`analyze`.
        untrained: names of untrained parameters.
        paths: table that the path on every way is added to, of the model in the state that earlier ways have left.

    Returns:
        The findings of all runs together.

    Raises:
        UnsupportedError, InputError: as for :func:`analyze`; or two runs contradict each other.
    """
    moved = {
        name.partition("parametrizations.")[0].rstrip(".") or type(model).__name__: reason
        for name, module in model.named_modules()
        if (reason := why_it_moves(module)) is not None
    }
    if moved:
        raise united([UnsupportedError(f"{name}: {reason}") for name, reason in moved.items()])
    book, followed = RuleBook(model, rules or {}), 0
    ways: list[Way] = [()]
    while ways:
        decisions, trace = Decisions(ways.pop()), Trace(untrained=frozenset(untrained))
        if gate_inputs:
            _open_inputs(trace, example_input)
        record = None if paths is None else PathRecord(model, example_input)
        features = labelled_run(model, example_input, trace, book, interface, training, grad, moving, decisions, record)
        ways += decisions.alternatives()
        followed += 1
        if ways and followed == MOST_WAYS and decisions.refusal is not None:
            raise decisions.refusal
        if features is not None:
            axis = interface.axis_of(features)
            interface.require_rows(features, example_input)
            _require_units_along(trace.labels(features), axis)
            trace.read(Call(model, _RESULT, (features,), {}, None), features, axis=axis)
            way = tuple(decisions.seen)
            trace.ways[way] = None
            if paths is not None and record is not None:
                paths[way] = record.path(interface.samples(example_input), way)
            found = found.united_with(trace) if found.coupling.producers else trace.without_values()
    with_untrained_ungated(found, model, untrained)  # which refuses what no rule explains
    return found


def _open_inputs(trace: Trace, x: Inputs) -> None:
    """Make every feature of the input a unit.

    Raises:
        InputError: the input is not one tensor of real numbers.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise InputError("gate_inputs needs inputs that are one tensor of real numbers")
    units = trace.coupling.open_units(INPUTS, x[0].numel())
    trace.remember(x, units.view(1, *x.shape[1:]).expand(x.shape))


def _require_units_along(labels: Tensor, axis: int) -> None:
    """Check that units of features lie along the axis that the heads read.

    Raises:
        InputError: they lie along another one.
    """
    if labels.dim() > 2 and is_constant(labels, axis) and not is_constant(labels, 1):
        shape = ("N", *labels.shape[1:])
        raise InputError(
            f"features of shape ({', '.join(map(str, shape))}) have their units along axis 1, not along axis {axis}: "
            "say unit_axis=1 for heads that act on maps, or flatten them in the backbone"
        )


def why_not_extended(before: UnitGraph, now: UnitGraph) -> str | None:
    """Explain why masks that were made for one graph do not fit a later one.

    Returns:
        The first difference that matters; None if all units are the same, though more of them may be read.
    """
    groups, groups_now = ([(g.name, g.start, g.size) for g in graph.groups] for graph in (before, now))
    if groups != groups_now:
        gone = [name for name, *_ in groups if name not in [name for name, *_ in groups_now]]
        sizes = {name: size for name, _, size in groups_now}
        other = [
            f"{name} with {sizes[name]} units for {size}" for name, _, size in groups if sizes.get(name, size) != size
        ]
        return f"units would be others: {', '.join(other or gone) or 'new ones'}"
    new = [name for name in now.per_task_modules if name not in before.per_task_modules]
    if new:
        return f"tasks would need a copy of their own of {', '.join(new)}"
    readers = {(reader.module, reader.argument): reader for reader in now.readers}
    for reader in before.readers:
        other_reader = readers.get((reader.module, reader.argument))
        if other_reader is None or other_reader.axis != reader.axis or len(other_reader.units) != len(reader.units):
            return f"{reader.module or 'the head'} would read units in another way"
        moved = (reader.units != other_reader.units) & (reader.units != before.num_units)
        if bool(moved.any()):
            return f"{reader.module or 'the head'} would read other units"
    return None


def are_same(one: UnitGraph, other: UnitGraph) -> bool:
    """Return whether two graphs have the same units, read in the same places, with the same uses of parameters."""
    if one.groups != other.groups or one.roles != other.roles or len(one.readers) != len(other.readers):
        return False
    for reader, its in zip(one.readers, other.readers, strict=True):
        if (reader.module, reader.argument, reader.axis) != (its.module, its.argument, its.axis):
            return False
        if not torch.equal(reader.units, its.units):
            return False
    return all(
        len(uses) == len(other.uses[name]) and all(map(_is_same_use, uses, other.uses[name]))
        for name, uses in one.uses.items()
    )


def resolve(trace: Trace, model: nn.Module, prefix: str = "", untrained: Collection[str] = ()) -> UnitGraph:
    """Turn findings of runs into a graph, with positions of an embedding for labels and a role for every parameter.

    Entries of parameters that no run has reached belong to no unit: the first consolidated task freezes them.

    Args:
        trace: findings of all runs.
        model: the network.
        prefix: put before every parameter's name in the result.
        untrained: names of its untrained parameters, whose units belong to no group.
    """
    trace = with_untrained_ungated(trace, model, untrained)
    table, groups = _number_units(trace)
    ungated = sum(group.size for group in groups)
    readers = tuple(
        Reader(
            FEATURES if read.module == _RESULT else read.module,
            read.argument,
            read.keyword,
            read.axis,
            table[read.labels],
        )
        for read in trace.reads.values()
        if read.module == _RESULT or bool((table[read.labels] != ungated).any())
    )
    heads = {name: table[labels] for name, labels in trace.heads.items()}
    groups = _with_readers(groups, readers, heads)
    norms = untrained_norms(model, untrained)
    per_task = tuple(name for name in trace.per_task if name not in norms)
    uses, roles = _parameters(trace, model, table, ungated, prefix, per_task)
    roles |= {prefix + name: Role.UNTRAINED for name in untrained}
    shapes = {prefix + name: parameter.shape for name, parameter in model.named_parameters()}
    reached = {use.parameter for use in trace.uses}
    unused = tuple(
        prefix + name
        for name, _ in model.named_parameters()
        if name not in reached and roles[prefix + name] is Role.WHOLE
    )
    outputs = _outputs(trace, model, table)
    return UnitGraph(ungated, groups, readers, uses, roles, shapes, per_task, outputs, unused, heads)


def _number_units(trace: Trace) -> tuple[Tensor, tuple[Group, ...]]:
    """Number units, group by group.

    Returns:
        The position in the embedding of every label, the number of units for labels without one; and the groups.
    """
    producers = trace.coupling.producers
    roots = trace.coupling.roots(torch.arange(1 + sum(producer.count for producer in producers)))
    members = _group_units(trace, roots)
    numbered = torch.tensor([root for units in members.values() for root in units], dtype=torch.int64)
    sizes = torch.tensor([len(units) for units in members.values()], dtype=torch.int64)
    positions, group_of = torch.full((len(roots),), len(numbered)), torch.full((len(roots),), len(sizes))
    positions[numbered] = torch.arange(len(numbered))
    group_of[numbered] = torch.arange(len(sizes)).repeat_interleave(sizes)
    index = {name: number for number, name in enumerate(dict.fromkeys(producer.name for producer in producers))}
    made = [torch.full((producer.count,), index[producer.name]) for producer in producers]
    places = group_of[roots[1:]] * len(index) + torch.cat([roots[:0], *made])
    outputs = torch.bincount(places, minlength=(len(sizes) + 1) * len(index)).view(len(sizes) + 1, len(index))
    groups, start = [], 0
    for (names, units), each in zip(members.items(), outputs.tolist(), strict=False):  # the last is that of no group
        groups.append(Group("+".join(names), start, len(units), (), max(each)))
        start += len(units)
    return positions[roots], tuple(groups)


def _group_units(trace: Trace, roots: Tensor) -> dict[tuple[str, ...], list[int]]:
    """Return the groups of units, in their order: the names of the producers of each, and its units by their roots.

    A loop over the labels of a large network would take as long as a forward pass; there is one over its units alone.

    Args:
        trace: findings of all runs.
        roots: the root of every label.
    """
    producers = trace.coupling.producers
    makers = torch.arange(len(producers)).repeat_interleave(torch.tensor([each.count for each in producers]).long())
    pairs = torch.unique((roots[1:] * len(producers) + makers)[roots[1:] != UNGATED])  # of a root and a producer
    owners, counts = torch.unique_consecutive(pairs // max(len(producers), 1), return_counts=True)
    remaining = iter((pairs % max(len(producers), 1)).tolist())
    kinds: dict[tuple[int, ...], list[int]] = {}
    for root, count in zip(owners.tolist(), counts.tolist(), strict=True):
        kinds.setdefault(tuple(islice(remaining, count)), []).append(root)
    read = torch.zeros(len(roots), dtype=torch.bool)
    read[roots[torch.cat([roots[:0], *(each.labels.flatten() for each in trace.reads.values())])]] = True
    members: dict[tuple[str, ...], list[int]] = {}
    for numbers, units in kinds.items():
        names = tuple(dict.fromkeys(producers[number].name for number in numbers))
        if all(name in trace.by_themselves for name in names):  # entries of parameters, perhaps of no use so far
            units = [root for root in units if read[root]]
        members.setdefault(names, []).extend(units)
    in_order = sorted((sorted(units), names) for names, units in members.items() if units)
    return {names: units for units, names in in_order}


def _outputs(trace: Trace, model: nn.Module, table: Tensor) -> dict[str, Tensor]:
    """Return the units that modules write or pass on; without modules that have other ones at a second call."""
    modules = {name for name, _ in model.named_modules()}
    found: dict[str, list[Tensor]] = {name: [labels] for name, labels in trace.written.items() if name in modules}
    for name, labels in trace.passing:
        found.setdefault(name, []).append(labels)
    resolved = {name: [table[labels] for labels in calls] for name, calls in found.items()}
    return {name: calls[0] for name, calls in resolved.items() if all(torch.equal(each, calls[0]) for each in calls)}


def _with_readers(groups: Sequence[Group], readers: Sequence[Reader], heads: Mapping[str, Tensor]) -> tuple[Group, ...]:
    """Return groups with the names of the layers that read them; fused attention reads its own heads."""
    ends = torch.tensor([group.start + group.size for group in groups], dtype=torch.int64)
    found: list[dict[str, None]] = [{} for _ in (*groups, None)]  # the last one is of what belongs to no unit
    for name, units in [*((reader.module, reader.units) for reader in readers), *heads.items()]:
        for number in torch.unique(torch.bucketize(units, ends, right=True)).tolist():
            found[number][name] = None
    return tuple(replace(group, readers=tuple(names)) for group, names in zip(groups, found, strict=False))


def _parameters(
    trace: Trace, model: nn.Module, table: Tensor, ungated: int, prefix: str, per_task_modules: Sequence[str]
) -> tuple[dict[str, tuple[ParameterUse, ...]], dict[str, Role]]:
    """Return the uses and the role of every parameter of the model."""
    found: dict[str, list[ParameterUse]] = {}
    for use in trace.uses:
        resolved = ParameterUse(tuple(table[side] for side in use.sides))
        same = found.setdefault(use.parameter, [])
        if not any(_is_same_use(resolved, each) for each in same):
            same.append(resolved)
    modules = dict(model.named_modules())
    per_task = {id(p) for name in per_task_modules for p in modules[name].parameters()}
    uses: dict[str, tuple[ParameterUse, ...]] = {}
    roles: dict[str, Role] = {}
    for name, parameter in model.named_parameters():
        uses[prefix + name] = tuple(found.get(name, ()))
        if id(parameter) in per_task:
            roles[prefix + name] = Role.PER_TASK
        elif name not in found:  # no run has reached it
            uses[prefix + name] = (ParameterUse((torch.full((1,) * parameter.dim(), ungated),)),)
            roles[prefix + name] = Role.WHOLE
        elif all(bool((side == ungated).all()) for use in uses[prefix + name] for side in use.sides):
            roles[prefix + name] = Role.WHOLE
        else:
            roles[prefix + name] = Role.MIXING if any(len(u.sides) > 1 for u in uses[prefix + name]) else Role.PER_UNIT
    return uses, roles


def _is_same_use(one: ParameterUse, other: ParameterUse) -> bool:
    return len(one.sides) == len(other.sides) and all(map(torch.equal, one.sides, other.sides))
