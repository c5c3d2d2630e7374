"""Settings of the training loop."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from hatrack.errors import InputError
from hatrack.support.ranges import require_nonnegative, require_range, require_types

__all__ = ["LearningRateDecay", "OptimizerKind", "Precision", "TrainingSettings"]


class OptimizerKind(enum.Enum):
    """The optimizers to choose from."""

    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"


class LearningRateDecay(enum.Enum):
    """Course of the learning rate over the training of a task."""

    PLATEAU = "plateau"
    """Division whenever the validation loss has not improved for some epochs (the HAT paper)."""

    COSINE = "cosine"
    """Half a cosine from ``lr`` to 0, step by step; all epochs are made."""


class Precision(enum.Enum):
    """Type that training computes with; tests are always in float32."""

    FLOAT32 = "float32"
    """Float32 throughout."""

    BFLOAT16 = "bfloat16"
    """Mixed: torch's autocast takes bfloat16 where that is safe; weights and their steps stay float32."""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings by which a task is trained, with the HAT paper's values.

    Attributes:
        epochs: largest number of epochs per task.
        batch_size: samples per step.
        optimizer: sgd, adam or adamw.
        lr: learning rate to begin with; the default is one for SGD, and Adam and AdamW usually take 0.001.
        lr_decay: how the learning rate falls. plateau: as ``lr_factor``, ``lr_patience`` and ``lr_min`` say. cosine:
            with every step, along half a cosine that ends at 0 (Loshchilov and Hutter, ICLR 2017, Eq. 5), anew in every
            part of a training, such as retraining after pruning; all ``epochs`` are made. That is good for a few epochs
            of thousands of steps, in which plateaus would leave the full rate, and not for hundreds of steps.
        lr_factor: what the learning rate is divided by after ``lr_patience`` epochs without a better validation loss.
        lr_patience: see ``lr_factor``.
        lr_min: training stops when the learning rate falls below this; not along a cosine.
        momentum: of SGD, below 1.
        weight_decay: of any optimizer.
        clip_norm: largest norm of the gradient of all parameters together.
        eval_batch_size: samples per batch in validation and testing; part of what makes test logits reproducible.
        fresh_statistics: before every validation, batch norms take the mean over up to 32 batches of the training set
            for their running averages, which lag behind the weights; see :func:`hatrack.fresh_statistics`.
        precision: float32, or bfloat16 for mixed precision in training and validation.
        captured: whether a GPU repeats the steps of an epoch by itself, from one that is captured as a CUDA graph: the
            same bits (with Adam other last ones), many times as fast where a step takes Python longer than the GPU. Not
            for every method, nor for networks that read values of tensors in Python.
    """

    epochs: int = 200
    batch_size: int = 64
    optimizer: OptimizerKind = OptimizerKind.SGD
    lr: float = 0.05
    lr_decay: LearningRateDecay = LearningRateDecay.PLATEAU
    lr_factor: float = 3.0
    lr_patience: int = 5
    lr_min: float = 1e-4
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 10000.0
    eval_batch_size: int = 1000
    fresh_statistics: bool = True
    precision: Precision = Precision.FLOAT32
    captured: bool = False

    def __post_init__(self) -> None:
        require_types(self)
        require_range(self, "epochs", "batch_size", "lr_patience", "eval_batch_size", least=1)
        require_range(self, "lr", "clip_norm", above=0)
        require_nonnegative(self, "lr", "lr_factor", "lr_min", "momentum", "weight_decay")
        require_range(self, "lr_factor", above=1)  # the learning rate is divided by it
        require_range(self, "momentum", below=1)  # at 1 every step is as large as all before it together
        if self.captured and self.lr_decay is not LearningRateDecay.PLATEAU:
            raise InputError(
                "a captured step keeps its learning rate through an epoch, and along a cosine every step has its own; "
                "take plateaus (`lr_decay=plateau`), or train without (`captured=false`)"
            )

    @property
    def lr_least(self) -> float:
        """Learning rate below which training stops: ``lr_min``; or 0 along a cosine, where all epochs are made."""
        return self.lr_min if self.lr_decay is LearningRateDecay.PLATEAU else 0.0

    def lr_left(self, progress: float) -> float:
        """Return the share of the learning rate that a cosine leaves; 1 where there is none.

        Args:
            progress: share of the steps along it that are made, 0 to 1.
        """
        return (1.0 + math.cos(math.pi * progress)) / 2 if self.lr_decay is LearningRateDecay.COSINE else 1.0
