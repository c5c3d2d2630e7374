"""Spots: a few frozen entries of every tensor, whose bits show writes that torch does not count.

Training loops of others write through ``.data`` and NumPy: averages that are copied into a network, weights that are
clamped. Comparing all entries in every call would take as long as the answer; comparing some of each tensor takes some
ten microseconds, and a write to whole tensors moves some of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from hatrack.protection.frozen import Backup, FrozenEntries

__all__ = ["Spots"]

_LENGTH = 64
"""Number of entries of a spot, which lie side by side."""

_TRIED = 64
"""Number of places at which a frozen entry is looked for."""


class _Spot(NamedTuple):
    """Entries of one tensor, as integers.

    Attributes:
        tensor: the tensor.
        address: where its values lay.
        now: view of its entries.
        chosen: −1 where they are frozen, 0 elsewhere.
        saved: their saved values, 0 where they are not frozen.
    """

    tensor: Tensor
    address: int
    now: Tensor
    chosen: Tensor
    saved: Tensor

    @classmethod
    def of(cls, tensor: Tensor, record: FrozenEntries | Backup) -> _Spot | None:
        """Return the spot of a tensor; None where it has none, as on devices that would have to be waited for."""
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.is_quantized:
            return None
        if not tensor.is_contiguous():
            return None
        found = record.spot(_TRIED, _LENGTH)
        if found is None or tensor.shape != record.shape:
            return None
        start, chosen, saved = found
        now = tensor.detach().view(-1)[start : start + len(chosen)].view(chosen.dtype)
        return cls(tensor, tensor.data_ptr(), now, chosen, saved)


class Spots:
    """Spots of tensors, which are compared in one go.

    Args:
        watched: the tensors, with the records of their frozen entries.
    """

    def __init__(self, watched: Iterable[tuple[Tensor, FrozenEntries | Backup]]) -> None:
        found = [spot for spot in (_Spot.of(tensor, record) for tensor, record in watched) if spot is not None]
        self._places = [(spot.tensor, spot.address) for spot in found]
        self._groups = [
            (
                [spot.now for spot in group],
                torch.cat([spot.chosen for spot in group]),
                torch.cat([spot.saved for spot in group]),
            )
            for dtype in dict.fromkeys(spot.chosen.dtype for spot in found)
            if (group := [spot for spot in found if spot.chosen.dtype is dtype])
        ]

    def are_elsewhere(self) -> bool:
        """Return whether values of some tensor lie elsewhere by now, so that its spot shows nothing of them.

        Where they lay stays taken as long as there are spots of it.
        """
        return any(tensor.data_ptr() != address for tensor, address in self._places)

    def have_moved(self) -> bool:
        """Return whether a frozen entry of any spot has other bits than were saved."""
        return any(not torch.equal(torch.cat(now) & chosen, saved) for now, chosen, saved in self._groups)
