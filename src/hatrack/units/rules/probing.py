"""Probing: a function of torch without a rule of its own is run again on other values, to see what depends on what.

All entries of half of the units get other values at once. What changes in the results depends on one of these units.
Every unit has a *code*: the numbers of the runs in which its entries were changed. All codes are of one weight, so that
an entry of a result that depends on a single unit shows just the code of that unit, and one that depends on several
shows more runs than any code has. Entries are changed to "not a number", which nearly all arithmetic hands on, and to
random numbers, since comparisons and integers hand on nothing else.

Each operand is probed by itself: in ``f(a, b)`` an entry may depend on one unit of each, which are then coupled. Where
an entry depends on several units of one operand, the function *mixes* them. They are read where a gate can stand before
it, and are coupled elsewhere.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from hatrack.support.inputs import tensors_in
from hatrack.support.names import in_one_line
from hatrack.support.randomness import random_numbers_apart, seed_generators
from hatrack.units.coupling import UNGATED, compact, is_constant, touches_units
from hatrack.units.trace import Call, Labels, Trace

__all__ = ["ProbeError", "joined", "probe"]

_NEVER = frozenset(["__set__", "set_", "resize_", "resize_as_", "share_memory_", "apply_", "map_", "map2_", "backward"])
"""Names of functions that change more than values, or run code of the user's."""

_OF_MEMORY = frozenset(["as_strided", "as_strided_", "as_strided_copy", "as_strided_scatter"])
"""Names of functions whose result depends on how a value lies in memory."""

_FEW, _MANY = 2, 8
"""Number of random trials; the larger one where values that are chosen or masked are not the same for all inputs."""

_MOST_BITS = 20
"""Largest length of a code: 184,756 units."""

_FURTHER = 30
"""Largest number of further trials, for functions whose results seldom change."""

_ONE_BY_ONE = 62
"""Largest number of units of which each is changed by itself, where units meet."""

_PLAIN = (int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None), type(...))
"""Types of settings that are what they look like."""

_Results = TypeVar("_Results", bound=tuple[Tensor, ...])

_AT_ONCE = 6
"""Number of further bits of a code, in runs that tell which units meet."""


class ProbeError(Exception):
    """Error of a function that cannot be probed; the text gives the reason."""


