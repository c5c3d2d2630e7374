"""Masking: the part of a network that decides which part of the backbone each task uses."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor, nn

from hatrack.errors import DOES_NOT_RUN, GuaranteeError, InputError, UnsupportedError
from hatrack.gating.norms import keep_in_evaluation
from hatrack.growth.policy import Origin
from hatrack.growth.tasks import Places
from hatrack.growth.widening import Widening
from hatrack.masks.task_list import StateT, TaskList
from hatrack.models.own_state import FirstRuns, OwnState
from hatrack.models.settings_watch import SettingsWatch, TwinChange
from hatrack.protection.capacity import Capacity
from hatrack.protection.plan import ProtectionPlan
from hatrack.protection.source import ProtectionSource
from hatrack.state.dependence import Copy
from hatrack.state.first_runs import EarlierRuns
from hatrack.state.movement import scratch_of, without_trace
from hatrack.state.twins import twin
from hatrack.state.undo import UndoLog
from hatrack.support.compilers import keep_compilers_out
from hatrack.support.example import Example
from hatrack.support.inputs import Inputs, Kind, TensorKind, has_shape, kind_of, map_tensors, tensor_of
from hatrack.support.interface import Interface
from hatrack.support.modes import evaluation_mode
from hatrack.support.untrained import untrained_norms, untrained_parameters
from hatrack.units import UnitGraph

__all__ = ["Change", "Masking"]

Change = Callable[[Callable[[], None]], None]
"""Function that applies a change to a masking and renews the network's protection; all of it happens, or nothing.

