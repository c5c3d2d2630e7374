"""Gates on a backbone, which may be widened under them."""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.attachment import Attachment, scratch_without_gates
from hatrack.compilers import keep_compilers_out
from hatrack.errors import DOES_NOT_RUN, InputError, UnsupportedError
from hatrack.growing import GrowingNetwork
from hatrack.growth import Growth, Origin, free_units, widen_optimizer, widen_tasks
from hatrack.layers import UndoLog
from hatrack.modes import evaluation_mode
from hatrack.movement import StateOf, aside
from hatrack.poison import find_leak
from hatrack.signatures import CallKey, Signature, key_of
from hatrack.tasks import UnitTask
from hatrack.tryouts import random_like
from hatrack.undo import all_or_nothing, leaves_modes
from hatrack.units import Path, Rule, Trace, UnitGraph, are_same, follow, path_of, resolve, why_not_extended
from hatrack.watch import Controls
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
        keep_compilers_out(GatedNetwork._admit)
        self.gate_inputs, self._rules = gate_inputs, rules
        device = next((p.device for p in backbone.parameters()), example_input.device)
        self._taught: list[Signature] = []  # that have led to more than the example shows, to be replayed from files
        self._followed: dict[Signature, None] = {}  # of which labelled runs say what is done to units
        self._let_pass: set[Signature] = set()  # in training, which old answers do not depend on
        self._looked_at: set[CallKey] = set()  # of calls that may be answered
        self._trace = self._follow_example(example_input.to(device))
        self._graph = resolve(self._trace, backbone, "backbone.")
        self._origin = Origin.of(self._graph, backbone)
        self._attachment = Attachment(self._graph, backbone, self)
        self._controls = Controls(backbone)

    # ------------------------------------------------------------------------------------------- call signatures

    def _follow_copy(self, found: Trace, x: Tensor, signature: Signature) -> Trace:
        """Add what a run shows of units, on a copy of the backbone without gates."""
        scratch = scratch_without_gates(self.backbone)
        with aside(), signature.precision(x.device):
            x = x.detach().requires_grad_(signature.differentiable)
            settings = {"training": signature.training, "grad": signature.grad, "gate_inputs": self.gate_inputs}
            return follow(found, scratch, x, rules=self._rules, moving=self._moving_buffers(scratch), **settings)

    def _moving_buffers(self, backbone: nn.Module) -> list[str]:
        movement = (*self._movement.buffers, *self._movement.attributes)
        return [name for name, _ in backbone.named_buffers() if name in movement]

    def _look_for_movement(self, example: Tensor) -> None:
        super()._look_for_movement(example)
        moving = self._moving_buffers(self.backbone)
        if not moving:
            return
        x = self._several(example)
        found = self._follow_copy(self._trace, x, Signature.of(x, training=False, grad=False))
        if not are_same(resolve(found, self.backbone, "backbone."), self._graph):
            raise UnsupportedError(f"which units are used depends on values of {', '.join(moving)}, which runs change")

    def _path(self, x: Tensor, signature: Signature, scratch: nn.Module | None = None) -> Path:
        """The path that a call takes, on a copy of the backbone without gates, or on one that is given."""
        scratch = scratch_without_gates(self.backbone) if scratch is None else scratch
        with (
            aside(),
            torch.inference_mode(signature.inference),
            torch.set_grad_enabled(signature.grad),
            signature.precision(x.device),
        ):
            return path_of(scratch, x.detach().requires_grad_(signature.differentiable), signature.training)

    def _follow_example(self, example: Tensor) -> Trace:
        """Look at the example in both modes, with gradients and without, as it is, for one sample and for several."""
        several = torch.cat([example, example]) if len(example) == 1 else example
        usual = Signature.of(example, training=False, grad=False)
        found = self._follow_copy(Trace(), example, usual)
        followed = {usual: None}
        scratch = scratch_without_gates(self.backbone)
        present = StateOf(scratch)
        path = self._path(example, usual, scratch)
        for x in (several, example[:1]):
            for training, grad in ((False, False), (False, True), (True, True), (True, False)):
                signature = Signature.of(x, training, grad)
                if signature in followed:
                    continue
                present.put_back()
                try:
                    is_usual = self._path(x, signature, scratch).is_same(path)
                except DOES_NOT_RUN:
                    continue  # such as a batch norm that would see a single sample
                try:
                    found = found if is_usual else self._follow_copy(found, x, signature)
                except UnsupportedError:
                    if not training:
                        raise
                    self._let_pass.add(signature)
                else:
                    followed[signature] = None
        self._followed |= followed
        return found

    def _analyze_again(self) -> UnitGraph:
        found = self._follow_example(self._example())
        device = self._none().device
        for signature in self._taught:
            found = self._follow_copy(found, signature.example(device), signature)
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
                self._look_before_answering(x, Signature.of(x, training, grad))

    def _admit(self, x: Tensor) -> None:
        """Look at a call of a new signature, or with a new number of samples, before it is answered."""
        if self._controls.are_altered():  # settings or hooks, after which any call may do something else
            self._followed.clear()
            self._let_pass.clear()
            self._looked_at.clear()
            self._controls = Controls(self.backbone, self._movement.attributes)
        key = key_of(x, self.training)
        if key not in self._looked_at and self._look_before_answering(x, Signature.of(x, self.training)):
            self._looked_at.add(key)

    @leaves_modes
    def _look_before_answering(self, x: Tensor, signature: Signature) -> bool:
        """Have it found out what a call does to units; returns whether it runs."""
        scratch, outside = scratch_without_gates(self.backbone), replace(signature, inference=False)
        try:
            many = self._path(x, signature, scratch)
            same = not signature.inference or many.is_same(self._path(x, outside))
        except DOES_NOT_RUN:
            self._follow(outside, x, known=outside)  # which tells whether it runs where nobody looks on
            return False
        if not same:
            raise UnsupportedError(
                f"{signature} cannot be used: the backbone does something else in inference mode, which cannot be "
                "followed there; ask under torch.no_grad()"
            )
        signature = outside
        self._require_still(x, signature.training, scratch)
        few: Path | None = many
        if len(x) > 2:
            try:
                few = self._path(x[:2], signature)
            except DOES_NOT_RUN:  # such as a network that takes whole groups of samples
                few = None
        if few is not None and signature not in self._followed and signature not in self._let_pass:
            self._require_followed(signature, x[:2], few)
        if few is None or not few.is_same(many):
            self._follow(replace(signature, samples=len(x)), x, known=signature)
        return True

    def _require_followed(self, signature: Signature, x: Tensor, path: Path) -> None:
        """Have it found out what calls of a signature do to units, unless they go the way of one that is known.

        Args:
            signature: that of the calls.
            x: two samples, or the only one.
            path: the path that these take.
        """
        for known in self._followed:
            alike = (known.shape, known.dtype, known.autocast) == (signature.shape, signature.dtype, signature.autocast)
            if alike and known.contiguous:
                others = (x[:1] if known.single else torch.cat([x, x])[:2]).contiguous()
                try:
                    if path.is_same(self._path(others, known)):
                        self._followed[signature] = None
                        return
                except DOES_NOT_RUN:
                    continue
        self._follow(signature, x, known=signature)

    def _follow(self, signature: Signature, x: Tensor, known: Signature) -> None:
        """Find the units of a call by a labelled run, and go by them if masks of the tasks there are still fit.

        Args:
            signature: that of the batch.
            x: the batch.
            known: the signature that needs no further look afterwards.

        Raises:
            UnsupportedError: no rule explains what the backbone does, or it contradicts the tasks there are.
        """
        sample = x.detach().to(self._none().device)
        try:
            found = self._follow_copy(self._trace, sample, signature)
        except InputError:
            return  # the call itself says what is wrong
        except UnsupportedError as error:
            if signature.training:  # what old tasks answer, in evaluation mode, does not depend on it
                self._let_pass.add(known)
                return
            raise UnsupportedError(f"{signature} cannot be used: {error}") from error
        graph = resolve(found, self.backbone, "backbone.")
        if not are_same(graph, self._graph):
            self._extend(signature, found, graph)
        shapes = {(its.shape, its.dtype, its.single) for its in self._followed}
        if signature.samples > 2 or (signature.shape, signature.dtype, signature.single) not in shapes:
            self._require_no_leak(signature, sample)
        self._followed[known] = None

    @all_or_nothing()
    def _extend(self, signature: Signature, found: Trace, graph: UnitGraph) -> None:
        """Go by what a further signature shows, if masks of tasks there are still fit."""
        reason = why_not_extended(self._graph, graph) if len(self.tasks) else None
        if reason is not None:
            raise UnsupportedError(
                f"{signature} cannot be used any more: {reason}, while tasks go by those of the inputs so far; build "
                "the network with an example of this kind, or show it one before its first task: net.analyze(example)"
            )
        self.check()
        before = self._answers_of_all_kinds()
        with torch.inference_mode(False), torch.no_grad():
            self._trace = found
            self._taught = [*self._taught, signature]
            self._fit(graph)
            if not len(self.tasks):
                self._origin = Origin.of(graph, self.backbone)
            self._digests = self._take_digests()
        now = self._answers_of_all_kinds()
        changed = {name for (name, kind), answer in before.items() if not torch.equal(answer, now[name, kind])}
        if changed:
            raise UnsupportedError(
                f"{signature} cannot be used any more: it would change the outputs of {', '.join(sorted(changed))} for "
                "other inputs; show the network an example of this kind before its first task: net.analyze(example)"
            )

    @torch.no_grad()
    def _answers_of_all_kinds(self) -> dict[tuple[str, Signature], Tensor]:
        """Features that consolidated tasks give for random inputs of every shape and type that was seen so far."""
        kinds = {replace(kind, training=False, grad=False, inference=False): None for kind in self._followed}
        answers = {}
        with torch.inference_mode(False), evaluation_mode(self):
            for kind in kinds:
                generator = torch.Generator().manual_seed(0)
                x = random_like(
                    kind.example(self._none().device), generator, scratch_without_gates(self.backbone).eval()
                )
                for state in self._consolidated_states():
                    with kind.precision(x.device):
                        answers[state.name, kind] = self._features(x, state).nan_to_num()
        return answers

    def _require_no_leak(self, signature: Signature, sample: Tensor) -> None:
        with aside():
            backbone, attachment = copy.deepcopy((self.backbone, self._attachment))
            leak = find_leak(attachment, self._graph, backbone, sample, pairs=1)
        if leak is not None:
            raise UnsupportedError(
                f"{signature} cannot be used: free entries of {leak} change the outputs of a task that does not use "
                "them; a rule for one of its operations must be wrong, or a hook does something that no rule sees"
            )

    def _units_now(self) -> UnitGraph:
        return self._graph

    def _room(self, graph: UnitGraph) -> tuple[Mapping[str, float], Mapping[str, int]]:
        return free_units(graph, self._cumulative), self._origin.widths

    @abc.abstractmethod
    def _none(self) -> Tensor:
        """The attention of no task at all, ``(U,)``."""

    def _widen(
        self, graph: UnitGraph, groups: Mapping[str, int], generator: torch.Generator | None, ledger: UndoLog
    ) -> None:
        self._attachment.detach(self.backbone)
        spread = self._origin.initial_scales
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
        self._controls = Controls(self.backbone, self._movement.attributes)
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
