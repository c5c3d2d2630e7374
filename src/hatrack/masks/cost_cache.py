"""Cache of the regularization cost of masks in training, from the forward pass until the loss asks for it."""

from __future__ import annotations

from torch import Tensor

__all__ = ["CostCache"]


class CostCache:
    """Cost of the masks in training, computed by the last forward pass together with its gradient."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._cost: Tensor | None = None

    def __reduce__(self) -> tuple[type[CostCache], tuple[()]]:
        """Return an empty cache for copies: a tensor in the middle of a graph cannot be copied."""
        return CostCache, ()

    def keep(self, key: tuple[object, ...], cost: Tensor | None) -> None:
        """Store a cost.

        Args:
            key: everything that the cost depends on.
            cost: a scalar; None where the forward pass computed none.
        """
        self._key, self._cost = key, cost

    def of(self, key: tuple[object, ...]) -> Tensor | None:
        """Return the cost that was stored for a key; None if there is none."""
        return self._cost if key == self._key else None
