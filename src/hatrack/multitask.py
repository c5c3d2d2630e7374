"""A backbone that many tasks share: their names, how they are opened, and how they are asked."""

from __future__ import annotations

import abc
import operator
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedParameter

from hatrack.attachment import attached_to
from hatrack.compilers import start_compilers_inside
from hatrack.errors import InputError, UnsupportedError
from hatrack.modes import evaluation_mode
from hatrack.names import unknown_name
from hatrack.tasks import TaskState

__all__ = ["MultiTaskNetwork"]

StateT = TypeVar("StateT", bound=TaskState)


class MultiTaskNetwork(nn.Module, abc.ABC, Generic[StateT]):
    """A backbone and a state per task; a subclass says what a state is, and what features the backbone gives under it.

    Args:
        backbone: maps a batch to features ``(N, F)``.
        example_input: a batch of the shape that the backbone expects; its values do not matter.

    Attributes:
        backbone: the network that was given.
        example_shape: shape of the example input.
        tasks: the states, in the order in which their tasks were added.

    Raises:
        InputError: the backbone is no module, or is inside another network of this kind.
        UnsupportedError: a layer of the backbone is not initialised yet.
    """

    def __init__(self, backbone: nn.Module, example_input: Tensor) -> None:
        super().__init__()
        start_compilers_inside(
            MultiTaskNetwork.forward,
            MultiTaskNetwork._forward_one,
            MultiTaskNetwork._forward_mixed,
            MultiTaskNetwork._classify,
            MultiTaskNetwork._state,
            MultiTaskNetwork._states,
            MultiTaskNetwork._last,
        )
        if not isinstance(backbone, nn.Module):
            raise InputError(f"the backbone must be a torch.nn.Module, not a {type(backbone).__name__}")
        if not isinstance(example_input, Tensor):
            raise InputError("example_input must be a tensor, such as torch.zeros(1, 1, 28, 28)")
        for name, parameter in backbone.named_parameters():
            if isinstance(parameter, UninitializedParameter):
                raise UnsupportedError(f"{name} is not initialised yet; run the backbone once on a batch")
        owner = attached_to(backbone)
        if owner is not None:
            raise InputError(f"this backbone is already inside a {owner}: call its detach() first")
        self.example_shape, self._example_dtype = example_input.shape, example_input.dtype
        self.backbone = backbone
        self.tasks = nn.ModuleList()
        self._detached = False

    @abc.abstractmethod
    def _open_task(self, name: str, num_classes: int, generator: torch.Generator | None = None) -> None:
        """Append the state of a new task, whose name and number of classes are good, to :attr:`tasks`."""

    @abc.abstractmethod
    def _features(self, x: Tensor, state: StateT) -> Tensor:
        """Return what the backbone gives for a batch under a task's state, ``(N, F)``."""

    # ------------------------------------------------------------------------------------------------------- tasks

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of all tasks, in the order in which they were added."""
        return tuple(state.name for state in self._states())

    @property
    def task_in_training(self) -> str | None:
        """Name of the task that was added and is not consolidated yet."""
        state = self._in_training()
        return None if state is None else state.name

    @abc.abstractmethod
    def add_task(self, name: str, num_classes: int, *, generator: torch.Generator | None = None) -> None:
        """Open a task; a subclass says what belongs to it."""

    def _require_addable(self, name: str, num_classes: int) -> int:
        """Check that a task can be added; returns its number of classes."""
        if not isinstance(name, str) or not name:
            raise InputError(f"a task's name must be a text that is not empty, not {name!r}")
        try:
            num_classes = operator.index(num_classes)
        except TypeError:
            raise InputError(f"num_classes of task {name!r} must be a whole number, not {num_classes!r}") from None
        if num_classes < 1:
            raise InputError(f"task {name!r} must have at least one class, not {num_classes}")
        if name in self.task_names:
            raise InputError(f"there is a task {name!r} already; choose another name")
        if self.task_in_training is not None:
            raise InputError(
                f"task {self.task_in_training!r} is still in training: consolidate it before adding {name!r}"
            )
        return num_classes

    # --------------------------------------------------------------------------------------------------------- use

    def forward(self, x: Tensor, task: str | Sequence[str]) -> Tensor:
        """Logits of a batch.

        Args:
            x: the batch, of the example input's shape but for its first axis.
            task: name of one task, or one name per sample.

        In evaluation mode samples of several tasks go through the network together where it keeps samples apart; else
        every task's samples go through by themselves. Logits are those of the tasks one by one, up to rounding.

        Returns:
            ``(N, classes)``; for a task per sample ``(N, most classes)``, filled with −inf behind a task's last class.

        Raises:
            InputError: a task is unknown, or the batch does not have the shape that the backbone expects.
        """
        self._require_attached()
        if isinstance(task, str):
            return self._forward_one(x, self._state(task))
        if not isinstance(task, Sequence):
            raise InputError(f"name a task, or a task per sample; {task!r} is neither")
        if len(task) != len(x):
            raise InputError(f"{len(task)} tasks were named for {len(x)} samples; name one task, or one per sample")
        names = list(dict.fromkeys(task))
        numbers = {name: number for number, name in enumerate(names)}
        task_of = torch.tensor([numbers[name] for name in task], dtype=torch.int64, device=x.device)
        return self._forward_mixed(x, [self._state(name) for name in names], task_of)

    def _forward_mixed(self, x: Tensor, states: Sequence[StateT], task_of: Tensor) -> Tensor:
        """Logits of samples of several tasks, ``task_of`` being the indices of their states."""
        if not states:
            return x.new_zeros(0, 0)
        widest = max(state.num_classes for state in states)
        features = self._features_mixed(x, states, task_of)
        logits: Tensor | None = None
        for number, state in enumerate(states):
            rows = (task_of == number).nonzero().flatten()
            part = self._forward_one(x[rows], state) if features is None else self._classify(features[rows], state)
            if logits is None:
                logits = part.new_full((len(x), widest), float("-inf"))
            logits = logits.index_copy(0, rows, F.pad(part, (0, widest - state.num_classes), value=float("-inf")))
        assert logits is not None
        return logits

    def _features_mixed(self, x: Tensor, states: Sequence[StateT], task_of: Tensor) -> Tensor | None:
        """Features of samples of several tasks in one pass, ``(N, F)``; None where each task needs its own."""
        return None

    def _classify(self, features: Tensor, state: StateT) -> Tensor:
        """A task's logits of features ``(N, F)``."""
        return F.linear(features, state.head.weight, state.head.bias)

    def _forward_one(self, x: Tensor, state: StateT) -> Tensor:
        try:
            features = self._features(x, state)
        except (RuntimeError, ValueError, IndexError) as error:
            if x.shape[1:] == self.example_shape[1:]:
                raise
            expected = ", ".join(map(str, self.example_shape[1:]))
            raise InputError(f"the input has shape {tuple(x.shape)}, the network expects (N, {expected})") from error
        if features.dim() != 2 or len(features) != len(x):
            expected = ", ".join(map(str, self.example_shape[1:]))
            raise InputError(f"the input has shape {tuple(x.shape)}, the network expects (N, {expected})")
        return self._classify(features, state)

    def probe(self) -> dict[str, object] | None:
        """Return what the last consolidated task says to a fixed input, by which a file recognises its network.

        Returns:
            The task's name, and its logits in evaluation mode as numbers; None before any task is consolidated.
        """
        states = self._consolidated_states()
        if not states:
            return None
        logits = self._answer(states[-1], self.example_shape)
        return {"task": states[-1].name, "logits": logits.double().flatten().tolist()}

    def _answer(self, state: StateT, shape: Sequence[int]) -> Tensor:
        """Return what a task says to a fixed input of some shape, in evaluation mode."""
        zeros = torch.zeros(shape, dtype=self._example_dtype, device=state.head.weight.device)
        with torch.no_grad(), evaluation_mode(self):  # as weights are at this moment
            try:
                drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(zeros)
                return MultiTaskNetwork._forward_one(self, drawn if zeros.is_floating_point() else zeros, state)
            except (RuntimeError, ValueError, IndexError):  # such as real numbers that stand for categories
                return MultiTaskNetwork._forward_one(self, zeros, state)

    # -------------------------------------------------------------------------------------------------- internals

    def _states(self) -> list[StateT]:
        return [*self.tasks]

    def _last(self) -> StateT | None:
        """The state that was added last, at the same cost for any number of tasks."""
        last: StateT | None = self.tasks[-1] if len(self.tasks) else None  # type: ignore[assignment]
        return last

    def _consolidated_states(self) -> list[StateT]:
        return [state for state in self._states() if state.consolidated]

    def _state(self, name: str) -> StateT:
        last = self._last()
        if last is not None and last.name == name:  # most questions are about the task in training
            return last
        for state in self._states():
            if state.name == name:
                return state
        raise unknown_name("task", name, self.task_names)

    def _in_training(self) -> StateT | None:
        last = self._last()
        return None if last is None or last.consolidated else last

    def _require_training(self, purpose: str) -> StateT:
        state = self._in_training()
        if state is None:
            raise InputError(f"{purpose} acts on the task in training, and there is none; call add_task first")
        return state

    def _require_attached(self) -> None:
        if self._detached:
            raise InputError(
                f"this network was detached from its backbone; attach a new {type(self).__name__}, or load a saved one"
            )
