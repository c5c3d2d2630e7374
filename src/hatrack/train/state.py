"""Everything that the rest of a training depends on: how it goes back to the best epoch, and goes on after a crash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hatrack.methods import Method, Schedule
from hatrack.storage.checkpoint import part_of
from hatrack.train.settings import LearningRateDecay, TrainingSettings

__all__ = ["BestEpoch", "Place", "TrainingState"]


@dataclass(frozen=True)
class Place:
    """Place in a training.

    Attributes:
        phase: the part of the training, from 0; see :meth:`hatrack.methods.Method.phases`.
        epochs: epochs made in that part.
        best_loss: the lowest validation loss in that part, or before it where the method says so; infinite before any.
        patience: how many more epochs without a better one until the learning rate falls.
        lr: the schedule's learning rate.
        ended: whether that part is over.
    """

    phase: int
    epochs: int
    best_loss: float
    patience: int
    lr: float
    ended: bool = False

    @property
    def schedule(self) -> Schedule:
        """Position in the learning-rate schedule."""
        return Schedule(self.lr, self.patience, self.best_loss)

    def after_epoch(self, valid_loss: float, settings: TrainingSettings, *, counts: bool, epochs: int) -> Place:
        """Return the place after one more epoch.

        Args:
            valid_loss: its validation loss.
            settings: the schedule.
            counts: whether it counts towards a lower learning rate, if it was not the best.
            epochs: largest number of epochs of the part.
        """
        made = replace(self, epochs=self.epochs + 1, ended=self.epochs + 1 == epochs)
        if valid_loss < self.best_loss:
            return replace(made, best_loss=valid_loss, patience=settings.lr_patience)
        if not counts or settings.lr_decay is not LearningRateDecay.PLATEAU:
            return made
        if self.patience > 1:
            return replace(made, patience=self.patience - 1)
        lr = self.lr / settings.lr_factor
        return replace(made, lr=lr, patience=settings.lr_patience, ended=made.ended or lr < settings.lr_min)


@dataclass(frozen=True)
class TrainingState:
    """State of a training between two epochs.

    Attributes:
        place: how far it is.
        tensors: what the method, the best epoch and the optimizer hold, by names that begin with ``method.``, ``best.``
            and ``optimizer.``.
    """

    place: Place
    tensors: Mapping[str, Tensor]


class BestEpoch:
    """A copy of everything in training, to go back to the best epoch.

    Args:
        method: the method, in training.
        saved: tensors of an earlier snapshot of the same training, if there was one; see :meth:`tensors`.
    """

    def __init__(self, method: Method, saved: Mapping[str, Tensor]) -> None:
        self._live = [*method.trained_parameters(), *method.trained_buffers()]
        kept = part_of(saved, "best.")
        self._kept = [kept[str(index)].to(live.device) for index, live in enumerate(self._live) if kept]

    def take(self) -> None:
        """Keep everything as it is now."""
        self._kept = [tensor.detach().clone() for tensor in self._live]

    def restore(self) -> None:
        """Go back to what was kept."""
        with torch.no_grad():
            for live, kept in zip(self._live, self._kept, strict=False):  # nothing was kept if no epoch was made
                live.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that were kept, by names."""
        return {f"best.{index}": kept for index, kept in enumerate(self._kept)}
