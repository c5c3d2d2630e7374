"""Hugging Face transformers: a callback that learns a task in one ``Trainer.train``, and the module that it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.errors import InputError, UnsupportedError
from hatrack.learning.integrations.task_training import TaskTraining, accuracy
from hatrack.models.base import MaskedNetwork

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError("this needs transformers and accelerate: pip install 'hatrack[transformers]'") from error

__all__ = ["MaskCost", "MaskedTrainer", "ModelOfTask", "TransformersTask"]


class ModelOfTask(nn.Module):
    """Network that is asked about one task, as ``Trainer`` calls its models: with keywords, for a loss and logits.

    Args:
        net: the network, whose backbone takes a mapping of keyword arguments; or one tensor, if there is one input.
        task: name of the task, which may be added later.
        loss: loss of logits and labels.
        input_name: name of the only input, where the backbone takes a tensor; None where it takes a mapping.

    Attributes:
        net: the network.
        task: name of the task.
        accepts_loss_kwargs: says to ``Trainer`` that the loss is a mean over the batch.

    Raises:
        InputError: in a call with other inputs than the only one.
    """

    accepts_loss_kwargs = False

    def __init__(
        self,
        net: MaskedNetwork[Any],
        task: str,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        *,
        input_name: str | None = None,
    ) -> None:
        super().__init__()
        self.net, self.task = net, task
        self._loss, self._input_name = loss, input_name

    def forward(self, labels: Tensor | None = None, **inputs: Any) -> dict[str, Tensor]:
        """Return ``logits`` and, where there are labels, their ``loss``."""
        logits = self.net(inputs if self._input_name is None else self._only_input(inputs), self.task)
        return {"logits": logits} if labels is None else {"loss": self._loss(logits, labels), "logits": logits}

    def _only_input(self, inputs: dict[str, Any]) -> Any:
        if set(inputs) != {self._input_name}:
            raise InputError(f"the batch has {sorted(inputs)}, and the backbone takes {self._input_name!r} alone")
        (only,) = inputs.values()
        return only


class TransformersTask(TrainerCallback):
    """Callback by which one ``Trainer.train`` learns one task, of a :class:`MaskedTrainer`.

    It adds the task when the trainer is made, protects the optimizer, anneals the gates from step to step of an epoch,
    and consolidates the task at the end, after the best checkpoint was loaded (``load_best_model_at_end``). A training
    that fails leaves the task in training, and ``train(resume_from_checkpoint=...)`` takes it up.

    Args:
        net: the network, which is a part of the trainer's model.
        task: name of the task.
        num_classes: number of outputs of its head.
        head: head of the task's own, in the place of ``num_classes``.
        strength: weight of the regularization, at least 0.
        tests: batches by name of the task, to measure these tasks with at the end: mappings with ``labels``, or
            pairs of inputs and targets.
        metric: function from outputs and targets of a task to its score.

    Attributes:
        training: the training of the task; ``training.scores`` has the scores.

    Raises:
        InputError: the trainer cannot learn the task as it is asked to.
        UnsupportedError: the trainer does what would break the guarantee: several devices, sharded or converted
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
        tests: Mapping[str, Iterable[Any]] | None = None,
        metric: Callable[[Tensor, Tensor], float] = accuracy,
    ) -> None:
        self.training = TaskTraining(net, task, num_classes, head=head, strength=strength, tests=tests, metric=metric)
        self.is_costed = False
        self._steps = 1

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check the trainer, and open the task before the optimizer is made."""
        _require_supported(args)
        self.training.require_inside(kwargs["model"])
        if isinstance(kwargs["model"], ModelOfTask):
            args.remove_unused_columns = False  # Trainer would not find the inputs of the backbone in its signature
        self.training.open()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Protect the optimizer, and count the steps of an epoch."""
        self.training.require_inside(kwargs["model"])
        self.training.protect([kwargs["optimizer"]])
        loader: Any = kwargs.get("train_dataloader")
        try:
            self._steps = max(math.ceil(len(loader) / args.gradient_accumulation_steps), 1)
        except TypeError:  # a stream without a length, whose steps are one epoch
            self._steps = max(state.max_steps, 1)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set how hard the gates are, the same for all batches that one step adds up."""
        self.training.anneal(state.global_step % self._steps, self._steps)
        self.is_costed = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check that the mask's cost was a part of the step."""
        if self.training.strength and not self.is_costed:
            raise InputError(
                "the regularization is no part of the loss: use MaskedTrainer, or class Mine(MaskCost, YourTrainer); "
                "or TransformersTask(..., strength=0) if your loss has it"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Consolidate the task."""
        self.training.consolidate()


class MaskCost:
    """Mixin for a ``Trainer`` that adds the regularization of its :class:`TransformersTask` to the loss.

    It goes before the trainer: ``class Mine(MaskCost, YourTrainer)``. Logged losses have it in them.
    """

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Compute the gradients of a batch, and of its share of the regularization."""
        trainer: Any = super()
        loss: Tensor = trainer.training_step(model, inputs, num_items_in_batch)
        this: Any = self
        for callback in this.callback_handler.callbacks:
            if isinstance(callback, TransformersTask) and callback.training.strength:
                together = getattr(this, "current_gradient_accumulation_steps", this.args.gradient_accumulation_steps)
                cost = callback.training.cost() / together
                callback.is_costed = True
                if cost.requires_grad:
                    this.accelerator.backward(cost)
                    loss = loss + cost.detach()
        return loss


class MaskedTrainer(MaskCost, Trainer):
    """``Trainer`` whose loss has the regularization in it; all else is done by its :class:`TransformersTask`."""


def _require_supported(args: TrainingArguments) -> None:
    """Check that a trainer leaves the network in one piece.

    Raises:
        UnsupportedError: it has several devices or processes, shards weights, or converts them.
    """
    if args.n_gpu > 1:
        raise UnsupportedError(
            f"Trainer would use torch.nn.DataParallel on {args.n_gpu} devices, whose replicas share gates and masks; "
            'train on one device (CUDA_VISIBLE_DEVICES="0")'
        )
    if args.world_size > 1 or args.deepspeed or args.fsdp:
        raise UnsupportedError(
            "several processes, FSDP and DeepSpeed are not supported: train on one device, or with "
            "DistributedDataParallel in a loop of your own"
        )
    if args.bf16_full_eval or args.fp16_full_eval:
        raise UnsupportedError(
            "bf16_full_eval and fp16_full_eval convert weights that old tasks rely on; leave them out"
        )
