"""Cache of the mask of the task that was asked last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

__all__ = ["MaskCache"]

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
