"""Accelerate: the training of a task in a loop of one's own, with optimizers protected before or after ``prepare``."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from hatrack.errors import InputError, UnsupportedError
from hatrack.learning.integrations.task_training import TaskTraining, accuracy
from hatrack.models.base import MaskedNetwork

try:
    from accelerate import Accelerator
    from accelerate.utils import DistributedType
except ImportError as error:
    raise ImportError("this needs accelerate: pip install 'hatrack[accelerate]'") from error

__all__ = ["AcceleratedTask"]

BatchT = TypeVar("BatchT")
OptimizerT = TypeVar("OptimizerT")


class AcceleratedTask:
    """Training of one task in a loop of one's own, under an ``Accelerator``.

    The task is opened when this is made. Hand ``TaskModule(net, task)`` to ``prepare``, one for each task.

    Args:
        accelerator: the accelerator.
        net: the network.
        task: name of the task.
        num_classes: number of outputs of its head.
        head: head of the task's own, in the place of ``num_classes``.
        strength: weight of the regularization, at least 0.
        tests: batches by name of the task, to measure these tasks with at the end: pairs of inputs and targets.
        metric: function from outputs and targets of a task to its score.

    Attributes:
        training: the training of the task; ``training.scores`` has the scores.

    Raises:
        InputError: the task cannot be added.
        UnsupportedError: the accelerator has several processes, or shards weights.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        net: MaskedNetwork[Any],
        task: str,
        num_classes: int | None = None,
        *,
        head: nn.Module | None = None,
        strength: float = 0.75,
        tests: Mapping[str, Iterable[Any]] | None = None,
        metric: Callable[[Tensor, Tensor], float] = accuracy,
    ) -> None:
        if accelerator.distributed_type != DistributedType.NO:
            raise UnsupportedError(
                f"{accelerator.distributed_type} is not supported: train in one process, or with "
                "DistributedDataParallel in a loop of your own"
            )
        self.training = TaskTraining(net, task, num_classes, head=head, strength=strength, tests=tests, metric=metric)
        self._accelerator = accelerator
        self._is_protected = False
        self._share = 1.0
        self.training.open()

    def protect(self, optimizer: OptimizerT) -> OptimizerT:
        """Protect an optimizer, before or after ``prepare``, and return it.

        Raises:
            InputError: it was made before the task was opened, or cannot be protected.
        """
        self.training.protect([optimizer])
        self._is_protected = True
        return optimizer

    def batches(self, loader: Collection[BatchT]) -> Iterator[BatchT]:
        """Iterate over the batches of an epoch, and set how hard the gates are, step by step.

        Args:
            loader: the loader, with a length.

        Raises:
            InputError: no optimizer was protected.
            UnsupportedError: ``prepare`` got the network itself, and has replaced its ``forward``.
        """
        if not self._is_protected:
            raise InputError("protect the optimizer before training: task.protect(optimizer)")
        self.training.require_inside(self.training.net)
        together = self._accelerator.gradient_accumulation_steps
        batches = len(loader)
        for index, batch in enumerate(loader):
            step = index // together
            self.training.anneal(step, math.ceil(batches / together))
            # Every loss is divided by the same number, though a step at the end of an epoch may have fewer batches.
            self._share = together / min(together, batches - step * together)
            yield batch

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss and the regularization, in the place of ``accelerator.backward``.

        The regularization counts once in every step, however many batches this adds up.
        """
        self._accelerator.backward(loss + self._share * self.training.cost() if self.training.strength else loss)

    def consolidate(self) -> None:
        """Consolidate the task."""
        self.training.consolidate()
