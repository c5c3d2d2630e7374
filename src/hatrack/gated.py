"""Gates on a backbone, which may be widened under them."""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.attachment import Attachment, strip_gates
from hatrack.compilers import keep_compilers_out
from hatrack.errors import InputError, UnsupportedError
from hatrack.growing import GrowingNetwork
from hatrack.growth import Growth, Origin, free_units, widen_optimizer, widen_tasks
from hatrack.layers import Ledger
from hatrack.movement import scratch_of
from hatrack.poison import find_leak
from hatrack.signatures import Signature
from hatrack.tasks import UnitTask
from hatrack.undo import all_or_nothing
from hatrack.units import Path, Rule, Trace, UnitGraph, follow, path_of, resolve, why_not_extended
from hatrack.widening import widen

__all__ = ["GatedNetwork"]

_NO_RUN = (RuntimeError, ValueError, IndexError, TypeError)
"""Exceptions of networks that do not run on an input."""


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
        keep_compilers_out(GatedNetwork._admit)
        self.gate_inputs, self._rules = gate_inputs, rules
        device = next((p.device for p in backbone.parameters()), example_input.device)
        self._taught: list[Signature] = []  # signatures that have led to more than the example shows
        self._known: set[Signature] = set()
        self._numbers: set[tuple[Signature, int]] = set()  # of samples that take the path of two, or were followed
        self._trace = self._see_example(example_input.to(device))
        self._graph = resolve(self._trace, backbone, "backbone.")
        self._origin = Origin.of(self._graph, backbone)
        self._attachment = Attachment(self._graph, backbone, self)

    # ------------------------------------------------------------------------------------------- call signatures

    def _see(self, found: Trace, x: Tensor, training: bool, grad: bool) -> Trace:
        """Add what a run shows of units, on a copy of the backbone without gates."""
        scratch = scratch_of(self.backbone)
        strip_gates(scratch)
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            return follow(
                found, scratch, x, training=training, grad=grad, gate_inputs=self.gate_inputs, rules=self._rules
            )

    def _see_example(self, example: Tensor) -> Trace:
        """Look at the example in both modes, with gradients and without, as it is, for one sample and for several."""
        several = torch.cat([example, example]) if len(example) == 1 else example
        found = self._see(Trace(), example, training=False, grad=False)
        seen = {_signature(example, training=False, grad=False)}
        usual = self._path(example, training=False, grad=False)
        for x in (several, example[:1]):
            for training, grad in ((False, False), (False, True), (True, True), (True, False)):
                signature = _signature(x, training, grad)
                if signature in seen:
                    continue
                try:
                    if not self._path(x, training, grad).is_same(usual):
                        found = self._see(found, x, training, grad)
                except (InputError, *_NO_RUN):
                    continue  # such as a batch norm that would see a single sample
                except UnsupportedError:
                    if not training:
                        raise
                seen.add(signature)
        self._known |= seen
        return found

    def _analyze_again(self) -> UnitGraph:
        found = self._see_example(self._example())
        device = self._none().device
        for signature in self._taught:
            found = self._see(found, signature.example(device), signature.training, signature.grad)
        self._trace = found
        return resolve(found, self.backbone, "backbone.")

    def analyze(self, example_input: Tensor) -> None:
        """Show the network an input of another shape or type before its first task, so that its units fit both.

        Every call does so by itself; where tasks exist already, what would change their units is refused.

        Args:
            example_input: a batch of the other shape, or of so many samples that another path is taken.

        Raises:
            UnsupportedError: no rule explains what the backbone does with it, or it contradicts the tasks there are.
        """
        self._require_attached()
        several = torch.cat([example_input] * 2) if len(example_input) == 1 else example_input
        for x in (several, example_input[:1]):
            for training, grad in ((False, False), (True, True)):
                self._admit_as(_signature(x, training, grad), x)
                if len(x) > 2:
                    self._admit_number(_signature(x, training, grad), x)

    def _admit(self, x: Tensor) -> None:
        """Look at a call of a new signature, or with a new number of samples, before it is answered."""
        if not isinstance(x, Tensor) or not x.dim():
            return  # the call itself says what is wrong
        signature = Signature.of(x, self.training)
        if signature not in self._known and len(x):
            self._admit_as(signature, x)
        if len(x) > 2 and (signature, len(x)) not in self._numbers:
            self._admit_number(signature, x)

    def _admit_number(self, signature: Signature, x: Tensor) -> None:
        """Look whether so many samples take the path of two, and follow that which they take where it is another."""
        try:
            few, many = (self._path(part, signature.training, signature.grad) for part in (x[:2], x))
        except _NO_RUN:
            return  # the call itself says what is wrong
        if not few.is_same(many):
            self._admit_as(signature, x, whole=True)
        self._numbers.add((signature, len(x)))

    def _path(self, x: Tensor, training: bool, grad: bool) -> Path:
        scratch = scratch_of(self.backbone)
        strip_gates(scratch)
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]), torch.set_grad_enabled(grad):
            return path_of(scratch, x.detach(), training)

    @all_or_nothing()
    def _admit_as(self, signature: Signature, x: Tensor, whole: bool = False) -> None:
        sample = (x if whole else x[:2]).detach().to(self._none().device)
        kind, signature = signature, replace(signature, samples=len(x)) if whole else signature
        if not whole and self._goes_a_known_way(signature, sample):
            self._known.add(kind)
            return
        try:
            found = self._see(self._trace, sample, signature.training, signature.grad)
        except InputError:
            return  # the call itself says what is wrong
        except UnsupportedError as error:
            if signature.training:  # what old tasks answer, in evaluation mode, does not depend on it
                self._known.add(kind)
                return
            raise UnsupportedError(f"{signature} cannot be used: {error}") from error
        graph = resolve(found, self.backbone, "backbone.")
        if not _is_same(graph, self._graph):
            self._extend(signature, found, graph)
        shapes = {(known.shape, known.dtype, known.one) for known in self._known}
        if whole or (signature.shape, signature.dtype, signature.one) not in shapes:
            self._require_no_leak(signature, sample)
        self._known.add(kind)

    def _goes_a_known_way(self, signature: Signature, sample: Tensor) -> bool:
        """Return whether a call in another mode, or of one sample, takes the path of a known one of the same shape."""
        for known in self._known:
            if (known.shape, known.dtype, known.autocast) == (signature.shape, signature.dtype, signature.autocast):
                others = sample[:1] if known.one else torch.cat([sample, sample])[:2]
                try:
                    path = self._path(sample, signature.training, signature.grad)
                    return path.is_same(self._path(others, known.training, known.grad))
                except _NO_RUN:
                    return False
        return False

    def _extend(self, signature: Signature, found: Trace, graph: UnitGraph) -> None:
        """Go by what a further signature shows, if masks of tasks there are still fit."""
        reason = why_not_extended(self._graph, graph) if len(self.tasks) else None
        if reason is not None:
            raise UnsupportedError(
                f"{signature} cannot be used any more: {reason}, while tasks go by those of the inputs so far; build "
                "the network with an example of this kind, or show it one before its first task: net.analyze(example)"
            )
        self.check()
        before = self._answers()
        with torch.inference_mode(False), torch.no_grad():
            self._trace = found
            self._taught = [*self._taught, signature]
            self._fit(graph)
            if not len(self.tasks):
                self._origin = Origin.of(graph, self.backbone)
            self._digests = self._take_digests()
            now = self._answers()
        changed = [name for name, answer in before.items() if not torch.equal(answer, now[name])]
        if changed:
            raise UnsupportedError(f"{signature} cannot be used: it would change the outputs of {', '.join(changed)}")

    def _require_no_leak(self, signature: Signature, sample: Tensor) -> None:
        backbone, attachment = copy.deepcopy((self.backbone, self._attachment))
        with torch.inference_mode(False):
            leak = find_leak(attachment, self._graph, backbone, sample, pairs=1)
        if leak is not None:
            raise UnsupportedError(
                f"{signature} cannot be used: free entries of {leak} change the outputs of a task that does not use "
                "them; a rule for one of its operations must be wrong"
            )

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
            "signatures": [signature.to_json() for signature in self._taught],
            "widths": {group.name: group.size for group in self._graph.groups},
        }


def _signature(x: Tensor, training: bool, grad: bool) -> Signature:
    return Signature(tuple(x.shape[1:]), str(x.dtype).partition(".")[2], len(x) == 1, training, grad)


def _is_same(one: UnitGraph, other: UnitGraph) -> bool:
    """Return whether two graphs are about the same units, read in the same places, with the same uses of parameters."""
    if one.groups != other.groups or one.roles != other.roles or len(one.readers) != len(other.readers):
        return False
    for reader, its in zip(one.readers, other.readers, strict=True):
        if (reader.module, reader.argument, reader.axis) != (its.module, its.argument, its.axis):
            return False
        if not torch.equal(reader.units, its.units):
            return False
    return all(
        len(uses) == len(other.uses[name])
        and all(
            len(a.sides) == len(b.sides) and all(map(torch.equal, a.sides, b.sides))
            for a, b in zip(uses, other.uses[name], strict=True)
        )
        for name, uses in one.uses.items()
    )
