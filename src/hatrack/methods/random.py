"""Guessing: what an accuracy is to be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.methods.base import Batch, Loss, Method, Setup
from hatrack.protection.frozen import digest
from hatrack.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from hatrack.streams import Task
from hatrack.support.names import look_up

__all__ = ["Random"]

FORMAT = "hatrack.Random"


class Random(Method):
    """Guesses a class with the frequency that it has in training (the stratified random classifier of Eq. 6).

    Logits are the logarithm of the frequencies plus Gumbel noise, whose largest entry is a draw from them. The noise
    depends on the samples alone, so that the same batch gets the same guess again.
    """

    name = "random"
    description = "guessing by the class frequencies of the training set"
    source = "lower bound of Serrà et al., ICML 2018"
    trains = False

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self._frequencies: dict[str, Tensor] = {}

    def begin_task(self, task: Task) -> None:
        """Count the classes."""
        counts = torch.bincount(task.train.labels, minlength=task.num_classes)
        self._frequencies[task.name] = counts / counts.sum()

    def loss(self, batch: Batch) -> Loss:
        """Refuse: there is nothing to train."""
        raise TypeError("random guessing has nothing to train")

    def predict(self, x: Tensor, task: str) -> Tensor:
        """Draw one class per sample."""
        frequencies = look_up("task", task, self._frequencies)
        generator = self.setup.generator("guess", task, digest({"x": x}))
        uniform = torch.rand(len(x), len(frequencies), generator=generator).clamp_(1e-12, 1 - 1e-7)
        return (frequencies.clamp_min(1e-12).log() - (-uniform.log()).log()).to(x.device)

    def trained_modules(self) -> Sequence[nn.Module]:
        """Return none: nothing is trained."""
        return []

    def save(self, path: Path) -> None:
        """Write the frequencies."""
        description = {"format": FORMAT, "tasks": list(self._frequencies)}
        write_checkpoint(path, Checkpoint(self._frequencies, description))

    def load(self, path: Path) -> tuple[str, ...]:
        """Read the frequencies."""
        checkpoint = read_checkpoint(path, FORMAT)
        self._frequencies = {name: checkpoint.tensors[name] for name in checkpoint.description["tasks"]}
        return tuple(self._frequencies)
