"""Streams whose task switches are not announced, and a detector that notices them by the loss.

Setting: M.-C. Dinu, "Overcoming Catastrophic Forgetting of Hard Attention Residual Networks", 2019 (tasks may be
unlabelled and switch unpredictably). The detector is our choice: the simplest that uses nothing but the losses of
single batches.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hatrack.errors import InputError
from hatrack.streams.base import TaskStream
from hatrack.streams.seeding import seeded_generator
from hatrack.support.inputs import Inputs
from hatrack.support.interface import PLAIN

__all__ = ["DetectorSettings", "LossDetector", "Surprise", "Unannounced", "usual_limit"]


@dataclass(frozen=True, eq=False)
class Unannounced:
    """The training samples of a stream as batches that do not say of which task they are.

    Labels are those within the task, so what tells tasks apart is the samples, and which label they get. What does not
    fill a batch at the end of a pass is left out.

    Attributes:
        stream: the tasks, one after the other.
        passes: number of passes over the samples of a task before the next.
        batch_size: samples per batch.
        seed: determines the order of the samples within a task.

    Raises:
        InputError: a number is below 1, or a task does not fill a batch.
    """

    stream: TaskStream
    passes: int = 1
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.passes < 1 or self.batch_size < 1:
            raise InputError(f"passes and batch_size must be at least 1, not {self.passes} and {self.batch_size}")
        for task in self.stream:
            if len(task.train) < self.batch_size:
                raise InputError(f"task {task.name} has {len(task.train)} samples; a batch needs {self.batch_size}")

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.truth())

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield samples and labels of every batch: float32 ``(batch_size, ...)`` and int64 ``(batch_size,)``.

        Samples that are nested tensors, or keep their type, are so here, too; see :meth:`hatrack.streams.Split.load`.
        """
        for task in self.stream:
            x, y = task.train.load()
            interface = task.train.interface or PLAIN
            for number in range(self.passes):
                order = torch.randperm(len(y), generator=seeded_generator(self.seed, "unannounced", task.name, number))
                for rows in torch.split(order, self.batch_size):
                    if len(rows) == self.batch_size:
                        yield interface.take(x, rows), y[rows]

    @property
    def classes(self) -> int:
        """Largest number of classes of a task."""
        return max(task.num_classes for task in self.stream)

    def truth(self) -> tuple[int, ...]:
        """Return the position in the stream of every batch's task; for judging a learner, not for learning."""
        batches = (len(task.train) // self.batch_size * self.passes for task in self.stream)
        return tuple(index for index, count in enumerate(batches) for _ in range(count))


class Surprise(enum.Enum):
    """Judgement of a detector on a batch."""

    USUAL = "usual"
    """The batch is of the task at hand."""

    SUSPICIOUS = "suspicious"
    """Perhaps it is not: do not learn from it yet."""

    SWITCH = "switch"
    """The task has changed, with the first of the suspicious batches in a row."""


@dataclass(frozen=True)
class DetectorSettings:
    """Settings of a detector: which losses count as those of another task.

    Attributes:
        memory: batches over which running mean and deviation of the loss reach back; at least 2.
        factor: a loss is suspicious if it is above the mean by more than so many deviations ...
        jump: ... and by more than this, in nats.
        patience: so many suspicious batches in a row are a switch; at least 1.
        warmup: the first batches of a task are never suspicious: the loss has yet to fall.
    """

    memory: int = 20
    factor: float = 4.0
    jump: float = 0.05
    patience: int = 3
    warmup: int = 20

    def __post_init__(self) -> None:
        for key, least in (("memory", 2), ("factor", 0), ("jump", 0), ("patience", 1), ("warmup", 1)):
            if not getattr(self, key) >= least:
                raise InputError(f"{key} must be at least {least}, not {getattr(self, key)}")


class LossDetector:
    """Detector of jumps that stay, in the losses of batches measured before they are learned from.

    Let m and v be the running mean and variance of the losses of the task so far, each moving by 1/``memory`` of the
    way per batch (by 1/n for the n-th while that is more). A loss above ``m + max(factor · √v, jump)`` is suspicious,
    and does not move m and v; ``patience`` of them in a row are a switch.

    Args:
        settings: bounds from which a loss is suspicious; None takes the defaults.

    Attributes:
        mean: m, the usual loss.
    """

    def __init__(self, settings: DetectorSettings | None = None) -> None:
        self.settings = settings or DetectorSettings()
        self.restart()

    def restart(self) -> None:
        """Forget all: a task begins that was never seen."""
        self.mean = self._variance = 0.0
        self._seen = self._suspicious = 0

    def resume(self, mean: float, deviation: float) -> None:
        """Go on with a task whose usual loss is known, without any warm-up."""
        self.mean, self._variance = mean, deviation**2
        self._seen, self._suspicious = max(self.settings.memory, self.settings.warmup), 0

    @property
    def deviation(self) -> float:
        """The usual deviation of the loss."""
        return float(self._variance**0.5)

    @property
    def limit(self) -> float:
        """Largest usual loss; a larger one is suspicious."""
        return usual_limit(self.mean, self.deviation, self.settings)

    def observe(self, loss: float) -> Surprise:
        """Say what a batch's loss means, in the order of the batches."""
        if self._seen >= self.settings.warmup and not loss <= self.limit:
            self._suspicious += 1
            return Surprise.SWITCH if self._suspicious >= self.settings.patience else Surprise.SUSPICIOUS
        self._suspicious = 0
        self._seen += 1
        step = 1.0 / min(self._seen, self.settings.memory)
        difference = loss - self.mean
        self.mean += step * difference
        self._variance = (1.0 - step) * (self._variance + step * difference**2)
        return Surprise.USUAL


def usual_limit(mean: float, deviation: float, settings: DetectorSettings) -> float:
    """Return the largest loss that is still usual for a task."""
    return mean + max(settings.factor * deviation, settings.jump)
