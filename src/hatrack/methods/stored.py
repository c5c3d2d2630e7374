"""Methods that keep a file of their own: one way to save and load it; and methods with a network for every task."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from hatrack.errors import CheckpointError
from hatrack.methods.base import Batch, Loss, Method, Setup, joined
from hatrack.storage.checkpoint import (
    Checkpoint,
    check_backbone,
    description_of_modules,
    part_of,
    read_checkpoint,
    write_checkpoint,
)
from hatrack.streams import Task
from hatrack.support.names import look_up

__all__ = ["NetworkPerTask", "StoredMethod"]


class StoredMethod(Method):
    """Method that keeps its tensors, its tasks and the modules of its backbone in a file of its own.

    Attributes:
        file_format: name of the file's format.
    """

    file_format: ClassVar[str]

    def stored_backbone(self) -> nn.Module:
        """Return the network whose modules a file is recognised by."""
        return self.setup.build_backbone()

    def stored_settings(self) -> Mapping[str, Any]:
        """Return further entries of the file's description, as JSON values."""
        return {}

    @abc.abstractmethod
    def stored_tasks(self) -> Sequence[Sequence[Any]]:
        """Return name and number of classes of every task in order, and what else :meth:`open` needs."""

    @abc.abstractmethod
    def stored_tensors(self) -> Mapping[str, Tensor]:
        """Return all tensors that :meth:`predict` and further tasks need, by name."""

    def restore_settings(self, path: Path, description: Mapping[str, Any]) -> None:
        """Take up :meth:`stored_settings` before any task is opened.

        Args:
            path: the file, for messages.
            description: the file's description.

        Raises:
            CheckpointError: the method was made with settings that the file does not fit.
        """

    @abc.abstractmethod
    def open(self, name: str, num_classes: int, *more: Any) -> None:
        """Make what a task needs of its own, untrained."""

    @abc.abstractmethod
    def restore_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up :meth:`stored_tensors`, on the CPU, once all tasks are open."""

    def begin_task(self, task: Task) -> None:
        """Make what the task needs of its own."""
        self.open(task.name, task.num_classes)

    def save(self, path: Path) -> None:
        """Write all that :meth:`predict` and further tasks need to one file, atomically."""
        description = {
            "format": self.file_format,
            "modules": description_of_modules(self.stored_backbone()),
            "tasks": self.stored_tasks(),
            **self.stored_settings(),
        }
        write_checkpoint(path, Checkpoint(self.stored_tensors(), description))

    def load(self, path: Path) -> tuple[str, ...]:
        """Read a file that :meth:`save` wrote, into a method that was just made.

        Returns:
            Names of the tasks learned so far, in order.

        Raises:
            CheckpointError: the file is damaged, or of another method, backbone or settings.
        """
        checkpoint = read_checkpoint(path, self.file_format)
        description = checkpoint.description
        if description.get("method", self.name) != self.name:
            raise CheckpointError(f"{path} was saved by the method {description['method']}, not by {self.name}")
        check_backbone(path, description["modules"], self.stored_backbone())
        self.restore_settings(path, description)
        for task in description["tasks"]:
            self.open(*task)
        self.restore_tensors(checkpoint.tensors)
        return tuple(name for name, *_ in description["tasks"])


Network = TypeVar("Network", bound=nn.Module)


class NetworkPerTask(StoredMethod, Generic[Network]):
    """Trains a new network for every task; those of earlier tasks are frozen, in evaluation mode.

    Attributes:
        networks: the networks by their task's name, in order.
    """

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.networks: dict[str, Network] = {}
        self._classes: dict[str, int] = {}

    @abc.abstractmethod
    def new_network(self, name: str, num_classes: int) -> Network:
        """Make the network of a task, untrained."""

    @abc.abstractmethod
    def logits(self, x: Tensor, task: str) -> Tensor:
        """Return logits ``(N, classes)`` of samples for a task that has a network."""

    def open(self, name: str, num_classes: int, *_: Any) -> None:
        """Make a task's network, and freeze all others."""
        for earlier in self.networks.values():
            earlier.eval().requires_grad_(False)
        self.networks[name] = self.new_network(name, num_classes).to(self.setup.device)
        self._classes[name] = num_classes

    def give_up(self, task: str) -> None:
        """Remove the task's network."""
        self.networks.pop(task, None)
        self._classes.pop(task, None)

    def loss(self, batch: Batch) -> Loss:
        """Return the loss of the task's network."""
        return Loss.of(self.predict(batch.x, batch.tasks[0]), batch)

    def predict(self, x: Tensor, task: str) -> Tensor:
        """Return logits of the task's network."""
        look_up("task", task, self.networks)
        return self.logits(x, task)

    def trained_modules(self) -> Sequence[nn.Module]:
        """Return the last task's network."""
        return list(self.networks.values())[-1:]

    def stored_tasks(self) -> Sequence[Sequence[Any]]:
        """Return name and number of classes of every task."""
        return list(self._classes.items())

    def stored_tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors of all networks, by the task's number and their name."""
        return joined(dict(enumerate(network.state_dict() for network in self.networks.values())))

    def restore_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Give every network its tensors."""
        for index, network in enumerate(self.networks.values()):
            network.load_state_dict(part_of(tensors, f"{index}."))
