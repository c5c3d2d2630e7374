"""Cost of a mask that sets in once its task has begun to be learned."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hatrack.methods.base import Batch

__all__ = ["Fall", "Onset"]

C_SHARES, C_EPOCHS = (0.2, 0.6), (10, 25)
"""Shares of all epochs between which the regulariser sets in, and the epochs by which it does so at the latest.

With a learning rate that falls after 5 epochs without progress a training ends after 30 epochs at the earliest.
"""


class Onset(NamedTuple):
    """Epochs between which a regulariser grows from nothing to its whole weight."""

    first: float
    last: float

    @classmethod
    def of(cls, epochs: float) -> Onset:
        """Return the onset in a training of so many epochs."""
        return cls(*(min(share * epochs, most) for share, most in zip(C_SHARES, C_EPOCHS, strict=True)))

    @property
    def middle(self) -> float:
        """Number of epochs from which the regulariser counts as whole, on average."""
        return (self.first + self.last) / 2

    def share(self, epoch: int) -> float:
        """Return the share of its weight in an epoch, counted from 1; 0 to 1."""
        return _between(epoch, self.first, self.last)

    def share_at_least(self, epoch: int, epochs: int) -> float:
        """Return the least share of its weight in an epoch, however little was learned; 0 to 1.

        It grows from nothing at the end of the onset to 1 in the last epoch: a task that cannot be learned would
        otherwise keep all units.

        Args:
            epoch: counted from 1.
            epochs: number of epochs in which the regulariser counts.
        """
        return _between(epoch, self.last, epochs)


def _between(epoch: float, first: float, last: float) -> float:
    """Return the part of the way from the first to the last epoch, 0 to 1."""
    return min(max((epoch - first) / max(last - first, 1.0), 0.0), 1.0)


class Fall(NamedTuple):
    """Fall of a task's training loss from where it began, which tells how far the task has been learned.

    Attributes:
        highest: the loss of answering 0 to every sample, for classes the logarithm of their number, or that of the
            first epoch if it is higher.
        least: the least mean loss of an epoch; infinite before the first.
    """

    highest: float
    least: float = math.inf

    @classmethod
    def before(cls, samples: Batch, num_classes: int | None) -> Fall:
        """Return the state before the first epoch.

        Args:
            samples: all training samples of one task.
            num_classes: number of its classes, for samples that do not say what their targets mean; None with a head of
                one's own, whose samples say it.
        """
        if not samples.objectives:
            assert num_classes is not None
            return cls(math.log(num_classes))
        (objective,) = samples.objectives
        return cls(
            float(objective.loss(torch.zeros(len(samples), objective.outputs, device=samples.y.device), samples.y))
        )

    def after(self, loss: float) -> Fall:
        """Return the state after one more epoch, of this mean loss."""
        highest = max(self.highest, loss) if math.isinf(self.least) else self.highest
        return Fall(highest, min(self.least, loss))

    @property
    def share(self) -> float:
        """Share of the highest loss that is gone: 0 before the first epoch, 1 where nothing is left."""
        return min(max(1.0 - self.least / self.highest, 0.0), 1.0) if self.highest > 0 else 1.0

    def to_tensor(self) -> Tensor:
        """Return both numbers, float64 ``(2,)``."""
        return torch.tensor(self, dtype=torch.float64)

    @classmethod
    def from_tensor(cls, numbers: Tensor) -> Fall:
        """Return what :meth:`to_tensor` was made of."""
        return cls(*numbers.tolist())
