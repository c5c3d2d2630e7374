"""Record of a labelled run: labels of values, readers of units, and uses of parameters."""

from __future__ import annotations

import copy
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.errors import UnsupportedError
from hatrack.support.inputs import tensors_in
from hatrack.units.computed import origins
from hatrack.units.coupling import UNGATED, Coupling, compact, is_constant, touches_units
from hatrack.units.decisions import Way
from hatrack.units.sources import Argument, Sources
from hatrack.units.values import Memory

__all__ = ["Call", "Labels", "Read", "Rule", "Trace", "Use"]

NO_GATE = (
    "it mixes several units where no gate can stand before it; move it into a torch.nn.Module of its own whose forward "
    "takes what it mixes as an argument, or use a layer of torch.nn"
)
"""Reason for refusing a function that reads units, with the remedy."""

Labels = Tensor | tuple["Labels", ...]
"""Labels of a result: an int64 tensor of its shape, or a tuple of such for a result with several tensors."""


_HEADS = (".", 0)
"""Key of the heads' reading in :attr:`Trace.reads`."""


@dataclass(frozen=True)
class Call:
    """Call of a module or a function during the labelled run.

    Attributes:
        target: the module, or the function.
        name: the module's name in the model, or the function's name.
        args: positional arguments.
        kwargs: keyword arguments.
        output: the result; None before it is known.
    """

    target: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    def argument(self, position: int, name: str) -> Any:
        """Return an argument that may have been given by position or by name; None if it was not given."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name)


Rule = Callable[["Trace", Call], Labels]
"""Function that explains an operation: it records reads, couples units, and returns the labels of the result."""


@dataclass
class Read:
    """Reading of units by a module, at an argument that is to be gated.

    Attributes:
        module: the module's name.
        argument: position of the argument.
        keyword: name of the argument.
        axis: its axis that counts units, negative.
        labels: one label per index of that axis.
    """

    module: str
    argument: int
    keyword: str
    axis: int
    labels: Tensor


@dataclass(frozen=True)
class Use:
    """Use of a parameter.

    Attributes:
        parameter: its name.
        sides: the labels at each of its ends, each broadcastable to its shape.
    """

    parameter: str
    sides: tuple[Tensor, ...]


@dataclass
class Trace:
    """State of a labelled run, which the rules read and write.

    Attributes:
        coupling: the units, and which of them share a gate.
        reads: readings of units by the module's name and the argument's position.
        uses: uses of parameters.
        per_task: names of modules of which every task has its own copy.
        passing: names of layers that pass units on, with a label for every channel.
        written: labels of the units that layers write, by name.
        heads: labels of the channels of fused attention, by the layer's name, ``(2, E)``: of queries and keys, and of
            values.
        sources: origins of values in the arguments of modules.
        parameters: names of the model's parameters by identity.
        buffers: identities of the model's buffers.
        by_themselves: labels of the entries of parameters that are used by themselves, by name.
        weights: labels of values that functions take for a weight, though these are computed.
        untrained: names of the model's untrained parameters.
        unexplained: labels of results of operations that no rule explains, on values that untrained parameters make.
        deferred: refusals of these operations, each with the labels of what it was given: it stands if one of them
            turns out to belong to a unit.
        variable: values that are others for other inputs.
        ways: outcomes of the decisions that the input takes, on all ways that were followed.
        turned: parameters whose axes are in another order, by the identity of the result: that, the parameter, and for
            each axis of the result that of the parameter.
    """

    coupling: Coupling = field(default_factory=Coupling)
    reads: dict[tuple[str, int], Read] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    per_task: list[str] = field(default_factory=list)
    passing: list[tuple[str, Tensor]] = field(default_factory=list)
    written: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)
    sources: Sources = field(default_factory=Sources)
    parameters: dict[int, str] = field(default_factory=dict)
    buffers: set[int] = field(default_factory=set)
    by_themselves: dict[str, Tensor] = field(default_factory=dict)
    weights: list[Tensor] = field(default_factory=list)
    untrained: frozenset[str] = frozenset()
    unexplained: list[Tensor] = field(default_factory=list)
    deferred: list[tuple[Tensor, UnsupportedError]] = field(default_factory=list)
    variable: Memory = field(default_factory=Memory)
    ways: dict[Way, None] = field(default_factory=dict)
    turned: dict[int, tuple[Tensor, nn.Parameter, tuple[int, ...]]] = field(default_factory=dict)
    _values: dict[int, tuple[weakref.ref[Tensor], Tensor]] = field(default_factory=dict)  # with labels, by identity

    def without_values(self) -> Trace:
        """Copy the findings, without the tensors of the run."""
        found = ["reads", "uses", "per_task", "passing", "written", "heads", "by_themselves", "ways"]
        found += ["weights", "untrained", "unexplained", "deferred"]
        return Trace(copy.deepcopy(self.coupling), **{name: copy.copy(getattr(self, name)) for name in found})

    def united_with(self, other: Trace) -> Trace:
        """Unite the findings of two runs: units are coupled or read if they are in either.

        Raises:
            UnsupportedError: the runs contradict each other.
        """
        both = self.without_values()
        there = both.coupling.include(other.coupling)
        for key, read in other.reads.items():
            labels, earlier = there[read.labels], both.reads.get(key)
            if earlier is not None and (earlier.axis, earlier.labels.shape) != (read.axis, labels.shape):
                raise UnsupportedError(
                    f"{read.module}: other inputs have units along another axis, or another number of them; "
                    "use a layer for each"
                )
            if earlier is not None:
                labels = both.coupling.couple(earlier.labels, labels)
            both.reads[key] = replace(read, labels=labels)
        if _HEADS in both.reads:
            both.reads[_HEADS] = both.reads.pop(_HEADS)  # the last one, which the heads read
        both.uses += [Use(use.parameter, tuple(there[side] for side in use.sides)) for use in other.uses]
        both.weights += [there[labels] for labels in other.weights]
        both.unexplained += [there[labels] for labels in other.unexplained]
        both.deferred += [(there[labels], refusal) for labels, refusal in other.deferred]
        both.ways |= other.ways
        both.per_task += [name for name in other.per_task if name not in both.per_task]
        both.passing += [(name, there[labels]) for name, labels in other.passing]
        tables = ((both.written, other.written), (both.heads, other.heads), (both.by_themselves, other.by_themselves))
        for mine, its in tables:
            mine.update({name: there[labels] for name, labels in its.items() if name not in mine})
        return both

    def labels(self, value: Tensor) -> Tensor:
        """Return the labels of a value; zeros for one that the run has not seen."""
        if not self.is_gated(value):
            return torch.tensor(UNGATED).expand(value.shape)
        return self.coupling.roots(self._values[id(value)][1])

    def is_gated(self, value: Tensor) -> bool:
        """Return whether any position of a value belongs to a unit, or was computed from units."""
        known = self._values.get(id(value))
        return known is not None and known[0]() is value  # and no later one that has got its identity

    def remember(self, output: Any, labels: Labels, always: bool = False) -> None:
        """Attach labels to the result of an operation.

        Args:
            output: the result.
            labels: its labels.
            always: remember a result without units too, because it was computed from units and its further use, such as
                a choice of what to compute, is to be followed.

        Raises:
            ValueError, TypeError: the labels do not fit the result.
        """
        if isinstance(output, Tensor) and isinstance(labels, Tensor):
            if labels.shape != output.shape:
                raise ValueError(f"labels of shape {tuple(labels.shape)} for a value of {tuple(output.shape)}")
            if always or touches_units(labels):
                self._values[id(output)] = (weakref.ref(output), labels)  # not kept: all values take much memory
        elif isinstance(output, (tuple, list)) and isinstance(labels, tuple):
            for value, its_labels in zip(output, labels, strict=True):
                self.remember(value, its_labels, always)
        elif any(True for _ in tensors_in(output)):
            raise TypeError(f"labels are a {type(labels).__name__} for a result that is a {type(output).__name__}")

    def read(self, call: Call, value: Tensor, axis: int, *, argument: int = 0, keyword: str = "input") -> Tensor:
        """Record that a module reads units; from then on its input is gated.

        Args:
            call: the module's call.
            value: the argument that is read.
            axis: the axis of the argument that counts units, negative.
            argument: its position.
            keyword: its name.

        Returns:
            One label per index of that axis.
        """
        return self._read_along(call, self.labels(value), axis, argument, keyword)

    def _read_along(self, call: Call, labels: Tensor, axis: int, argument: int, keyword: str) -> Tensor:
        labels = self.coupling.along(labels, axis)
        earlier = self.reads.get((call.name, argument))
        if earlier is not None and earlier.axis != axis:
            raise self.refuse(call, "it was called before with units along another axis; use a layer for each")
        if earlier is not None and earlier.labels.shape != labels.shape:
            raise self.refuse(call, "it was called before with another number of units; use a layer for each")
        if earlier is not None:  # the module is called a second time: one gate serves both calls
            labels = self.coupling.couple(earlier.labels, labels)
        self.reads[call.name, argument] = Read(call.name, argument, keyword, axis, labels)
        return labels

    def read_inside(self, call: Call, value: Tensor) -> None:
        """Record that a function reads units, by gating the arguments or results of modules that its value comes from.

        Raises:
            UnsupportedError: the value comes from elsewhere too, so that no gate can stand before it.
        """
        if not touches_units(self.labels(value)):
            return
        sources = self.sources.behind(value)
        if sources is None:
            raise self.refuse(call, NO_GATE)
        for source in sources:
            for argument in self.sources.given(source.module, source.position):  # one gate serves all calls
                self.read_argument(call, argument)

    def is_readable(self, value: Tensor) -> bool:
        """Return whether a function may read the units of a value, since a gate can stand before it."""
        sources = self.sources.behind(value)
        return sources is not None and not any(
            argument.changed for source in sources for argument in self.sources.given(source.module, source.position)
        )

    def read_argument(self, call: Call, argument: Argument) -> None:
        """Gate an argument of a module, in which a function reads units."""
        place = replace(call, name=argument.module)
        if argument.changed:
            raise self.refuse(place, "it changes its input in place, which a gate before it would prevent")
        if argument.value is not None:
            labels = self.labels(argument.value)
        else:
            assert argument.labels is not None
            labels = self.coupling.roots(argument.labels)
        earlier = self.reads.get((argument.module, argument.position))
        axes = range(-labels.dim(), 0)
        axis = self.axis_of_units(labels, axes)
        if earlier is not None and earlier.axis in axes:
            same = is_constant(labels, axis) or not is_constant(labels, earlier.axis)
            axis = earlier.axis if same else axis
        self._read_along(place, labels, axis, argument.position, argument.keyword)

    def axis_of_units(self, labels: Tensor, axes: range) -> int:
        """Find the axis that counts units: of those along which labels differ, the first that keeps most units apart.

        A class token beside patches, or a table of positions, makes labels of tokens differ as well, and there may be
        more tokens than channels.

        Args:
            labels: labels of a value.
            axes: the axes to choose from, negative.

        Returns:
            One of the axes; the last one if labels differ along none.
        """
        differing = [axis for axis in axes if not is_constant(labels, axis)]
        if len(differing) < 2:
            return differing[0] if differing else axes[-1]
        return max(differing, key=lambda axis: self._units_left(labels, axis))

    def _units_left(self, labels: Tensor, axis: int) -> int:
        """Count the units that are left if all positions with the same index of an axis are coupled."""
        trial = copy.deepcopy(self.coupling)
        left = trial.roots(trial.along(labels, axis))
        return len(torch.unique(left[left != UNGATED]))

    def holds_entries(self, labels: Tensor) -> bool:
        """Return whether any position belongs to an entry of a parameter that no layer's unit has met so far.

        Such as tokens of features, whose entries are units only until they meet others.
        """
        if not self.by_themselves:
            return False
        return not bool(self._met_by_layers()[self.coupling.roots(compact(labels))].all())

    def holds_entries_alone(self, labels: Tensor) -> bool:
        """Return whether all units among labels are entries of parameters that no layer's unit has met so far."""
        roots = self.coupling.roots(compact(labels))
        if not self.by_themselves or not touches_units(roots):
            return False
        return not bool(self._met_by_layers()[roots[roots != UNGATED]].any())

    def _met_by_layers(self) -> Tensor:
        """Return by root whether a layer's unit is among those that it stands for, booleans; True for no unit."""
        entries = {int(labels.flatten()[0]) for labels in self.by_themselves.values()}
        producers = [producer for producer in self.coupling.producers if producer.start not in entries]
        ranges = [torch.arange(producer.start, producer.start + producer.count) for producer in producers]
        met = torch.zeros(1 + sum(producer.count for producer in self.coupling.producers), dtype=torch.bool)
        met[self.coupling.roots(torch.cat([torch.tensor([UNGATED]), *ranges]))] = True
        return met

    def read_products(self, call: Call, values: list[tuple[Tensor, int]]) -> bool:
        """Read values that are multiplied and summed over an axis each, if else all units of one would become one.

        Such as queries and keys of an attention with a single head, or with keys that all heads share.

        Args:
            call: the function's call.
            values: the values, each with its axis, counted from the front.

        Returns:
            Whether they are read; the result then belongs to none of their units.
        """
        each = [(value, self.labels(value), axis) for value, axis in values]
        if not any(
            self.coupling.is_across(labels, axis) and not self.coupling.is_across_any_but(labels, [axis])
            for _, labels, axis in each
        ):
            return False
        gated = [value for value, labels, _ in each if touches_units(labels)]
        if not all(map(self.is_readable, gated)):
            return False
        for value in gated:
            self.read_inside(call, value)
        return True

    def read_outer_product(self, call: Call, factors: list[tuple[Tensor, Tensor, list[int]]]) -> bool:
        """Read two values whose units meet each with each, as in a covariance, which would couple all of them.

        Where no gate can be, the one with fewer units is always on, so that the other's stay apart.

        Args:
            call: the function's call.
            factors: the factors of a product, each with its labels, one axis for each of the result's, and with its own
                axis for each of the result's, counted from the front; -1 where it has none.

        Returns:
            Whether they are read; the result then belongs to none of their units.
        """
        gated = [(value, labels, axes) for value, labels, axes in factors if touches_units(labels)]
        across = [[axis for axis in range(its.dim()) if self.coupling.is_across(its, axis)] for _, its, _ in gated]
        if [len(axes) for axes in across] != [1, 1] or across[0] == across[1]:
            return False
        if not all(self.is_readable(value) for value, *_ in gated):
            self.coupling.pin(min((labels for _, labels, _ in gated), key=lambda labels: len(torch.unique(labels))))
            return False
        for (value, _, axes), (axis,) in zip(gated, across, strict=True):
            self.coupling.along(self.labels(value), axes[axis])  # first, since it tells which axis counts units
            self.read_inside(call, value)
        return True

    def pass_on(self, call: Call, labels: Tensor) -> None:
        """Record the units of a layer that has parameters or statistics for each channel, and passes units on.

        Args:
            call: the module's call.
            labels: label of every channel, ``(channels,)``.
        """
        self.passing.append((call.name, labels))

    def write(self, call: Call, count: int) -> Tensor:
        """Open the units that a module writes, once per module.

        Returns:
            Their labels, ``(count,)``; those of the module's first call if it is called again.
        """
        if call.name not in self.written:
            self.written[call.name] = self.coupling.open_units(call.name, count)
        return self.written[call.name]

    def use(self, parameter: nn.Parameter | None, *sides: Tensor) -> None:
        """Record the ends of a parameter; None (a layer without bias) is ignored."""
        if parameter is not None:
            self.uses.append(Use(self.parameters.get(id(parameter), ""), sides))

    def use_of(self, call: Call, name: str, *sides: Tensor) -> None:
        """Record the ends of a module's parameter by its name, also where the module computes it from others."""
        for parameter, reaching in origins(call.target, name, sides):
            self.use(parameter, *reaching)

    def open_parameter(self, name: str, parameter: Tensor) -> None:
        """Label a parameter that is used by itself, such as a position embedding: every entry is a unit at first.

        They are coupled with the units that they meet, or made always-on.
        """
        if self.is_gated(parameter) or not parameter.numel():
            return
        labels = self.by_themselves.get(name)
        if labels is None:
            labels = self.coupling.open_units(name, parameter.numel()).view(parameter.shape)
            self.by_themselves[name] = labels
            assert isinstance(parameter, nn.Parameter)
            self.use(parameter, labels)
        self.remember(parameter, labels)

    def weight_of(self, value: Tensor) -> tuple[nn.Parameter, tuple[int, ...]] | None:
        """Return the parameter that a value is, with the order of its axes; None if it is none or used by itself."""
        found: tuple[nn.Parameter, tuple[int, ...]] | None = None
        if isinstance(value, nn.Parameter):
            found = value, tuple(range(value.dim()))
        elif id(value) in self.turned:
            found = self.turned[id(value)][1:]
        return found if found and id(found[0]) in self.parameters and not self.is_gated(found[0]) else None

    def open_weight(self, value: Tensor) -> None:
        """Label the entries of a value that is a parameter, perhaps with its axes in another order."""
        if isinstance(value, nn.Parameter) and id(value) in self.parameters:
            self.open_parameter(self.parameters[id(value)], value)
        elif id(value) in self.turned:
            _, parameter, order = self.turned[id(value)]
            self.open_parameter(self.parameters[id(parameter)], parameter)
            self.remember(value, self.labels(parameter).permute(order))

    def defer(self, call: Call, refusal: UnsupportedError) -> bool:
        """Label the result of an operation that cannot be explained, as long as it may be given untrained values alone.

        Args:
            call: the call.
            refusal: the error, which stands if a unit that is gated in the end takes part.

        Returns:
            Whether the run goes on; not where nothing is untrained, or a trained parameter takes part.
        """
        own = call.target.parameters() if isinstance(call.target, nn.Module) else ()
        values = [*tensors_in((call.args, call.kwargs)), *own]
        names = [self.parameters.get(id(value), "") for value in values if isinstance(value, nn.Parameter)]
        if not self.untrained or not self.untrained.issuperset(names):
            return False
        given = torch.cat([torch.tensor([UNGATED]), *(compact(self.labels(value)).flatten() for value in values)])
        made = self.coupling.open_units(call.name, 1)
        self.unexplained.append(made)
        self.deferred.append((torch.unique(given), UnsupportedError(str(refusal))))
        for value in tensors_in(call.output):
            self.remember(value, made.expand(value.shape))
        return True

    def refuse(self, call: Call, reason: str) -> UnsupportedError:
        """Make the error for an operation that cannot be followed, with its name and the line that called it."""
        return UnsupportedError(f"{call.name}: {reason}{_calling_line()}")


def _calling_line() -> str:
    """Return `` (at FILE:LINE)`` for the innermost frame outside torch and hatrack; empty if there is none."""
    inside = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    for frame, line in traceback.walk_stack(None):
        filename = frame.f_code.co_filename
        if not filename.startswith((*inside, "<")):
            return f" (at {Path(filename).name}:{line})"
    return ""
