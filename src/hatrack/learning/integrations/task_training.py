"""Training of one task by a trainer of another package: what is done around its steps, whatever they look like."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hatrack.errors import InputError, UnsupportedError
from hatrack.functional import batch_progress
from hatrack.models.base import MaskedNetwork
from hatrack.support.inputs import map_tensors
from hatrack.support.modes import evaluation_mode

__all__ = ["LABELS", "TaskTraining", "accuracy", "score", "unwrapped"]

LABELS = "labels"
"""Key of the targets in batches that are mappings."""


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of samples, from 0 to 1, whose largest output is that of their class.

    Args:
        outputs: ``(N, classes)``.
        targets: classes, int64 ``(N,)``.
    """
    return float((outputs.argmax(-1) == targets).double().mean())


def score(
    net: MaskedNetwork[Any],
    batches: Mapping[str, Iterable[Any]],
    metric: Callable[[Tensor, Tensor], float] = accuracy,
) -> dict[str, float]:
    """Measure how well tasks do, in evaluation mode.

    Args:
        net: the network.
        batches: batches by name of the task: pairs of inputs and targets, or mappings with targets under ``labels``.
        metric: function from outputs and targets of a whole task, on the CPU, to its score.

    Returns:
        The score of every task.

    Raises:
        InputError: there is no such task, or it has no batches, or these are neither pairs nor such mappings.
    """
    with torch.no_grad(), evaluation_mode(net):
        return {task: _score_of(net, task, list(of_task), metric) for task, of_task in batches.items()}


def _score_of(
    net: MaskedNetwork[Any], task: str, batches: list[Any], metric: Callable[[Tensor, Tensor], float]
) -> float:
    if not batches:
        raise InputError(f"task {task!r} has no batches to be tested on")
    device = net.masking.device
    pairs = [_inputs_and_targets(batch) for batch in batches]
    outputs = [net(map_tensors(lambda tensor: tensor.to(device), x), task).cpu() for x, _ in pairs]
    return metric(torch.cat(outputs), torch.cat([y.cpu() for _, y in pairs]))


