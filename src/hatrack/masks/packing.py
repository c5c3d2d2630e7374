"""Packing of masks into bits, eight entries per byte, and caches of an unpacked mask and of the cost of masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["CostCache", "MaskCache", "bytes_for", "move_along", "pack", "unpack"]


def bytes_for(entries: int) -> int:
    """Return the number of bytes for a number of entries."""
    return -(-entries // 8)


def pack(mask: Tensor) -> Tensor:
    """Pack booleans into bits.

    Args:
        mask: booleans of any shape.

    Returns:
        uint8, ``(⌈entries / 8⌉,)``: entry i is bit ``i mod 8``, counted from the lowest, of byte ``⌊i / 8⌋``; bits
        behind the last entry are 0.
    """
    flat = mask.flatten()
    padded = flat.new_zeros(8 * bytes_for(len(flat)))
    padded[: len(flat)] = flat
    bits = padded.view(-1, 8).to(torch.uint8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpack the booleans that :func:`pack` packed.

    Args:
        packed: uint8, as :func:`pack` gives it.
        shape: shape of the mask.

    Raises:
        ValueError: the number of bytes is not the one for that shape.
    """
    entries = torch.Size(shape).numel()
    if len(packed) != bytes_for(entries):
        raise ValueError(f"{entries} entries take {bytes_for(entries)} bytes, not {len(packed)}")
    bits = packed.unsqueeze(1) & (1 << torch.arange(8, dtype=torch.uint8, device=packed.device))
    return (bits != 0).flatten()[:entries].view(torch.Size(shape))


def move_along(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """Move a tensor that is not a buffer along with its module: bits and indices change their device alone.

    Args:
        tensor: bits, indices, or numbers; the latter are converted like a buffer.
        fn: the function that moves the module's parameters.
    """
    result = fn(tensor)
    return result if tensor.is_floating_point() else tensor.to(result.device)


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
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return unpack()  # what is captured twice is the same code, and nothing of it stays here
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
