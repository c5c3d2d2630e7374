"""Guessing: what a score is to be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hatrack.methods.base import Batch, Loss, Method, Setup
from hatrack.objectives import Classification, Objective, objective_from_json
from hatrack.protection.frozen import digest
from hatrack.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from hatrack.streams import Task
from hatrack.support.names import look_up

__all__ = ["Random"]

FORMAT = "hatrack.Random"


class Random(Method):
    """Guesses a class with the frequency that it has in training (the stratified random classifier of Eq. 6).

    Logits are the logarithm of the frequencies plus Gumbel noise, whose largest entry is a draw from them. The noise
    depends on the samples alone, so that the same batch gets the same guess again. Labels of a task with several are
    guessed each with its frequency; for numbers, which the paper has none of, the guess is the mean of the training
    samples, the best there is without a look at a sample.
    """

    name = "random"
    description = "guessing by the class frequencies of the training set"
    source = "lower bound of Serrà et al., ICML 2018"
    trains = False

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self._frequencies: dict[str, Tensor] = {}
        self._objectives: dict[str, Objective] = {}

    def begin_task(self, task: Task) -> None:
        """Count the classes."""
        self._open(task.objective, task.name, task.objective.guesses(task.train.labels))

    def give_up(self, task: str) -> None:
        """Remove the task's frequencies."""
        self._frequencies.pop(task, None)
        self._objectives.pop(task, None)

    def loss(self, batch: Batch) -> Loss:
        """Refuse: there is nothing to train.

        Raises:
            TypeError: always.
        """
        raise TypeError("random guessing has nothing to train")

    def predict(self, x: Tensor, task: str) -> Tensor:
        """Draw one class per sample, or what else there is to guess."""
        frequencies = look_up("task", task, self._frequencies)
        generator = self.setup.generator("guess", task, digest({"x": x}))
        return self._objectives[task].guessed(frequencies, len(x), generator).to(x.device)

    def _open(self, objective: Objective, name: str, frequencies: Tensor) -> None:
        self._objectives[name], self._frequencies[name] = objective, frequencies

    def trained_modules(self) -> Sequence[nn.Module]:
        """Return none: nothing is trained."""
        return []

    def save(self, path: Path) -> None:
        """Write the frequencies."""
        others = {n: o.to_json() for n, o in self._objectives.items() if not isinstance(o, Classification)}
        described = {"objectives": others} if others else {}
        description = {"format": FORMAT, "tasks": list(self._frequencies), **described}
        write_checkpoint(path, Checkpoint(self._frequencies, description))

    def load(self, path: Path) -> tuple[str, ...]:
        """Read the frequencies."""
        checkpoint = read_checkpoint(path, FORMAT)
        others = checkpoint.description.get("objectives", {})
        for name in checkpoint.description["tasks"]:
            frequencies = checkpoint.tensors[name]
            classes = Classification(tuple(map(str, range(len(frequencies)))))
            self._open(objective_from_json(others[name]) if name in others else classes, name, frequencies)
        return tuple(self._frequencies)
