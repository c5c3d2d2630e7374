"""Widening of a network of masks in place, between tasks."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hatrack.errors import GuaranteeError, InputError
from hatrack.forgettable import ForgettableNetwork
from hatrack.growth import Growth, changed_answers, plan_growth, require_growable
from hatrack.layers import UndoLog
from hatrack.multitask import StateT
from hatrack.undo import all_or_nothing
from hatrack.units import UnitGraph

__all__ = ["GrowingNetwork"]


class GrowingNetwork(ForgettableNetwork[StateT]):
    """A network of masks that gets more units when it is full, whatever its masks are about.

    Args:
        backbone: maps a batch to features ``(N, F)``.
        example_input: a batch of the shape that the backbone expects, on any device.
        growth: when the backbone is widened by itself; None for never.

    Attributes:
        growth: when the backbone is widened by itself.
    """

    def __init__(self, backbone: nn.Module, example_input: Tensor, growth: Growth | None) -> None:
        super().__init__(backbone, example_input)
        self.growth = growth

    @abc.abstractmethod
    def _units_now(self) -> UnitGraph:
        """The units of the backbone, as it is.

        Raises:
            UnsupportedError: it does something that no rule explains.
        """

    @abc.abstractmethod
    def _room(self, graph: UnitGraph) -> tuple[Mapping[str, float], Mapping[str, int]]:
        """Return the free units of every group, which need not be a whole number, and how many there were at first.

        Groups whose room nobody knows are left out.
        """

    @abc.abstractmethod
    def _widen(
        self, graph: UnitGraph, groups: Mapping[str, int], generator: torch.Generator | None, ledger: UndoLog
    ) -> None:
        """Widen the backbone and all that follows, every change on record; the guarantee is the new one's then."""

    @abc.abstractmethod
    def _fit(self, graph: UnitGraph) -> None:
        """Go by the units that the backbone has again after changes were taken back."""

    @abc.abstractmethod
    def _find_leak(self) -> str | None:
        """Try random masks out; names what was not cleared by them, None when all is well."""

    @all_or_nothing()
    def add_task(self, name: str, num_classes: int, *, generator: torch.Generator | None = None) -> None:
        """Open a task; if the network has a ``growth``, what is nearly full is widened first, see :meth:`grow`.

        Args:
            name: a name that no task has yet.
            num_classes: number of classes, at least 1.
            generator: source of randomness on the CPU; torch's global one if left out.

        Raises:
            InputError: the name is taken or empty, the number of classes is below 1, or another task is not
                consolidated yet.
        """
        num_classes = self._require_addable(name, num_classes)
        self._grow_if_full(generator)
        self._open_task(name, num_classes, generator)

    @all_or_nothing(lambda net: [*net.backbone.parameters(), *net.backbone.buffers()])
    def grow(self, groups: Mapping[str, int], *, generator: torch.Generator | None = None) -> None:
        """Widen the backbone in place: more units for later tasks, which no task so far uses.

        The parameters stay the same objects, and optimizers that :meth:`protect` knows keep what they remember (others
        have to be made anew). Outputs of consolidated tasks agree with those before up to rounding, since kernels sum
        in another order for another shape (about 1e-6 of their scale in float32); between widenings they stay
        bit-identical as ever. New entries are uniform, as widely spread as the layer's were at first.

        Gradients that were not used yet are dropped. Code from ``torch.compile`` is compiled again. With several
        processes grow on all of them before the next task's wrapper is made, which shares the new weights.

        Args:
            groups: how many units to add to each group, at least 1; the groups of ``net.units``, or of
                :func:`hatrack.units.analyze` where masks are about weights.
            generator: source of randomness on the CPU; torch's global one if left out.

        Raises:
            InputError: there is no such group, or it cannot be widened (the message says why); or a task is in
                training.
            GuaranteeError: protected entries had moved before, or outputs would change. Nothing is changed then.
        """
        self._require_attached()
        graph = self._units_now()
        require_growable(groups, graph)
        if self.task_in_training is not None:
            raise InputError(f"the network grows between tasks: consolidate {self.task_in_training!r} first")
        self._put_back()
        self.check()
        ledger, before = UndoLog(), self._answers()
        with torch.inference_mode(False), torch.no_grad():
            self._widen(graph, groups, generator, ledger)
            differing, leak = changed_answers(before, self._answers()), self._find_leak()
            if differing or leak is not None:
                what = f"the outputs of {', '.join(differing)}" if differing else f"what holds {leak}"
                raise GuaranteeError(f"widening {', '.join(groups)} would change {what}; nothing was changed")
            self._digests = self._take_digests()

    def _grow_if_full(self, generator: torch.Generator | None) -> None:
        """Widen the groups of which too little is free, as far as they can be."""
        if self.growth is None or self._detached:
            return
        wanted = plan_growth(self.growth, *self._room(self._units_now()))
        refusals = {name: self._why_not_grow({name: count}) for name, count in wanted.items()}
        possible = {name: count for name, count in wanted.items() if refusals[name] is None}
        if possible:
            self.grow(possible, generator=generator)
        elif wanted:
            warnings.warn(f"no full group can grow: {next(iter(refusals.values()))}", stacklevel=4)

    def _why_not_grow(self, groups: Mapping[str, int]) -> str | None:
        """Try to widen, and take it back; None if that went well."""
        ledger, graph, refusal = UndoLog(), self._units_now(), None
        with torch.inference_mode(False), torch.no_grad():
            try:
                self._widen(graph, groups, torch.Generator(), ledger)
            except InputError as error:  # after any other error the whole of add_task is taken back
                refusal = str(error)
            ledger.undo()
            self._fit(graph)
        return refusal

    def _answers(self) -> dict[str, Tensor]:
        shape = (16, *self.example_shape[1:])
        return {state.name: self._answer(state, shape) for state in self._consolidated_states()}
