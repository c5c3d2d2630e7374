"""Tasks of a network, in the order in which they were added."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, Generic, TypeVar, cast

from torch import Tensor, nn

from hatrack.errors import InputError
from hatrack.masks.tasks import TaskState
from hatrack.support.compilers import start_compilers_inside
from hatrack.support.names import unknown_name

__all__ = ["StateT", "TaskList"]

StateT = TypeVar("StateT", bound=TaskState)


class TaskList(nn.ModuleList, Generic[StateT]):
    """States of a network's tasks, in the order in which these were added; only the last may be in training."""

    def __iter__(self) -> Iterator[StateT]:
        """Iterate over the states."""
        return super().__iter__()  # type: ignore[return-value]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tasks."""
        return tuple(state.name for state in self)

    @property
    def consolidated(self) -> list[StateT]:
        """States of the consolidated tasks."""
        return [state for state in self if state.consolidated]

    @property
    def first(self) -> StateT | None:
        """State that was added first, whose norms or copies all tasks may use; None where there is none."""
        first: StateT | None = self[0] if len(self) else None  # type: ignore[assignment]
        return first

    @property
    def last(self) -> StateT | None:
        """State that was added last, at the same cost for any number of tasks; None where there is none."""
        last: StateT | None = self[-1] if len(self) else None  # type: ignore[assignment]
        return last

    @property
    def in_training(self) -> StateT | None:
        """State that is not consolidated yet; None where there is none."""
        last = self.last
        return None if last is None or last.consolidated else last

    def tensors(self) -> list[Tensor]:
        """Return the buffers of all tasks, and the tensors that hold their masks."""
        return [*self.buffers(), *(tensor for state in self for tensor in state.mask_tensors())]

    def named(self, name: str) -> StateT:
        """Return the state of a task.

        Raises:
            InputError: there is no such task.
        """
        last = self.last
        if last is not None and last.name == name:  # most questions are about the task in training
            return last
        for state in self:
            if state.name == name:
                return state
        raise unknown_name("task", name, self.names)

    def require_training(self, purpose: str) -> StateT:
        """Return the state in training.

        Args:
            purpose: name of the method that needs it, for the message.

        Raises:
            InputError: no task is in training.
        """
        state = self.in_training
        if state is None:
            raise InputError(f"{purpose} acts on the task in training, and there is none; call add_task first")
        return state

    def require_addable(self, name: str, num_classes: int | None, head: nn.Module | None = None) -> int | nn.Module:
        """Check that a task can be added, and return its number of classes as an integer, or its head.

        Args:
            name: name of the task.
            num_classes: number of its classes; None where it brings a head.
            head: the head that it brings; None where it gets a linear one.

        Raises:
            InputError: the name is empty or that of another task, the number of classes is below 1, there is a head
                besides or instead of a number of classes, or another task is in training.
        """
        if not isinstance(name, str) or not name:
            raise InputError(f"a task's name must be a text that is not empty, not {name!r}")
        if (num_classes is None) == (head is None):
            raise InputError(
                f"task {name!r} needs exactly one of num_classes and head: a linear head, or one of your own"
            )
        if head is None:
            try:
                num_classes = operator.index(num_classes)  # type: ignore[arg-type]
            except TypeError:
                raise InputError(f"num_classes of task {name!r} must be a whole number, not {num_classes!r}") from None
            if num_classes < 1:
                raise InputError(f"task {name!r} must have at least one class, not {num_classes}")
        elif not isinstance(head, nn.Module):
            raise InputError(f"the head of task {name!r} must be a torch.nn.Module, not a {type(head).__name__}")
        if name in self.names:
            raise InputError(f"there is a task {name!r} already; choose another name")
        if self.in_training is not None:
            raise InputError(
                f"task {self.in_training.name!r} is still in training: consolidate it before adding {name!r}"
            )
        return head if num_classes is None else num_classes  # type: ignore[return-value]


_PROPERTIES = (TaskList.names, TaskList.consolidated, TaskList.last, TaskList.in_training)
start_compilers_inside(TaskList.__iter__, TaskList.named, *(cast(Any, found).fget for found in _PROPERTIES))