def probe(trace: Trace, call: Call) -> Labels:
    """Label the result of any function, by running it again on other values of its operands.

    Args:
        trace: the trace.
        call: the call; its output is its first argument where a function changes that in place and returns nothing.

    Returns:
        Labels of the result.

    Raises:
        ProbeError: the function cannot be run on other values, or changes something beside its result.
    """
    if call.name.rpartition(".")[2] in _NEVER:
        raise ProbeError("it changes more than values")
    results = list(tensors_in(call.output))
    labels = [torch.tensor(UNGATED).expand(each.shape) for each in results]
    with random_numbers_apart(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        experiment = _Experiment(trace, call)
        for operand in experiment.operands:
            if touches_units(operand.labels):
                found = _labels_of(trace, call, experiment, operand, results)
                labels = [joined(trace, *both) for both in zip(labels, found, strict=True)]
    return _like(call.output, iter(labels))


@dataclass(frozen=True)
class _Operand:
    """Tensor among the arguments of a function.

    Attributes:
        value: the tensor.
        labels: its labels, of the shape that it had before the call.
        varies: whether its values are others for other inputs.
    """

    value: Tensor
    labels: Tensor
    varies: bool

    @property
    def is_inexact(self) -> bool:
        """Return whether the tensor has real or complex numbers."""
        return self.value.is_floating_point() or self.value.is_complex()

    @cached_property
    def digest(self) -> bytes:
        """Digest of the values of a constant; empty for values that vary."""
        return b"" if self.varies else _digest(self.value)

    def draw(self, generator: torch.Generator, positive: bool, largest: int) -> Tensor:
        """Draw random values of the operand's type, in its memory layout.

        Args:
            generator: source of randomness.
            positive: draw real numbers from (0, 1), not from a normal distribution.
            largest: a bound for integers, which may be indices.
        """
        same = self.labels.shape == self.value.shape
        new = torch.empty_like(self.value) if same else self.value.new_empty(self.labels.shape)
        if new.dtype == torch.bool:
            return new.copy_(torch.rand(new.shape, generator=generator) < 0.5)
        if not (new.is_floating_point() or new.is_complex()):
            return new.copy_(torch.randint(min(largest, torch.iinfo(new.dtype).max), new.shape, generator=generator))
        drawn = torch.rand(new.shape, generator=generator) * 0.9 + 0.05
        if not positive:
            drawn = torch.randn(new.shape, generator=generator)
        if new.is_complex():
            drawn = torch.complex(drawn, torch.randn(new.shape, generator=generator))
        return new.copy_(drawn)


class _Kept:
    """Cache of what runs have shown, by all that it depends on: layers that are alike, and later runs, are quick.

    The oldest results are dropped where there are more than fit into some megabytes. Several threads may ask at once,
    and none waits for another: an interrupt in the wrong moment would leave a lock closed for good. At worst the size
    is a little off.
    """

    def __init__(self, most: int = 1 << 26) -> None:
        self._most, self._size = most, 0
        self._results: dict[Any, tuple[Tensor, ...]] = {}

    def found(self, key: Any, look: Callable[[], _Results]) -> _Results:
        """Return what is kept for a key, or look; nothing is kept for None."""
        known: Any = None if key is None else self._results.get(key)
        if known is not None:
            return known  # type: ignore[no-any-return]
        results = look()
        if key is not None and self._results.setdefault(key, results) is results:
            self._size += _bytes(results)
        for oldest in list(self._results) if self._size > self._most else ():
            if self._size > self._most and (dropped := self._results.pop(oldest, None)) is not None:
                self._size -= _bytes(dropped)
        return results


_KEPT = _Kept()


@dataclass
class _Trial:
    """Values of all operands, and the results for them.

    Attributes:
        values: values by the identity of the operand.
        results: the results, as vectors.
    """

    values: dict[int, Tensor]
    results: list[Tensor]


class _Experiment:
    """Runs of a function on other values than those of the labelled run.

    Args:
        trace: the trace.
        call: the call of the function.

    Attributes:
        operands: the tensors among its arguments, each once.
        count: number of trials, at first: random values of all that varies, with the results.
        size: number of entries of all results.
    """

    def __init__(self, trace: Trace, call: Call) -> None:
        self._call = call
        self._generator = torch.Generator().manual_seed(0)
        tensors = {id(value): value for value in tensors_in((call.args, call.kwargs))}
        self.operands = [
            _Operand(value, trace.labels(value), value in trace.variable or trace.is_gated(value))
            for value in tensors.values()
        ]
        if call.name.rpartition(".")[2] in _OF_MEMORY and not all(_fills_its_memory(o.value) for o in self.operands):
            raise ProbeError("it looks at memory outside of the value that it is given")
        self._shapes = [each.shape for each in tensors_in(call.output)]
        self.size = sum(shape.numel() for shape in self._shapes)
        self._spreads = True  # "not a number"
        self._choosing = [o for o in self.operands if o.varies and not o.is_inexact and o.value.numel()]
        self.count = _MANY if self._choosing else _FEW
        self._bound = 0
        self._trials: list[_Trial] = []
        self._key = self._describe()

    def _describe(self) -> tuple[Any, ...] | None:
        """Return all that the runs depend on; None if a setting is no plain value, so that nothing is kept."""
        numbers = {id(operand.value): number for number, operand in enumerate(self.operands)}
        settings = list(_settings((self._call.args, self._call.kwargs), numbers))
        if not all(isinstance(each, _PLAIN) for each in settings):
            return None
        operands = tuple(
            (o.value.shape, o.value.stride(), o.value.dtype, str(o.value.device), o.labels.shape, o.varies, o.digest)
            for o in self.operands
        )
        return (self._call.target, repr(settings), operands, tuple(self._shapes))

    def trial(self, number: int) -> _Trial:
        """Return random values, with which the function runs."""
        if not self._bound:
            self._bound = self._bound_of_integers(self._choosing)
        while len(self._trials) <= number:
            self._add_trial()
        return self._trials[number]

    def _add_trial(self) -> None:
        error: Exception | None = None
        for attempt in range(4):
            values = self._values(positive=(len(self._trials) + attempt) % 2 == 1)
            try:
                trial = _Trial(values, self._run(values))
            except ProbeError:
                raise
            except Exception as raised:  # whatever a function does with values that do not suit it
                error = raised
            else:
                self._trials.append(trial)
                return
        raise ProbeError(f"it does not run on random values ({in_one_line(error)})") from error

    def seen(self, operand: _Operand, codes: Tensor, bits: range, numbers: range) -> tuple[Tensor, Tensor]:
        """Change the entries of an operand in one run for each bit of their codes.

        Args:
            operand: the operand.
            codes: codes of its entries.
            bits: numbers of the bits.
            numbers: numbers of the trials whose values to start from.

        Returns:
            For every entry of the results the runs in which it changed, as a code: those by "not a number" alone, and
            those by any other value.
        """
        which = next(number for number, each in enumerate(self.operands) if each is operand)
        key = None if self._key is None else (*self._key, which, _digest(codes), bits, numbers)
        return _KEPT.found(key, lambda: self._look(operand, codes, bits, numbers))

    def _look(self, operand: _Operand, codes: Tensor, bits: range, numbers: range) -> tuple[Tensor, Tensor]:
        spread, found = (torch.zeros(self.size, dtype=torch.int64) for _ in range(2))
        trials = [self.trial(number) for number in numbers]
        for bit in bits:
            where = (codes >> bit) & 1 > 0
            for trial in trials:
                found |= self._changed_by_others(trial, operand, where).long() << bit
            for trial in trials if len(trials) >= _MANY else trials[:1]:
                spread |= self._changed_by_none(trial, operand, where).long() << bit
        return spread, spread | found

    def says_nothing(self, count: int) -> Tensor:
        """Return the entries of the results that are "not a number" in so many trials, of which nothing is known."""
        key = None if self._key is None else (*self._key, count)
        return _KEPT.found(key, lambda: (self._unknown(count),))[0]

    def _unknown(self, count: int) -> Tensor:
        nothing = torch.ones(self.size, dtype=torch.bool)
        for number in range(count):
            nothing &= _joint([each.isnan() for each in self.trial(number).results])
        return nothing

    def _changed_by_none(self, trial: _Trial, operand: _Operand, where: Tensor) -> Tensor:
        """Return which entries change if entries of an operand are "not a number"; none if the function fails then."""
        if self._spreads and operand.is_inexact:
            try:
                return self._changed(trial, operand, where, torch.full_like(trial.values[id(operand.value)], torch.nan))
            except ProbeError:
                raise
            except Exception:  # such as a decomposition that did not converge
                self._spreads = False
        return torch.zeros(self.size, dtype=torch.bool)

    def _changed_by_others(self, trial: _Trial, operand: _Operand, where: Tensor) -> Tensor:
        """Return which entries change if entries of an operand get random values."""
        before = trial.values[id(operand.value)]
        for positive in (False, True):
            other = operand.draw(self._generator, positive, self._bound)
            if operand.value.dtype == torch.bool:
                other = ~before
            elif not operand.is_inexact:
                other = torch.where(other == before, (other + 1) % max(self._bound, 2), other)
            try:
                return self._changed(trial, operand, where, other)
            except ProbeError:
                raise
            except Exception as raised:
                error = raised
        raise ProbeError(f"it does not run on random values ({in_one_line(error)})") from error

    def _changed(self, trial: _Trial, operand: _Operand, where: Tensor, other: Tensor) -> Tensor:
        before = trial.values[id(operand.value)]
        results = self._run({**trial.values, id(operand.value): torch.where(where.to(other.device), other, before)})
        pairs = zip(results, trial.results, strict=True)
        return _joint([(new != old) & ~(new.isnan() & old.isnan()) for new, old in pairs])

    def _values(self, positive: bool) -> dict[int, Tensor]:
        """Draw values of all operands that vary; others keep theirs."""
        return {
            id(operand.value): operand.draw(self._generator, positive, self._bound) if operand.varies else operand.value
            for operand in self.operands
        }

    def _bound_of_integers(self, choosing: list[_Operand]) -> int:
        """Return the largest bound for random integers with which the function runs."""
        self._bound = 2
        integers = [operand for operand in choosing if operand.value.dtype != torch.bool]
        if not integers:
            return self._bound
        sizes = {size for operand in self.operands for size in operand.labels.shape}
        sizes |= {int(operand.value.max()) + 1 for operand in integers}
        for size in sorted(sizes - {0}, reverse=True):
            self._bound = size
            for _ in range(2):
                try:
                    self._run(self._values(positive=True))
                except ProbeError:
                    raise
                except Exception:  # an index that is too large
                    break
            else:
                return size
        raise ProbeError("it does not run on random integers")

    @torch.no_grad()
    def _run(self, values: Mapping[int, Tensor]) -> list[Tensor]:
        """Run the function, on copies of these values, and return its results as vectors."""
        call = self._call
        copies = {key: value.detach().clone() for key, value in values.items()}
        seed_generators(0)  # the same numbers in every run
        output = call.target(*_replaced(call.args, copies), **_replaced(call.kwargs, copies))
        if output is None and call.args and call.output is call.args[0]:
            output = copies[id(call.output)]  # changed in place
        results = list(tensors_in(output))
        if any(copy._version and not any(copy is each for each in results) for copy in copies.values()):
            raise ProbeError("it changes a value beside its result")
        if [each.shape for each in results] != self._shapes:
            raise ProbeError("the size of its result depends on values")
        return [each.detach().flatten() for each in results]


def _labels_of(
    trace: Trace, call: Call, experiment: _Experiment, operand: _Operand, results: list[Tensor]
) -> list[Tensor]:
    """Return the labels of the results that come from one operand."""
    roots = trace.coupling.roots(operand.labels)
    units = torch.unique(compact(roots))
    units = units[units != UNGATED]
    codes, bits, weight = _codes(len(units))
    codes_of_entries = _looked_up(roots, units, codes)
    first = range(experiment.count)
    spread, shown = experiment.seen(operand, codes_of_entries, range(bits), first)
    count = experiment.count
    for count in range(experiment.count, experiment.count + _FURTHER):
        if not bool(((shown != 0) & (_ones(shown, bits) < weight)).any()):
            break  # all entries show the codes of some units at least
        its_spread, its_shown = experiment.seen(operand, codes_of_entries, range(bits), range(count, count + 1))
        spread, shown = spread | its_spread, shown | its_shown
    shown = torch.where(experiment.says_nothing(count), (1 << bits) - 1, shown)
    places = torch.searchsorted(codes, shown).clamp(max=len(codes) - 1)
    alone = codes[places] == shown
    labels = torch.where(alone, units[places], UNGATED)
    several = ~alone & (shown != 0)
    if not several.any():
        return _split(labels, results)
    if trace.is_readable(operand.value):
        trace.read_inside(call, operand.value)
        return _kept(labels, shown, codes_of_entries, roots, several, results)
    certain = bool((spread == shown)[several].all())  # else a unit may have been missed in some run
    if certain and len(units) <= _ONE_BY_ONE:
        codes = 1 << torch.arange(len(units))
        shown = experiment.seen(operand, _looked_up(roots, units, codes), range(len(units)), first)[0]
    for start in range(bits, 63 - _AT_ONCE, _AT_ONCE) if certain and len(units) > _ONE_BY_ONE else ():
        counts = [len(each) for each in _candidates(codes, torch.unique(shown[several]), certain)]
        if max(counts) <= 2 or (start > bits and min(counts) == len(units)):
            break
        more = range(start, start + _AT_ONCE)
        drawn = torch.rand(len(units), len(more), generator=torch.Generator().manual_seed(start)) < 1 / 3
        codes = codes | (drawn.long() << torch.tensor(more)).sum(1)
        shown = shown | experiment.seen(operand, _looked_up(roots, units, codes), more, first)[0]
    patterns, which = torch.unique(shown[several], return_inverse=True)
    firsts = []
    for meeting in _candidates(codes, patterns, certain):
        trace.coupling.couple(units[meeting], units[meeting[:1]])
        firsts.append(units[meeting[0]])
    labels[several] = torch.stack(firsts)[which]
    return _split(labels, results)


def _candidates(codes: Tensor, patterns: Tensor, certain: bool) -> list[Tensor]:
    """Return for each pattern of runs the indices of the units that may be among those that it depends on."""
    found = []
    for pattern in patterns:
        inside = (codes & ~pattern == 0).nonzero().flatten()
        found.append(inside if certain and len(inside) > 1 else (codes & pattern != 0).nonzero().flatten())
    return found


def _kept(
    labels: Tensor, shown: Tensor, codes: Tensor, roots: Tensor, several: Tensor, results: list[Tensor]
) -> list[Tensor]:
    """Let entries keep their units where a result has the operand's shape, each depending on its own entry too."""
    found = []
    parts = zip(*(_cut(each, results) for each in (labels, shown, several)), results, strict=True)
    for own, runs, mixed, result in parts:
        if result.shape == roots.shape and (result.is_floating_point() or result.is_complex()):
            mine = codes.reshape(-1)
            own = torch.where(mixed & (mine & ~runs == 0), roots.reshape(-1), own)
        found.append(own.view(result.shape))
    return found


def joined(trace: Trace, one: Tensor, other: Tensor) -> Tensor:
    """Couple the units of two operands that meet in a result.

    A unit that meets several of one layer, as one that is broadcast over them, is made always-on instead.
    """
    if touches_units(one) and touches_units(other):
        for mine, its in ((one, other), (other, one)):
            for axis, size in enumerate(mine.shape):
                if size > 1 and is_constant(mine, axis) and trace.coupling.is_across(its, axis):
                    trace.coupling.pin(mine)
                    return its
    return trace.coupling.couple(one, other)


def _codes(count: int) -> tuple[Tensor, int, int]:
    """Return different codes of one weight, ascending, for a number of units; the number of bits; and the weight."""
    if count == 1:
        return torch.ones(1, dtype=torch.int64), 1, 1
    for bits in range(2, _MOST_BITS + 1):
        if math.comb(bits, bits // 2) >= count:
            numbers = torch.arange(1 << bits)
            return numbers[_ones(numbers, bits) == bits // 2][:count], bits, bits // 2
    raise ProbeError("it is given too many units")


def _ones(numbers: Tensor, bits: int) -> Tensor:
    """Count the bits that are set."""
    return sum(((numbers >> bit) & 1 for bit in range(bits)), torch.zeros_like(numbers))


def _looked_up(roots: Tensor, units: Tensor, codes: Tensor) -> Tensor:
    """Return the codes of entries; 0 for those that belong to no unit."""
    kept = compact(roots)
    places = torch.searchsorted(units, kept.contiguous()).clamp(max=len(units) - 1)
    return torch.where(kept == UNGATED, 0, codes[places]).expand(roots.shape)


def _joint(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.cpu() for part in parts]) if parts else torch.zeros(0, dtype=torch.bool)


def _cut(numbers: Tensor, results: list[Tensor]) -> list[Tensor]:
    """Cut a vector over the entries of all results into one per result."""
    ends = torch.tensor([0, *(result.numel() for result in results)]).cumsum(0).tolist()
    return [numbers[start:end] for start, end in pairwise(ends)]


def _split(labels: Tensor, results: list[Tensor]) -> list[Tensor]:
    return [part.view(result.shape) for part, result in zip(_cut(labels, results), results, strict=True)]


def _bytes(results: tuple[Tensor, ...]) -> int:
    return sum(each.numel() * each.element_size() for each in results)


def _digest(values: Tensor) -> bytes:
    """Return a digest of values, for which repeated ones are read once."""
    kept = compact(values.detach())
    flat = (torch.view_as_real(kept) if kept.is_complex() else kept).cpu().reshape(-1)
    numbers = torch.empty(flat.shape, dtype=flat.dtype).copy_(flat)  # of which numbers lie side by side
    content = numbers.view(torch.uint8).numpy().tobytes() if numbers.numel() else b""
    return hashlib.sha256(content + repr((tuple(values.shape), tuple(kept.shape))).encode()).digest()


def _settings(tree: Any, numbers: Mapping[int, int]) -> Iterator[Any]:
    """Yield nested arguments in their order, and the number of the operand in the place of a tensor."""
    if isinstance(tree, Tensor):
        yield f"operand {numbers[id(tree)]}"
    elif isinstance(tree, dict):
        yield from _settings(list(tree.items()), numbers)
    elif isinstance(tree, slice):
        yield "slice"
        yield from _settings((tree.start, tree.stop, tree.step), numbers)
    elif isinstance(tree, (tuple, list)):
        yield type(tree).__name__
        for branch in tree:
            yield from _settings(branch, numbers)
        yield "end"
    else:
        yield tree


def _like(output: Any, labels: Iterator[Tensor]) -> Labels:
    """Arrange labels as a result is arranged."""
    if isinstance(output, Tensor):
        return next(labels)
    if isinstance(output, (tuple, list)):
        return tuple(_like(each, labels) for each in output)
    if any(True for _ in tensors_in(output)):
        raise ProbeError(f"its result is a {type(output).__name__}")
    return ()


def _replaced(tree: Any, copies: Mapping[int, Tensor]) -> Any:
    """Put copies in the place of the tensors in nested tuples, lists and dictionaries."""
    if isinstance(tree, Tensor):
        return copies[id(tree)]
    if not any(True for _ in tensors_in(tree)):
        return tree
    if isinstance(tree, dict):
        return {key: _replaced(value, copies) for key, value in tree.items()}
    branches = [_replaced(value, copies) for value in tree]
    make: Callable[..., Any] = type(tree)
    return make(*branches) if hasattr(tree, "_fields") else make(branches)


def _fills_its_memory(value: Tensor) -> bool:
    """Return whether a value has memory of its own, without gaps, which a copy has in the same order."""
    return value.storage_offset() == 0 and value.untyped_storage().nbytes() == value.numel() * value.element_size()