It is passed from the network down to whatever finds that a change is due. A masking does not store it: with every
scratch copy of the masking a bound method of the network would be copied, and the network with it.
"""


class Masking(nn.Module, ProtectionSource, Generic[StateT]):
    """Masks of a network's tasks, by which these compute features and rely on parts of the backbone.

    A masking has no parameters and no persistent buffers of its own; what belongs to a task is in the task's state.

    Args:
        backbone: the backbone of the network.
        tasks: the tasks of the network.
        example_input: a batch of the shape that the backbone expects.
        interface: how the backbone is called, and what of its result are its features.

    Attributes:
        backbone: the backbone; it is a part of the network, not of the masking.
        tasks: the tasks; they are a part of the network, too.
        network_class: name of the class of networks with this masking, for messages.
        cause_of_leaks: likely reasons why free entries could change outputs, for a message.
        is_attached: whether the backbone is still inside the network.
        interface: how the backbone is called, and what of its result are its features.
        example_input: record of the example input.
        own_state: buffers of the backbone that runs move, of which every task has its own.
        watch: watch on settings and hooks of the backbone and of tasks' own parts.
        origin: widths and initial scales of the backbone before it was ever widened; None until it is analysed.
        untrained: names of the backbone's parameters that had ``requires_grad=False`` when it was attached.
    """

    network_class: ClassVar[str]
    cause_of_leaks: ClassVar[str]
    backbone: nn.Module
    tasks: TaskList[StateT]

    def __init__(
        self, backbone: nn.Module, tasks: TaskList[StateT], example_input: Inputs, interface: Interface
    ) -> None:
        super().__init__()
        vars(self)["backbone"], vars(self)["tasks"] = backbone, tasks  # else they would be parts of this module, too
        self.untrained = untrained_parameters(backbone)
        self._untrained_norms = untrained_norms(backbone, self.untrained)
        keep_in_evaluation(map(backbone.get_submodule, self._untrained_norms))
        self.is_attached = True
        self.interface = interface
        self.example_input = Example.of(example_input, interface)
        self.own_state = OwnState()
        self.origin: Origin | None = None
        self.watch = SettingsWatch(backbone, tasks)

    # ---------------------------------------------------------------------------------------------------------- example

    @property
    def device(self) -> torch.device:
        """Device of the backbone."""
        return next((parameter.device for parameter in self.backbone.parameters()), torch.device("cpu"))

    def example(self, samples: int | None = None) -> Inputs:
        """Return a batch of the example input's kind: zeros, but for integers among several inputs.

        Args:
            samples: number of samples; as many as the example input had if left out.
        """
        return self.example_input.batch(samples, self.device)

    def has_example_kind(self, x: Inputs) -> bool:
        """Return whether samples of a batch have the shapes that the example input's had."""
        if isinstance(x, Tensor) and isinstance(self.example_input.kind, TensorKind):
            return TensorKind.of(x, self.interface.batch_axis).shape == self.example_input.kind.shape
        return has_shape(kind_of(x, self.interface.batch_axis)) == has_shape(self.example_input.kind)

    def has_example_axes(self, x: Inputs) -> bool:
        """Return whether a batch has as many axes as the example input; several inputs may differ."""
        kind = self.example_input.kind
        return not (isinstance(x, Tensor) and isinstance(kind, TensorKind)) or x.dim() == len(kind.shape) + 1

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a block in which backbone, tasks and masking are in evaluation mode."""
        return evaluation_mode(nn.ModuleList([self.backbone, self, self.tasks]))

    def validating(self) -> AbstractContextManager[None]:
        """Return a block in which a task in training may be evaluated in a faster way, to the same results."""
        return nullcontext()

    def require_attached(self) -> None:
        """Check that the backbone is still inside the network.

        Raises:
            InputError: it has been detached.
        """
        if not self.is_attached:
            raise InputError(
                f"this network was detached from its backbone; attach a new {self.network_class}, or load a saved one"
            )

    def scratch(self) -> Copy:
        """Return a copy of masking and backbone, to be run without a trace in them; parameters are shared."""
        copies = scratch_of(nn.ModuleList([self.backbone, self.tasks, self]))

        def ask(x: Inputs, seed: int) -> Tensor:
            copy: Masking[StateT] = copies.eval()[2]  # type: ignore[assignment]
            return copy.features_of_random_mask(x, seed)

        return Copy(copies.eval()[0], ask)

    def example_features(self) -> Tensor:
        """Return features of two samples of the example's kind under some mask, without a trace in the network."""
        return self.scratch().ask(self.example(2), 0)

    # ------------------------------------------------------------------------------------------------------------ tests

    @abc.abstractmethod
    def find_leak(self, batch: Inputs, is_drawn: bool = False) -> str | None:
        """Test with random masks whether free entries change outputs.

        Args:
            batch: a batch, for its shape and type.
            is_drawn: whether it is random, to be taken as it is.

        Returns:
            The names of the parameters whose free entries change outputs; None if there are none.
        """

    def require_no_leak(self, drawn: Inputs) -> None:
        """Check with random masks that free entries change no output.

        Args:
            drawn: a random batch.

        Raises:
            GuaranteeError: an entry that should be free changes the outputs.
            UnsupportedError: outputs change from call to call.
        """
        leak = self.find_leak(drawn, is_drawn=True)
        if leak is not None and self._draws_random_numbers(drawn):
            raise UnsupportedError(
                "the backbone gives other features for the same input in evaluation mode, since it draws random "
                "numbers there, so that no task could have answers that stay: turn that off in evaluation mode (as "
                "dropout, training=self.training), or give the random numbers as an input"
            )
        if leak is not None:
            raise GuaranteeError(
                f"masks do not protect this network: free entries of {leak} change the outputs of a task that does not "
                f"use them; {self.cause_of_leaks}"
            )

    @torch.no_grad()
    def _draws_random_numbers(self, x: Inputs) -> bool:
        """Return whether features depend on the state of torch's random generators in evaluation mode."""
        with without_trace():
            copies = [self.scratch() for _ in range(2)]
            one, other = (copy.ask(x, 0) for copy in copies)  # one after the other, which draws on
        return not torch.equal(one.nan_to_num(), other.nan_to_num())

    def earlier_runs(self) -> EarlierRuns:
        """Hand over runs of copies of the backbone that were made before it was attached."""
        return EarlierRuns()

    def find_own_state(self, example: Inputs, runs: FirstRuns) -> None:
        """Find the buffers that every task needs copies of.

        Args:
            example: a batch of the shape that the backbone expects.
            runs: runs of copies on it and on random batches.

        Raises:
            UnsupportedError: other state moves, and outputs or units depend on it.
        """
        self.adopt(runs.find_own_state())

    def adopt(self, own_state: OwnState) -> None:
        """Use another record of the state that runs move."""
        self.own_state = own_state
        self.watch.record(own_state.names)

    def note_movement(self, x: Inputs, training: bool, scratch: nn.Module, change: Change) -> None:
        """Record the state that a call of a new kind moves, if outputs are independent of it.

        Args:
            x: the batch.
            training: whether the call is made in training mode.
            scratch: a copy of the backbone that was run on the batch.
            change: applies changes to this masking.

        Raises:
            UnsupportedError: the call moves state that outputs depend on.
        """
        own_state = self.own_state.extended_by(self, x, training, scratch)
        if own_state is not None:
            change(lambda: self.adopt(own_state))

    # -------------------------------------------------------------------------------------------------------- in a call

    def stay_in_evaluation(self, states: Sequence[StateT]) -> None:
        """Take what must not move back to evaluation mode, which a loop over all modules may leave.

        These are norms and heads of consolidated tasks, the first one's among them, whose norms others may use, and
        norms that nobody trains.

        Args:
            states: the tasks that are asked.
        """
        for state in filter(None, (self.tasks.first, *states)):
            state.stay_in_evaluation()
        for name in self._untrained_norms:
            norm = self.backbone.get_submodule(name)
            if norm.training:
                norm.training = False

    def admit(self, x: Inputs, states: Sequence[StateT], change: Change) -> None:
        """Check that the guarantee holds for a call, and analyse it if it is of a new kind.

        Args:
            x: the batch, one sample at least.
            states: the tasks that are asked.
            change: applies changes to this masking where the call shows something new.

        Raises:
            UnsupportedError: the guarantee would not hold for such calls.
        """
        before = self.watch.before_change([*states, *map(self.owner_of_norms, states)])
        if before is not None and before.of_backbone:
            self.forget_calls()  # any of them may do something else now
        self.admit_kind(x, change)
        if before is not None:
            self.watch.take_up(before, partial(self.tasks_changed_by, x))

    def notice_settings(self) -> None:
        """Warn where tasks answer the example otherwise because of settings and hooks that were changed since a call.

        Without it a file would hold the new ones without a word.
        """
        states = self.tasks.consolidated
        before = self.watch.before_change([*states, *map(self.owner_of_norms, states)])
        if before is None:
            return
        if before.of_backbone:
            self.forget_calls()
        self.watch.take_up(before, partial(self.tasks_changed_by, self.example()))

    @abc.abstractmethod
    def admit_kind(self, x: Inputs, change: Change) -> None:
        """Analyse a call of a new kind, as :meth:`admit`."""

    @abc.abstractmethod
    def kinds_of_inputs(self) -> Sequence[Kind]:
        """Return the kinds of inputs that were asked about so far; those that showed something new come first."""

    @abc.abstractmethod
    def forget_calls(self) -> None:
        """Analyse all kinds of calls anew when they come again."""

    @abc.abstractmethod
    def owner_of_norms(self, state: StateT) -> StateT:
        """Return the task whose norms a task uses: itself, or the first one."""

    def tasks_changed_by(self, x: Inputs, asked: Collection[str], change: TwinChange) -> list[str]:
        """Return the names of those of some tasks that answer otherwise for a batch in a changed network.

        Args:
            x: the batch.
            asked: names of consolidated tasks.
            change: function that changes twins of the backbone and of the tasks.
        """
        names = []
        with without_trace(), torch.no_grad(), self.evaluating(), suppress(*DOES_NOT_RUN):
            x = map_tensors(torch.clone, x)
            present, changed = self._twin(), self._twin()
            change(changed.backbone, changed.tasks)
            for state, other in zip(present.tasks.consolidated, changed.tasks.consolidated, strict=True):
                if state.name not in asked:
                    continue
                now, then = present.features(x, state), changed.features(x, other)
                if state.num_classes is None:
                    now, then = tensor_of(state.classify(now)), tensor_of(other.classify(then))
                if not torch.equal(now.nan_to_num(), then.nan_to_num()):
                    names.append(state.name)
        return names

    def _twin(self) -> Masking[StateT]:
        """Return a twin of this masking, with twins of backbone and tasks."""
        # Backbone and tasks are no submodules of a masking: a twin of it alone would refer to the originals.
        parts: Any = twin(nn.ModuleList([self.backbone, self.tasks, self]), {}, {})
        twins: Masking[StateT] = parts[2]
        return twins

    def features(self, x: Inputs, state: StateT) -> Tensor:
        """Return features of a batch under a task's mask, units along the axis that the interface says.

        Args:
            x: the batch.
            state: the task.
        """
        return self.features_on(self.backbone, x, state)

    @abc.abstractmethod
    def features_on(self, backbone: nn.Module, x: Inputs, state: StateT) -> Tensor:
        """Return features that the backbone, or a twin of it, computes under a task's mask.

        Args:
            backbone: the backbone or a twin.
            x: the batch.
            state: the task.
        """

    def mixes(self, x: Inputs, num_tasks: int) -> bool:
        """Return whether samples of several tasks go through the backbone together.

        Args:
            x: the batch.
            num_tasks: number of tasks that its samples belong to.
        """
        return False

    def features_mixed(self, x: Inputs, states: Sequence[StateT], task_of: Tensor) -> Tensor | None:
        """Return features of samples of several tasks from one pass; None where each task needs its own.

        Args:
            x: the batch.
            states: the tasks.
            task_of: for every sample the index of its task, int64 ``(N,)``.
        """
        return None

    @abc.abstractmethod
    def features_of_random_mask(self, x: Inputs, seed: int) -> Tensor:
        """Return features of a batch under a mask drawn from a seed, for tests.

        Args:
            x: the batch.
            seed: seed of the mask.
        """

    def used_features(self, features: Tensor, state: StateT) -> Tensor:
        """Return those of a task's features ``(N, F)`` that it uses; the others are zeros.

        Args:
            features: features of a batch under the task's mask, ``(N, F)``.
            state: the task.
        """
        return features

    # --------------------------------------------------------------------------------------------------------- training

    @abc.abstractmethod
    def open_task(self, name: str, head: int | nn.Module, generator: torch.Generator | None = None) -> StateT:
        """Append the state of a new task, whose name and head are good, and return it.

        Args:
            name: name of the task, which no other task has.
            head: number of its classes, at least 1, for a linear head; or a head of the user's own.
            generator: source of randomness on the CPU; torch's global one if None.
        """

    @abc.abstractmethod
    def anneal(self, progress: float | Tensor) -> None:
        """Set how hard masks in training are.

        Args:
            progress: position within the epoch, 0 (first batch) to 1 (last batch). For masks of units it may be a
                0-dimensional tensor on the network's device, which is computed with and not read: a captured CUDA graph
                takes its value anew. So on a GPU its range is not checked.

        Raises:
            InputError: no task is in training, progress is a number outside [0, 1], or a tensor of another shape or
                on another device.
        """

    @abc.abstractmethod
    def regularization(self) -> Tensor:
        """Return the regularization cost of the mask in training, a scalar."""

    @abc.abstractmethod
    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the backbone's parameters that a task in training trains together with its own."""

    @abc.abstractmethod
    def settle(self, state: StateT) -> Sequence[nn.Parameter]:
        """Give a task in training its final mask, under which it goes on.

        Returns:
            The parameters that the mask was learned by, which the task no longer has.
        """

    # --------------------------------------------------------------------------------------------------- frozen entries

    @property
    @abc.abstractmethod
    def per_task_modules(self) -> Sequence[str]:
        """Names of the backbone's modules that tasks have copies of, so that no task reads the originals."""

    @property
    def per_task_buffers(self) -> Sequence[str]:
        """Names of modules and of single buffers that tasks have copies of, or that are computed anew."""
        return *self.per_task_modules, *self.own_state.names

    @abc.abstractmethod
    def refresh(self) -> None:
        """Update everything that is derived from the masks of consolidated tasks."""

    def bind(self, plan: ProtectionPlan) -> None:
        """Use a new protection plan, for example to leave frozen entries out of gradients."""

    # ------------------------------------------------------------------------------------------------------- inspection

    @abc.abstractmethod
    def masks(self, task: str) -> dict[str, Tensor]:
        """Return a task's mask by group or parameter; for a task in training, the one it is going to have."""

    @property
    @abc.abstractmethod
    def sizes(self) -> Mapping[str, int]:
        """Numbers of units by group, or of weights by parameter, by the names of :meth:`masks`."""

    @abc.abstractmethod
    def capacity(self, num_frozen: int) -> Capacity:
        """Return the shares of the network that consolidated tasks use.

        Args:
            num_frozen: number of frozen entries of shared parameters.
        """

    @abc.abstractmethod
    def usage(self) -> float:
        """Return the share of units, or of weights, that tasks use, in [0, 1]; a task in training counts."""

    @abc.abstractmethod
    def reuse(self) -> Tensor:
        """Return the share of the weights of task i that task j uses too, ``(T, T)``, over consolidated tasks."""

    # ------------------------------------------------------------------------------------------------------- unlearning

    @abc.abstractmethod
    def entries_of(self, state: StateT) -> Mapping[str, Tensor]:
        """Return where a task's outputs depend on shared parameters, booleans by the backbone's names."""

    @abc.abstractmethod
    def remove(self, state: StateT, successor: StateT | None) -> None:
        """Remove everything about a task but its state.

        Args:
            state: the task that is removed.
            successor: the task that becomes the first one, whose copies all tasks may use; None if the first one stays,
                or no task does.
        """

    def release(self, erased: Mapping[str, Tensor]) -> None:
        """Release entries that were drawn anew from penalties on moving them, booleans by the backbone's names."""

    # --------------------------------------------------------------------------------------------------------- widening

    @abc.abstractmethod
    def analyze(self) -> UnitGraph:
        """Find the units of the backbone as it is now.

        Raises:
            UnsupportedError: it does something that no rule explains.
        """

    def units_now(self) -> UnitGraph:
        """Return the units of the backbone, which are found now unless they are known.

        Raises:
            UnsupportedError: it does something that no rule explains.
        """
        return self.analyze()

    def record_widths(self, graph: UnitGraph) -> None:
        """Record the present widths, and the first time those before any widening; for maskings that do not know them.

        Args:
            graph: the units of the backbone.
        """

    @abc.abstractmethod
    def room(self, graph: UnitGraph) -> Mapping[str, float]:
        """Return the number of free units, which need not be whole, of every group whose room is known."""

    @abc.abstractmethod
    def widen_tasks(self, widening: Widening, undo_log: UndoLog) -> Places:
        """Widen masks, heads and norms of tasks after the backbone was widened; tasks do not use the new units.

        Args:
            widening: the new units, and the new places of the old ones.
            undo_log: records all changes.

        Returns:
            New indices of the old entries of the tasks' widened parameters, along their first axes.
        """

    @abc.abstractmethod
    def fit(self, graph: UnitGraph) -> None:
        """Use other units of the backbone from now on, after it was widened or analysed again."""

    # --------------------------------------------------------------------------------------------- detaching and saving

    @abc.abstractmethod
    def detach(self) -> None:
        """Remove everything that is attached to the backbone, whose weights stay as they are now."""

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values, for a file."""


keep_compilers_out(Masking.admit)
