"""Batches with their position in the epoch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeVar

from hatrack.functional import batch_progress

__all__ = ["with_progress"]

BatchT = TypeVar("BatchT")


def with_progress(batches: Collection[BatchT]) -> Iterator[tuple[float, BatchT]]:
    """Go through the batches of an epoch, each with its position in it, as :meth:`hatrack.HATNetwork.anneal` needs it.

    Args:
        batches: anything that has a length and can be gone through, such as a :class:`torch.utils.data.DataLoader`.

    Yields:
        The position, 0 for the first batch and 1 for the last (1 for a single one), and the batch.
    """
    for index, batch in enumerate(batches):
        yield batch_progress(index, len(batches)), batch
