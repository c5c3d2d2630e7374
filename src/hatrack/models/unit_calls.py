"""Calls of a backbone by kind, each of which is analysed before the first one is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hatrack.errors import DOES_NOT_RUN, InputError, UnsupportedError
from hatrack.gating.attachment import scratch_without_gates
from hatrack.models.masking import Change
from hatrack.state.first_runs import EarlierRuns, RandomRuns
from hatrack.state.movement import ScratchRuns, StateOf, without_saved_tensors, without_trace
from hatrack.state.undo import leaves_modes
from hatrack.support.example import Example
from hatrack.support.inputs import Inputs, are_alike, detached, device_of, is_usual, kind_of, map_tensors
from hatrack.support.interface import Interface
from hatrack.units import Path, Rule, Trace, UnitGraph, follow, path_of, resolve
from hatrack.units.decisions import Way
from hatrack.units.paths import features_and_path
from hatrack.units.signatures import CallKey, Signature, key_of

if TYPE_CHECKING:
    from hatrack.models.unit_masking import UnitMasking

__all__ = ["UnitCalls"]


class _Evaluate:
    """Function that computes the features of a batch in evaluation mode, and notes the paths by the batches' identity.

    Args:
        interface: how the backbone is called, and what of its result are its features.
    """

    def __init__(self, interface: Interface) -> None:
        self._interface = interface
        self.paths: dict[int, Path] = {}

    def __call__(self, backbone: nn.Module, x: Inputs) -> Tensor:
        features, self.paths[id(x)] = features_and_path(backbone, x, training=False, interface=self._interface)
        return features


class _PathsOfCalls:
    """Paths of the calls that are compared with each other, each of which is taken once.

    Args:
        take: runs a batch with a signature on a way, and returns the path.
    """

    def __init__(self, take: Callable[[Inputs, Signature, Way], Path]) -> None:
        self._take = take
        self._taken: dict[tuple[int, Signature, Way], tuple[Inputs, Path]] = {}  # a batch that is kept keeps its id

    def note(self, x: Inputs, signature: Signature, path: Path) -> None:
        """Note a path that a call took by itself."""
        self._taken[id(x), signature, path.way] = (x, path)

    def are_same(self, x: Inputs, signature: Signature, other: Inputs, known: Signature, ways: Iterable[Way]) -> bool:
        """Return whether two calls take the same paths, on all ways that their values may decide for."""
        return all(self._path(x, signature, way).is_same(self._path(other, known, way)) for way in ways)

    def _path(self, x: Inputs, signature: Signature, way: Way) -> Path:
        key = (id(x), signature, way)
        if key not in self._taken:
            self._taken[key] = (x, self._take(x, signature, way))
        return self._taken[key][1]


class UnitCalls:
    """Record of the known kinds of calls of a backbone, and of the units that labelled runs have found.

    Args:
        backbone: the backbone.
        rules: how modules treat units that hatrack does not understand by itself.
        gate_inputs: whether input features are units.
        interface: how the backbone is called, and what of its result are its features.
        example: record of the example input.
        untrained: names of the backbone's untrained parameters, whose units no task gates.

    Attributes:
        rules: as above.
        trace: result of all labelled runs so far.
        taught: signatures that have shown more than the example, to be replayed from files.
        moving: names of buffers and attributes that runs change.
        followed: signatures whose effect on units is known from labelled runs.
    """

    def __init__(
        self,
        backbone: nn.Module,
        rules: Mapping[Any, Rule] | None,
        gate_inputs: bool,
        interface: Interface,
        example: Example,
        untrained: Sequence[str] = (),
    ) -> None:
        self._untrained = untrained
        self._backbone, self.rules, self._gate_inputs = backbone, rules, gate_inputs
        self._interface, self._example = interface, example
        self.trace = Trace()
        self.taught: list[Signature] = []
        self.followed: dict[Signature, None] = {}
        self._unexplained_training: set[Signature] = set()  # in training, which old answers do not depend on
        self._admitted: set[CallKey] = set()  # of calls that may be answered
        self._copies: dict[bool, tuple[nn.Module, Inputs]] = {}
        self._random: RandomRuns | None = None
        self.moving: Sequence[str] = ()

    def forget(self) -> None:
        """Follow all kinds of calls anew when they come again; what labelled runs have shown stays."""
        self.followed.clear()
        self._unexplained_training.clear()
        self._admitted.clear()

    def resolved(self, trace: Trace) -> UnitGraph:
        """Return the units that labelled runs have shown."""
        return resolve(trace, self._backbone, "backbone.", self._untrained)

    # ------------------------------------------------------------------------------------------------------------- runs

    def example_of(self, signature: Signature, device: torch.device) -> Inputs:
        """Return a batch of a signature: zeros, and the example's integers among several inputs."""
        return self._example.batch(signature.size, device, signature.inputs)

    def follow(
        self,
        found: Trace,
        x: Inputs,
        signature: Signature,
        scratch: nn.Module | None = None,
        paths: dict[Way, Path] | None = None,
    ) -> Trace:
        """Return a trace extended by a labelled run of a copy of the backbone without gates.

        Args:
            found: trace of the runs so far.
            x: a batch.
            signature: its signature.
            scratch: the copy; None for a new one.
            paths: table that the path on every way is added to.
        """
        scratch = scratch_without_gates(self._backbone) if scratch is None else scratch
        names = [name for name, _ in scratch.named_buffers() if name in self.moving]
        with without_trace(), signature.precision(device_of(x)):
            settings = {"training": signature.training, "grad": signature.grad, "gate_inputs": self._gate_inputs}
            return follow(
                found,
                scratch,
                detached(x, signature.inputs),
                rules=self.rules,
                moving=names,
                interface=self._interface,
                untrained=self._untrained,
                paths=paths,
                **settings,
            )

    def _path(self, x: Inputs, signature: Signature, scratch: nn.Module | None = None, way: Way = ()) -> Path:
        """Return the path that a call takes, on a copy of the backbone without gates, or on one that is given.

        Args:
            x: the batch.
            signature: its signature.
            scratch: the copy.
            way: outcomes of the first truth values of tensors that are read.
        """
        scratch = scratch_without_gates(self._backbone) if scratch is None else scratch
        with (
            without_trace(),
            torch.inference_mode(signature.inference),
            torch.set_grad_enabled(signature.grad),
            signature.precision(device_of(x)),
        ):
            asked = partial(path_of, scratch, detached(x, signature.inputs), signature.training, self._interface, way)
            if not signature.grad:
                return asked()
            present = StateOf(scratch)
            with without_saved_tensors() as is_missed:
                try:
                    return asked()
                except Exception:
                    if not is_missed():
                        raise
            present.put_back()  # it computes gradients of its own
            return asked()

    def _signature(self, x: Inputs, training: bool, grad: bool | None = None) -> Signature:
        return Signature.of(x, training, grad, self._interface)

    def follow_example(self, example: Inputs, tries_random: bool = True) -> Trace:
        """Analyse the example as it is, for one sample and for several, in the modes that are usual for them.

        The path of each kind of call is compared with that of the example, which costs a forward pass of its samples.
        Several samples are trained on and evaluated, one is evaluated with and without gradients: every mode and every
        number of samples comes up. Other combinations, such as a single sample in training, are followed at their first
        call.

        Args:
            example: the example.
            tries_random: evaluate random samples, which other tests need, too, and several of the example only where
                these take another path.

        Returns:
            The trace of all these runs; :attr:`trace` is not changed.

        Raises:
            UnsupportedError: no rule explains what the backbone does.
        """
        usual = self._signature(example, training=False, grad=False)
        paths: dict[Way, Path] = {}
        scratch = scratch_without_gates(self._backbone)
        found = self.follow(Trace(), example, usual, scratch, paths)
        followed = {usual: None}
        self._copies, self._random = {}, None
        several, one = self._interface.several(example), self._interface.take(example, slice(1))
        if usual.inference or any(found.ways):  # the copy was run in another mode, or perhaps on several ways
            paths = self._paths(example, usual, found.ways)
        elif tries_random and self._try_random(scratch, example, several, paths[()]):
            followed[self._signature(several, training=False, grad=False)] = None
        kinds = ((several, False, False), (several, True, True), (one, False, False), (one, False, True))
        for x, training, grad in kinds:
            signature = self._signature(x, training, grad)
            if signature in followed:
                continue
            try:
                its = self._paths(x, signature, paths)
            except DOES_NOT_RUN:
                continue  # such as a batch norm that would see a single sample
            is_usual = all(its[way].is_same(path) for way, path in paths.items())
            try:
                found = found if is_usual else self.follow(found, x, signature)
            except UnsupportedError:
                if not training:
                    raise
                self._unexplained_training.add(signature)
            else:
                followed[signature] = None
        self.followed |= followed
        return found

    def _try_random(self, scratch: nn.Module, example: Inputs, several: Inputs, path: Path) -> bool:
        """Evaluate random samples, and return whether several samples take the path of the example.

        Args:
            scratch: a copy of the backbone that was run on the example.
            example: the example.
            several: several samples of it.
            path: its path.
        """
        evaluate = _Evaluate(self._interface)
        runs = ScratchRuns(self._backbone, self._interface, begun=(scratch, example), ask=evaluate)
        random = RandomRuns(example, several, runs, self._interface)
        if several is not example:
            drawn = random.batches[0]
            alike = kind_of(drawn, self._interface.batch_axis) == kind_of(several, self._interface.batch_axis)
            taken = evaluate.paths.get(id(drawn))
            if not alike or taken is None or not taken.is_same(path):
                return False
        self._random = random
        return True

    def _paths(self, x: Inputs, signature: Signature, ways: Iterable[Way]) -> dict[Way, Path]:
        """Return the paths of a call on several ways; the copy of the backbone may be taken by :meth:`take_runs`."""
        scratch, paths, ways = scratch_without_gates(self._backbone), dict[Way, Path](), list(ways)
        present = StateOf(scratch) if len(ways) > 1 else None
        for way in ways:
            if present is not None:
                present.put_back()
            paths[way] = self._path(x, signature, scratch, way)
        if len(paths) == 1 and not signature.single:  # it was run once, on the way that values decide for
            self._copies[signature.training] = (scratch, x)
        return paths

    def take_runs(self) -> EarlierRuns:
        """Hand over the runs of copies of the backbone that :meth:`follow_example` has made."""
        earlier = EarlierRuns(self._copies, self._random)
        self._copies, self._random = {}, None
        return earlier

    def follow_again(self, example: Inputs) -> Trace:
        """Return what labelled runs show of the backbone as it is now, for the example and for all that was taught."""
        found = self.follow_example(example, tries_random=False)
        self._copies = {}
        for signature in self.taught:
            found = self.follow(found, self.example_of(signature, device_of(example)), signature)
        return found

    # -------------------------------------------------------------------------------------------------------- new calls

    def admit(self, x: Inputs, training: bool, masking: UnitMasking, change: Change) -> None:
        """Analyse a call with a new signature, or with a new number of samples.

        Args:
            x: the batch.
            training: whether the network is in training mode.
            masking: the masking that uses the units which are found.
            change: applies changes to it.

        Raises:
            UnsupportedError: the guarantee would not hold for such calls.
        """
        key = key_of(x, training, self._interface)
        if key not in self._admitted and self.examine(x, self._signature(x, training), masking, change):
            self._admitted.add(key)

    @leaves_modes
    def examine(self, x: Inputs, signature: Signature, masking: UnitMasking, change: Change) -> bool:
        """Analyse the effect of a call on units.

        Args:
            x: the batch.
            signature: its signature.
            masking: the masking that uses the units which are found.
            change: applies changes to it.

        Returns:
            Whether the backbone runs on the batch.

        Raises:
            UnsupportedError: the guarantee would not hold for such calls.
        """
        scratch, outside = scratch_without_gates(self._backbone), replace(signature, inference=False)
        paths = _PathsOfCalls(lambda x, signature, way: self._path(x, signature, way=way))
        try:
            many = self._path(x, signature, scratch)
            paths.note(x, signature, many)
            ways = dict.fromkeys((many.way, *self.trace.ways))
            same = not signature.inference or paths.are_same(x, signature, x, outside, ways)
        except DOES_NOT_RUN:
            self._follow_call(x, outside, outside, masking, change)  # which tells whether it runs at all
            return False
        if not same:
            raise UnsupportedError(
                f"{signature} cannot be used: the backbone does something else in inference mode, which cannot be "
                "followed there; ask under torch.no_grad()"
            )
        signature = outside
        masking.note_movement(x, signature.training, scratch, change)
        samples, two = self._interface.samples(x), self._interface.take(x, slice(2))
        try:
            alike = samples <= 2 or paths.are_same(two, signature, x, signature, ways)
            runs = True
        except DOES_NOT_RUN:  # such as a network that takes whole groups of samples
            alike = runs = False
        if runs and signature not in self.followed and signature not in self._unexplained_training:
            if self._takes_known_path(two, signature, ways, paths):
                self.followed[signature] = None
            else:
                self._follow_call(two, signature, signature, masking, change)
        if not alike:
            self._follow_call(x, replace(signature, samples=samples), signature, masking, change)
        return True

    def _takes_known_path(self, x: Inputs, signature: Signature, ways: Iterable[Way], paths: _PathsOfCalls) -> bool:
        """Return whether calls take the path of a signature that was followed already.

        Args:
            x: two samples, or the only one.
            signature: that of the calls.
            ways: the ways that the values of samples may decide for.
            paths: paths that were taken already.
        """
        for known in self.followed:
            alike = known.autocast == signature.autocast and are_alike(known.inputs, signature.inputs)
            if alike and is_usual(known.inputs):
                others = self._interface.take(self._interface.repeated(x, 2), slice(1 if known.single else 2))
                others = map_tensors(Tensor.contiguous, others)
                try:
                    if paths.are_same(x, signature, others, known, ways):
                        return True
                except DOES_NOT_RUN:
                    continue
        return False

    def replay(self, signature: Signature, device: torch.device, masking: UnitMasking, change: Change) -> None:
        """Follow a call of a signature that a file says was taught.

        Args:
            signature: the signature.
            device: device of the backbone.
            masking: the masking that uses the units which are found.
            change: applies changes to it.
        """
        self._follow_call(self.example_of(signature, device), signature, replace(signature, samples=2), masking, change)

    def _follow_call(
        self, x: Inputs, signature: Signature, known: Signature, masking: UnitMasking, change: Change
    ) -> None:
        """Find the units of a call by a labelled run.

        Args:
            x: the batch.
            signature: its signature.
            known: the signature that needs no further look afterwards.
            masking: the masking that uses the units which are found.
            change: applies changes to it.

        Raises:
            UnsupportedError: no rule explains what the backbone does, or it contradicts existing tasks.
        """
        device = next((p.device for p in self._backbone.parameters()), device_of(x))
        sample = map_tensors(lambda tensor: tensor.detach().to(device), x)
        try:
            found = self.follow(self.trace, sample, signature)
        except InputError:
            return  # the call itself says what is wrong
        except UnsupportedError as error:
            if signature.training:  # what old tasks answer, in evaluation mode, does not depend on it
                self._unexplained_training.add(known)
                return
            raise UnsupportedError(f"{signature} cannot be used: {error}") from error
        masking.learn(signature, sample, found, change)
        self.followed[known] = None

    def is_of_known_shape(self, signature: Signature) -> bool:
        """Return whether calls of this shape, type and number of samples were followed before."""
        return signature.samples <= 2 and any(
            known.single == signature.single and are_alike(known.inputs, signature.inputs) for known in self.followed
        )
