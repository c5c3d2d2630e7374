"""skorch: a callback that learns a task in one ``fit``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from hatrack.errors import InputError
from hatrack.learning.integrations.task_training import TaskTraining, accuracy
from hatrack.models.base import MaskedNetwork

try:
    from skorch.callbacks import Callback
except ImportError as error:
    raise ImportError("this needs skorch: pip install 'hatrack[skorch]'") from error

__all__ = ["SkorchTask"]


class SkorchTask(Callback):
    """Callback by which one ``fit`` of a skorch net learns one task; the last one, behind those that restore weights.

    It adds the task before the optimizer is made, protects the optimizer, anneals the gates from batch to batch of an
    epoch, adds the gradients of the regularization before each step (recorded losses are those of the criterion), and
    consolidates the task at the end. Training that is interrupted in the middle of an epoch leaves the task open.

    Args:
        net: the network; the skorch net has ``TaskModule(net, task)`` for its module.
        task: name of the task.
        num_classes: number of outputs of its head.
        head: head of the task's own, in the place of ``num_classes``.
        strength: weight of the regularization, at least 0.
        tests: batches by name of the task, to measure these tasks with at the end: pairs of inputs and targets.
        metric: function from outputs and targets of a task to its score.

    Attributes:
        training: the training of the task; ``training.scores`` has the scores.

    Raises:
        InputError: ``fit`` cannot learn the task as it is asked to.
    """

    def __init__(
        self,
        net: MaskedNetwork[Any],
        task: str,
        num_classes: int | None = None,
        *,
        head: nn.Module | None = None,
        strength: float = 0.75,
        tests: Mapping[str, Iterable[Any]] | None = None,
        metric: Callable[[Tensor, Tensor], float] = accuracy,
    ) -> None:
        # Callbacks are cloned by their attributes: arguments have the same names, and all else ends with an underscore.
        self.net, self.task, self.num_classes, self.head = net, task, num_classes, head
        self.strength, self.tests, self.metric = strength, tests, metric
        self.training_ = TaskTraining(net, task, num_classes, head=head, strength=strength, tests=tests, metric=metric)
        self.steps_ = self.done_ = 0

    @property
    def training(self) -> TaskTraining:
        """Training of the task."""
        return self.training_

    def initialize(self) -> SkorchTask:
        """Open the task, before module and optimizer are made."""
        self.training.open()
        return self

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:  # noqa: N803
        """Check the net, and protect its optimizers."""
        callbacks = [callback for _, callback in net.callbacks_]
        late = callbacks[callbacks.index(self) + 1 :]
        if any(getattr(callback, "load_best", False) for callback in late):
            raise InputError("SkorchTask has to be behind callbacks that load the best weights: put it last")
        self.training.require_inside(net.module_)
        self.training.protect(_optimizers_of(net))

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        """Count the batches of an epoch."""
        self.steps_, self.done_ = len(net.get_iterator(dataset_train, training=True)), 0

    def on_batch_begin(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Set how hard the gates are."""
        if training:
            self.training.anneal(self.done_, self.steps_)

    def on_grad_computed(self, net: Any, named_parameters: Any, **kwargs: Any) -> None:
        """Add the gradients of the regularization."""
        for optimizer in _optimizers_of(net):
            self.training.add_gradients(optimizer)

    def on_batch_end(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Count the batches that are done."""
        self.done_ += training

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:  # noqa: N803
        """Consolidate the task, unless its training was interrupted."""
        if self.done_ < self.steps_:
            warnings.warn(
                f"training was interrupted in the middle of an epoch: task {self.training.task!r} stays in training; "
                f"call fit again, or net.consolidate({self.training.task!r})",
                stacklevel=2,
            )
            return
        self.training.consolidate()


def _optimizers_of(net: Any) -> list[Optimizer]:
    return [value for value in vars(net).values() if isinstance(value, Optimizer)]
