"""Cost of a mask that sets in once its task has begun to be learned."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Onset"]

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
        return min(max((epoch - self.first) / max(self.last - self.first, 1.0), 0.0), 1.0)
