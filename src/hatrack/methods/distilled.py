"""Methods that compare the network in training with what it was before the task."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from hatrack.methods.base import Batch, Loss, Setup
from hatrack.methods.multi_head import MultiHeadMethod, MultiHeadNetwork
from hatrack.streams import Task

__all__ = ["DistilledMethod"]


class DistilledMethod(MultiHeadMethod):
    """Keeps a frozen copy of the network from before the task.

    Attributes:
        old: that copy, in evaluation mode; None in the first task.
    """

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.old: MultiHeadNetwork | None = None

    def begin_task(self, task: Task) -> None:
        """Copy the network, and open the task's head."""
        if self.network.task_names:
            self.old = self.network.frozen_copy()
        super().begin_task(task)

    def loss(self, batch: Batch) -> Loss:
        """Return the cross-entropy, and from the second task on the distance from the old network, too."""
        if self.old is None:
            return super().loss(batch)
        features, old_features = self.both_features(batch.x, self.old)
        logits = self.network.head(batch.tasks[0])(features)
        penalty = self.settings.strength * self.distance(self.old, features, old_features)
        return Loss.cross_entropy(logits, batch.y).plus(penalty)

    def both_features(self, x: Tensor, old: MultiHeadNetwork) -> tuple[Tensor, Tensor]:
        """Return features ``(N, F)`` of both backbones, those of the old one without gradient."""
        with torch.no_grad():
            old_features = old.backbone(x)
        return self.network.backbone(x), old_features

    @abc.abstractmethod
    def distance(self, old: MultiHeadNetwork, features: Tensor, old_features: Tensor) -> Tensor:
        """Return how far the network has gone from the old one on a batch of new samples, a scalar.

        Args:
            old: the old network.
            features: what the backbone gives, ``(N, F)``.
            old_features: what the old backbone gives, of the same shape and without gradient.
        """
