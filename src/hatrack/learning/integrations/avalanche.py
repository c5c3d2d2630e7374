"""Avalanche: a plugin by which any strategy that trains by steps learns every experience as a task of a network."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hatrack.errors import InputError
from hatrack.learning.integrations.task_training import TaskTraining
from hatrack.models.base import MaskedNetwork

try:
    from avalanche.models import MultiTaskModule
    from avalanche.training.plugins import SupervisedPlugin
except ImportError as error:
    raise ImportError("this needs avalanche-lib: pip install 'hatrack[avalanche]'") from error

__all__ = ["AvalancheTasks", "TaskLabelModule"]


class TaskLabelModule(MultiTaskModule):
    """Network of tasks that Avalanche asks by task labels; its tasks are named ``"0"``, ``"1"`` and so on.

    A task is added when the strategy adapts its model to an experience, with as many outputs as its largest class asks
    for.

    Args:
        net: the network.

    Attributes:
        net: the network.

    Raises:
        InputError: an experience has several task labels or one that was learned before, or samples are of a task that
            was not learned yet.
    """

    def __init__(self, net: MaskedNetwork[Any]) -> None:
        super().__init__()
        self.net = net

    def adaptation(self, experience: Any) -> None:
        """Add the task of an experience that is about to be trained."""
        super().adaptation(experience)
        if self.training:
            task = task_of(experience)
            TaskTraining(self.net, task, max(experience.classes_in_this_experience) + 1).open()

    def forward(self, x: Tensor, task_labels: Tensor | int) -> Tensor:
        """Return the outputs of a batch under the tasks of its samples: ``(N, classes)``."""
        labels = [task_labels] if isinstance(task_labels, int) else task_labels.tolist()
        unknown = sorted({str(label) for label in labels} - set(self.net.task_names))
        if unknown:
            raise InputError(
                f"task {', '.join(unknown)} is not learned yet: evaluate the experiences so far, such as "
                "strategy.eval(benchmark.test_stream[: i + 1])"
            )
        tasks = [str(label) for label in labels]
        outputs: Tensor = self.net(x, tasks[0] if len(set(tasks)) == 1 else tasks)
        return outputs

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Return the outputs of a batch of one task."""
        return self.forward(x, task_label)


class AvalancheTasks(SupervisedPlugin):
    """Plugin by which a strategy learns one task per experience; its model is a :class:`TaskLabelModule`.

    It protects the strategy's optimizer, anneals the gates from batch to batch of an epoch, adds the regularization to
    the loss, and consolidates the task after the experience, before the strategy evaluates.

    Args:
        strength: weight of the regularization, at least 0.
    """

    def __init__(self, strength: float = 0.75) -> None:
        super().__init__()
        self._strength = strength
        self._training: TaskTraining | None = None

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Protect the optimizer, which has the new task's parameters by now."""
        if not isinstance(strategy.model, TaskLabelModule):
            raise InputError("the model of the strategy must be a TaskLabelModule(net)")
        self._training = TaskTraining(strategy.model.net, task_of(strategy.experience), strength=self._strength)
        self._training.require_inside(strategy.model)
        self._training.protect([strategy.optimizer])

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Set how hard the gates are."""
        self._present.anneal(strategy.clock.train_epoch_iterations, len(strategy.dataloader))

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the regularization to the loss."""
        if self._strength:
            strategy.loss = strategy.loss + self._present.cost()

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Consolidate the task."""
        self._present.consolidate()
        self._training = None

    @property
    def _present(self) -> TaskTraining:
        assert self._training is not None
        return self._training


def task_of(experience: Any) -> str:
    """Return the name of the task of an experience: its task label.

    Raises:
        InputError: it has several labels, or none.
    """
    labels = set(getattr(experience, "task_labels", ()))
    if len(labels) != 1:
        raise InputError(
            f"an experience is one task and has one task label, not {sorted(labels)}; make the benchmark with a task "
            "label per experience (return_task_id=True, or task_labels=True)"
        )
    return str(next(iter(labels)))
