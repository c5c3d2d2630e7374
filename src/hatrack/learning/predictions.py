"""Predictions of classes, of numbers and of several labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

__all__ = ["LabelPrediction", "NumberPrediction", "Prediction"]


@dataclass(frozen=True)
class Prediction:
    """Predictions of classes for N samples.

    Attributes:
        tasks: task of each sample, named by the caller or recognised.
        classes: name of each sample's likeliest class.
        probabilities: probability of each sample's class given its task, in [0, 1], ``(N,)``.
        distribution: probabilities of all classes of its task, ``(N, most classes)``, 0 behind its last one.
    """

    tasks: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: Tensor
    distribution: Tensor

    def numpy(self) -> dict[str, np.ndarray]:
        """Return the attributes as NumPy arrays, by name."""
        return {
            "tasks": np.array(self.tasks, dtype=np.str_),
            "classes": np.array(self.classes, dtype=np.str_),
            "probabilities": self.probabilities.numpy(),
            "distribution": self.distribution.numpy(),
        }


@dataclass(frozen=True)
class NumberPrediction:
    """Predictions of numbers for N samples.

    Attributes:
        task: task that was named.
        columns: names of the K columns.
        values: the numbers in the columns' own units, float64 ``(N, K)``.
    """

    task: str
    columns: tuple[str, ...]
    values: Tensor

    def numpy(self) -> dict[str, np.ndarray]:
        """Return the numbers as NumPy arrays ``(N,)``, by column."""
        return {name: self.values[:, column].numpy() for column, name in enumerate(self.columns)}


@dataclass(frozen=True)
class LabelPrediction:
    """Predictions of several labels for N samples.

    Attributes:
        task: task that was named.
        labels: names of the labels of each sample: those of a probability above one half.
        probabilities: probability of every label, in [0, 1], ``(N, L)``.
        names: names of the L labels.
    """

    task: str
    labels: tuple[tuple[str, ...], ...]
    probabilities: Tensor
    names: tuple[str, ...]

    def numpy(self) -> dict[str, np.ndarray]:
        """Return the probabilities as NumPy arrays ``(N,)``, by label."""
        return {name: self.probabilities[:, label].numpy() for label, name in enumerate(self.names)}
