"""Lightning: a callback that learns a task in one ``fit``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from hatrack.errors import InputError, UnsupportedError
from hatrack.learning.integrations.task_training import TaskTraining, accuracy
from hatrack.models.base import MaskedNetwork

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import SingleDeviceStrategy
except ImportError as error:
    raise ImportError("this needs lightning: pip install 'hatrack[lightning]'") from error

__all__ = ["LightningTask"]

FITTING = "fit"
"""Stage of Lightning in which there is training."""

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Precisions of Lightning in which weights stay as they are."""


class LightningTask(Callback):
    """Callback by which one ``trainer.fit`` learns one task.

    It adds the task before ``configure_optimizers``, protects every optimizer, anneals the gates from batch to batch of
    an epoch, adds the gradients of the regularization before each step (before clipping; logged losses are those of
    ``training_step``), and consolidates the task at the end of ``fit``. A ``fit`` that fails or is interrupted leaves
    the task in training, and ``fit(..., ckpt_path=...)`` takes it up.

    Args:
        net: the network, which is a part of the ``LightningModule``.
        task: name of the task.
        num_classes: number of outputs of its head.
        head: head of the task's own, in the place of ``num_classes``.
        strength: weight of the regularization, at least 0.
        restore_best: whether the weights of the best checkpoint are loaded before the task is consolidated; needs a
            ``ModelCheckpoint`` with ``monitor``.
        tests: batches by name of the task, to measure these tasks with at the end: pairs of inputs and targets.
        metric: function from outputs and targets of a task to its score.

    Attributes:
        training: the training of the task; ``training.scores`` has the scores.

    Raises:
        InputError: ``fit`` cannot learn the task as it is asked to.
        UnsupportedError: the trainer does what would break the guarantee: several processes, sharded or converted
            weights.
    """

    def __init__(
        self,
        net: MaskedNetwork[Any],
        task: str,
        num_classes: int | None = None,
        *,
        head: nn.Module | None = None,
        strength: float = 0.75,
        restore_best: bool = False,
        tests: Mapping[str, Iterable[Any]] | None = None,
        metric: Callable[[Tensor, Tensor], float] = accuracy,
    ) -> None:
        self.training = TaskTraining(net, task, num_classes, head=head, strength=strength, tests=tests, metric=metric)
        self._restores_best = restore_best

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the trainer, and open the task before optimizers are made."""
        if stage == FITTING:
            _require_supported(trainer)
            if self._restores_best and not getattr(trainer.checkpoint_callback, "monitor", None):
                raise InputError("restore_best needs a ModelCheckpoint with monitor=... among the callbacks")
            self.training.require_inside(pl_module)
            self.training.open()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Protect the optimizers."""
        self.training.protect(trainer.optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set how hard the gates are, the same for all batches that one step adds up."""
        together = trainer.accumulate_grad_batches
        if math.isfinite(trainer.num_training_batches):
            self.training.anneal(batch_idx // together, math.ceil(trainer.num_training_batches / together))
        elif trainer.max_steps > 0:
            self.training.anneal(trainer.global_step, trainer.max_steps)
        else:
            raise InputError(
                "gates are annealed over an epoch, and this loader has no length: give the Trainer "
                "limit_train_batches or max_steps"
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add the gradients of the regularization, which precision plugins have unscaled the others for."""
        self.training.add_gradients(optimizer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to the best weights, if asked to, and consolidate the task."""
        if self._restores_best:
            path = trainer.checkpoint_callback.best_model_path
            if not path:
                raise InputError("no checkpoint was the best one, so that restore_best has nothing to restore")
            pl_module.load_state_dict(trainer.strategy.load_checkpoint(path)["state_dict"])
        self.training.consolidate()

    def state_dict(self) -> dict[str, Any]:
        """Return the name of the task, for checkpoints."""
        return {"task": self.training.task}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a checkpoint is of the same task.

        Raises:
            InputError: it is of another one.
        """
        if state_dict["task"] != self.training.task:
            raise InputError(
                f"this checkpoint is of the training of task {state_dict['task']!r}, not {self.training.task!r}"
            )


def _require_supported(trainer: Trainer) -> None:
    """Check that a trainer leaves the network in one piece.

    Raises:
        InputError: it tries out a single batch, after which nothing should be consolidated.
        UnsupportedError: it has several processes, or converts weights.
    """
    if trainer.fast_dev_run:
        raise InputError("fast_dev_run would consolidate a task that has learned nothing; use limit_train_batches")
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise UnsupportedError(
            f"the strategy {type(trainer.strategy).__name__} is not supported: train on one device (devices=1), or "
            "with DistributedDataParallel in a loop of your own"
        )
    if trainer.precision not in PRECISIONS:
        raise UnsupportedError(
            f"precision={trainer.precision!r} converts weights that old tasks rely on; use {', '.join(PRECISIONS)}"
        )
