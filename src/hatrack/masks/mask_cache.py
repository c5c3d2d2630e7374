"""Caches of the mask of the task that was asked last, and of the cost of masks in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

__all__ = ["CostCache", "MaskCache"]

MaskT = TypeVar("MaskT")


class MaskCache(Generic[MaskT]):
    """Cache of one unpacked mask, which is unpacked anew when its bits are others or have changed."""

    def __init__(self) -> None:
        self._known: tuple[Tensor, int, MaskT] | None = None

    def of(self, packed: Tensor, unpack: Callable[[], MaskT]) -> MaskT:
        """Return a mask.

        Args:
            packed: its bits.
            unpack: unpacks them, if that is needed.
        """
        if packed.is_inference():  # which has no count of changes
            return unpack()
        known = self._known
        if known is None or known[0] is not packed or known[1] != packed._version:
            known = self._known = (packed, packed._version, unpack())
        return known[2]

    def clear(self) -> None:
        """Drop the mask."""
        self._known = None


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
