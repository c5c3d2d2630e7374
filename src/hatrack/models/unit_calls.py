"""Calls of a backbone by kind, each of which is analysed before the first one is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hatrack.errors import DOES_NOT_RUN, InputError, UnsupportedError
from hatrack.gating.attachment import scratch_without_gates
from hatrack.models.masking import Change
from hatrack.models.own_state import several
from hatrack.protection.structure import Controls
from hatrack.state.movement import StateOf, without_trace
from hatrack.state.undo import leaves_modes
from hatrack.units import Path, Rule, Trace, UnitGraph, follow, path_of, resolve
from hatrack.units.signatures import CallKey, Signature, key_of

if TYPE_CHECKING:
    from hatrack.models.unit_masking import UnitMasking

__all__ = ["UnitCalls"]


class UnitCalls:
    """Record of the known kinds of calls of a backbone, and of the units that labelled runs have found.

    Args:
        backbone: the backbone.
        rules: how modules treat units that hatrack does not understand by itself.
        gate_inputs: whether input features are units.

    Attributes:
        trace: result of all labelled runs so far.
        taught: signatures that have shown more than the example, to be replayed from files.
        followed: signatures whose effect on units is known from labelled runs.
    """

    def __init__(self, backbone: nn.Module, rules: Mapping[Any, Rule] | None, gate_inputs: bool) -> None:
        self._backbone, self._rules, self._gate_inputs = backbone, rules, gate_inputs
        self.trace = Trace()
        self.taught: list[Signature] = []
        self.followed: dict[Signature, None] = {}
        self._unexplained_training: set[Signature] = set()  # in training, which old answers do not depend on
        self._admitted: set[CallKey] = set()  # of calls that may be answered
        self._moving: Sequence[str] = ()
        self._controls = Controls(backbone)

    def note_state(self, moving: Sequence[str]) -> None:
        """Record the settings and hooks of the backbone for which the analysed calls hold.

        Args:
            moving: names of buffers and attributes that runs change.
        """
        self._moving, self._controls = moving, Controls(self._backbone, moving)

    def resolved(self, trace: Trace) -> UnitGraph:
        """Return the units that labelled runs have shown."""
        return resolve(trace, self._backbone, "backbone.")

    # ------------------------------------------------------------------------------------------------------------- runs

    def follow(self, found: Trace, x: Tensor, signature: Signature) -> Trace:
        """Return a trace extended by a labelled run of a copy of the backbone without gates.

        Args:
            found: trace of the runs so far.
            x: a batch.
            signature: its signature.
        """
        scratch = scratch_without_gates(self._backbone)
        names = [name for name, _ in scratch.named_buffers() if name in self._moving]
        with without_trace(), signature.precision(x.device):
            x = x.detach().requires_grad_(signature.differentiable)
            settings = {"training": signature.training, "grad": signature.grad, "gate_inputs": self._gate_inputs}
            return follow(found, scratch, x, rules=self._rules, moving=names, **settings)

    def _path(self, x: Tensor, signature: Signature, scratch: nn.Module | None = None) -> Path:
        """Return the path that a call takes, on a copy of the backbone without gates, or on one that is given."""
        scratch = scratch_without_gates(self._backbone) if scratch is None else scratch
        with (
            without_trace(),
            torch.inference_mode(signature.inference),
            torch.set_grad_enabled(signature.grad),
            signature.precision(x.device),
        ):
            return path_of(scratch, x.detach().requires_grad_(signature.differentiable), signature.training)

    def follow_example(self, example: Tensor) -> Trace:
        """Analyse the example in both modes, with and without gradients, as it is, for one sample and for several.

        Returns:
            The trace of all these runs; :attr:`trace` is not changed.

        Raises:
            UnsupportedError: no rule explains what the backbone does.
        """
        usual = Signature.of(example, training=False, grad=False)
        found = self.follow(Trace(), example, usual)
        followed = {usual: None}
        scratch = scratch_without_gates(self._backbone)
        present = StateOf(scratch)
        path = self._path(example, usual, scratch)
        for x in (several(example), example[:1]):
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
                    found = found if is_usual else self.follow(found, x, signature)
                except UnsupportedError:
                    if not training:
                        raise
                    self._unexplained_training.add(signature)
                else:
                    followed[signature] = None
        self.followed |= followed
        return found

    def follow_again(self, example: Tensor) -> Trace:
        """Return what labelled runs show of the backbone as it is now, for the example and for all that was taught."""
        found = self.follow_example(example)
        for signature in self.taught:
            found = self.follow(found, signature.example(example.device), signature)
        return found

    # -------------------------------------------------------------------------------------------------------- new calls

    def admit(self, x: Tensor, training: bool, masking: UnitMasking, change: Change) -> None:
        """Analyse a call with a new signature, or with a new number of samples.

        Args:
            x: the batch.
            training: whether the network is in training mode.
            masking: the masking that uses the units which are found.
            change: applies changes to it.

        Raises:
            UnsupportedError: the guarantee would not hold for such calls.
        """
        if self._controls.are_altered():  # settings or hooks, after which any call may do something else
            self.followed.clear()
            self._unexplained_training.clear()
            self._admitted.clear()
            self.note_state(self._moving)
        key = key_of(x, training)
        if key not in self._admitted and self.examine(x, Signature.of(x, training), masking, change):
            self._admitted.add(key)

    @leaves_modes
    def examine(self, x: Tensor, signature: Signature, masking: UnitMasking, change: Change) -> bool:
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
        try:
            many = self._path(x, signature, scratch)
            same = not signature.inference or many.is_same(self._path(x, outside))
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
        few: Path | None = many
        if len(x) > 2:
            try:
                few = self._path(x[:2], signature)
            except DOES_NOT_RUN:  # such as a network that takes whole groups of samples
                few = None
        if few is not None and signature not in self.followed and signature not in self._unexplained_training:
            if self._takes_known_path(x[:2], signature, few):
                self.followed[signature] = None
            else:
                self._follow_call(x[:2], signature, signature, masking, change)
        if few is None or not few.is_same(many):
            self._follow_call(x, replace(signature, samples=len(x)), signature, masking, change)
        return True

    def _takes_known_path(self, x: Tensor, signature: Signature, path: Path) -> bool:
        """Return whether calls take the path of a signature that was followed already.

        Args:
            x: two samples, or the only one.
            signature: that of the calls.
            path: the path that the samples take.
        """
        for known in self.followed:
            alike = (known.shape, known.dtype, known.autocast) == (signature.shape, signature.dtype, signature.autocast)
            if alike and known.contiguous:
                others = (x[:1] if known.single else torch.cat([x, x])[:2]).contiguous()
                try:
                    if path.is_same(self._path(others, known)):
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
        self._follow_call(signature.example(device), signature, replace(signature, samples=2), masking, change)

    def _follow_call(
        self, x: Tensor, signature: Signature, known: Signature, masking: UnitMasking, change: Change
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
        sample = x.detach().to(next((p.device for p in self._backbone.parameters()), x.device))
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
        shapes = {(known.shape, known.dtype, known.single) for known in self.followed}
        return signature.samples <= 2 and (signature.shape, signature.dtype, signature.single) in shapes