def _inputs_and_targets(batch: Any) -> tuple[Any, Tensor]:
    """Return the inputs and the targets of a batch.

    Raises:
        InputError: it is neither a pair nor a mapping with targets under ``labels``.
    """
    if isinstance(batch, Mapping) and LABELS in batch:
        return {name: value for name, value in batch.items() if name != LABELS}, batch[LABELS]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise InputError(
        f"a batch is a pair of inputs and targets, or a mapping with {LABELS!r}, not {type(batch).__name__}"
    )


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer of torch inside of what stands around it, such as that of ``accelerate``."""
    while not hasattr(optimizer, "_optimizer_step_pre_hooks") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


class TaskTraining:
    """Training of one task: it is opened, its optimizers are protected, its gates annealed, and it is consolidated.

    A trainer of another package calls these in its own hooks; nothing here knows any of them.

    Args:
        net: the network.
        task: name of the task.
        num_classes: number of outputs of its head, as in :meth:`hatrack.HATNetwork.add_task`.
        head: head of the task's own, in the place of ``num_classes``. Neither is needed if the task is open already.
        strength: weight of :meth:`hatrack.HATNetwork.regularization` in the loss, at least 0: c of Eq. 4 of the HAT
            paper, which uses 0.75. With 0 nothing is added.
        tests: batches by name of the task, as :func:`score` takes them, to measure all of these tasks with when the
            training has ended.
        metric: function from outputs and targets of a task to its score.

    Attributes:
        net: the network.
        task: name of the task.
        strength: weight of the regularization.
        scores: scores of the tasks in ``tests``, once the task is consolidated.

    Raises:
        InputError: ``strength`` is negative or not a number, or ``net`` is no network of tasks.
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
        if not isinstance(net, MaskedNetwork):
            raise InputError(f"net is a HATNetwork or a WeightMaskedNetwork, not a {type(net).__name__}")
        if not 0.0 <= strength < math.inf:
            raise InputError(f"strength is a number of at least 0, not {strength}")
        self.net, self.task, self.strength = net, task, strength
        self.scores: dict[str, float] = {}
        self._num_classes, self._head = num_classes, head
        self._tests, self._metric = dict(tests or {}), metric

    def open(self) -> None:
        """Add the task, unless it is in training already, and drop gradients that the task before has left.

        Raises:
            InputError: it is consolidated, another one is in training, or it cannot be added.
        """
        if self.net.task_in_training == self.task:
            return
        if self.task in self.net.task_names:
            raise InputError(f"task {self.task!r} is consolidated and cannot be trained again; name a new task")
        self.net.add_task(self.task, self._num_classes, head=self._head)
        self.net.zero_grad()  # a loop that clears them behind its steps would add the last ones to its first

    def require_inside(self, model: nn.Module) -> None:
        """Check that the network is what a trainer trains.

        Raises:
            InputError: the model does not hold the network, for example because the trainer has copied it.
            UnsupportedError: the model is replicated, or the network's own ``forward`` was replaced.
        """
        if any(isinstance(part, nn.DataParallel) for part in model.modules()):
            raise UnsupportedError(
                "torch.nn.DataParallel makes replicas that share gates and masks; train on one device "
                '(CUDA_VISIBLE_DEVICES="0"), or with DistributedDataParallel in a loop of your own'
            )
        if not any(part is self.net for part in model.modules()):
            raise InputError(
                "the model that is trained does not hold this network: give the trainer a module with the network "
                "itself inside, not a copy of it"
            )
        if "forward" in vars(self.net):
            raise UnsupportedError(
                "something has replaced the forward method of the network, so that old tasks would answer in another "
                "precision; hand over TaskModule(net, task) in its place, one for each task"
            )

    def protect(self, optimizers: Iterable[Any]) -> None:
        """Protect the optimizers of a trainer that have parameters of the network; others are left alone.

        Args:
            optimizers: all that the trainer steps, in whatever stands around them.

        Raises:
            InputError: parameters that the task owns are in none of them: they were made before it was opened; or an
                optimizer cannot be protected.
        """
        found = [unwrapped(optimizer) for optimizer in optimizers]
        own = {id(parameter): parameter for parameter in self.net.parameters()}
        owners = [each for each in found if any(id(p) in own for p in _parameters(each))]
        held = {id(parameter) for optimizer in owners for parameter in _parameters(optimizer)}
        missing = [
            p for p in self.net.task_parameters(self.task, new_only=True) if p.requires_grad and id(p) not in held
        ]
        if missing:
            names = {id(parameter): name for name, parameter in self.net.named_parameters()}
            raise InputError(
                f"the trainer's optimizer does not have {', '.join(names[id(each)] for each in missing)}, since it was "
                f"made before task {self.task!r} was added; make it of net.task_parameters({self.task!r}) afterwards"
            )
        for optimizer in owners:
            self.net.protect(optimizer)

    def anneal(self, step: int, steps: int) -> None:
        """Set how hard the gates are at a step of an epoch.

        Args:
            step: steps of this epoch before, from 0; behind the last one gates stay as hard as they become.
            steps: steps of an epoch, at least 1.
        """
        self.net.anneal(batch_progress(min(step, steps - 1), steps))

    def cost(self) -> Tensor:
        """Return what the mask in training costs, ``strength`` times the regularization, a scalar for the loss."""
        return self.strength * self.net.regularization()

    def add_gradients(self, optimizer: Any) -> None:
        """Add the gradients of :meth:`cost` to those that the task's loss has left, once before every step.

        Gradients add up, so that this is the same as the cost in the loss, for trainers whose loss a callback cannot
        change. They count in whole, however many batches a step adds up. A step without gradients is left alone.

        Args:
            optimizer: the optimizer that is about to step, whose gradients are not scaled (any more).
        """
        if self.strength == 0:
            return
        parameters = [p for p in _parameters(unwrapped(optimizer)) if p.requires_grad]
        cost = self.cost()
        if not cost.requires_grad or all(parameter.grad is None for parameter in parameters):
            return
        gradients = torch.autograd.grad(cost, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def consolidate(self) -> None:
        """Consolidate the task, and measure all tasks that there are tests for.

        Raises:
            GuaranteeError: frozen entries have moved so that they could not be put back.
        """
        self.net.consolidate(self.task)
        self.scores = score(self.net, self._tests, self._metric)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
