"""Position of batches within the epoch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeVar

from hatrack.functional import batch_progress

__all__ = ["with_progress"]

BatchT = TypeVar("BatchT")


def with_progress(batches: Collection[BatchT]) -> Iterator[tuple[float, BatchT]]:
    """Iterate over the batches of an epoch with their positions, as :meth:`hatrack.HATNetwork.anneal` needs them.

    Args:
        batches: iterable with a length, such as a :class:`torch.utils.data.DataLoader`.

    Yields:
        The position, 0 for the first batch and 1 for the last (1 for a single one), and the batch.
    """
    for index, batch in enumerate(batches):
        yield batch_progress(index, len(batches)), batch
