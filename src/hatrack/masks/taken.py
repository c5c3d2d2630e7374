"""What masks in training take of the free weights, kept from the forward pass until the loss asks for it."""

from __future__ import annotations

from torch import Tensor

__all__ = ["Taken"]


class Taken:
    """What the masks in training took in the last pass, with its gradient; copies of a network begin without."""

    def __init__(self) -> None:
        self._moment: tuple[object, ...] | None = None
        self._taken: Tensor | None = None

    def __reduce__(self) -> tuple[type[Taken], tuple[()]]:
        """A tensor in the middle of a graph cannot be copied, and need not be."""
        return Taken, ()

    def keep(self, moment: tuple[object, ...], taken: Tensor | None) -> None:
        """Keep what was taken.

        Args:
            moment: all that it depends on.
            taken: a scalar; None where it was not counted.
        """
        self._moment, self._taken = moment, taken

    def of(self, moment: tuple[object, ...]) -> Tensor | None:
        """What was taken, if it is that of this moment and was counted."""
        return self._taken if moment == self._moment else None
