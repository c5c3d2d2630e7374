"""Keeping decoded images, so that a data set that is slow to decode is decoded once.

A kept file is used only if it is whole (its checksum is verified) and was made of this very source in this very way;
otherwise it is made again. There is one per data set and form, so a changed source replaces it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hatrack.data.arrays import ImageArrays
from hatrack.errors import CheckpointError
from hatrack.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

__all__ = ["FORMAT", "Decoded", "prepared"]

FORMAT = "hatrack.PreparedImages"


class Decoded(NamedTuple):
    """The arrays of a data set, and the digest of what they were decoded from."""

    arrays: ImageArrays
    digest: str


def prepared(path: Path, key: str, decode: Callable[[], Decoded]) -> Decoded:
    """Return what ``decode`` gives, from the file at ``path`` if that was made of the same.

    Args:
        path: the kept file; written, if that is possible, when it is missing, damaged or of another key.
        key: tells apart all that could be decoded, and all ways of decoding it.
        decode: does the work.

    Raises:
        DataError: as ``decode`` raises it; nothing is written then.
    """
    kept = _read(path, key)
    if kept is not None:
        return kept
    decoded = decode()
    description = {"format": FORMAT, "key": key, "digest": decoded.digest}
    with contextlib.suppress(CheckpointError):  # a cache that cannot be written costs time, nothing else
        write_checkpoint(path, Checkpoint(decoded.arrays._asdict(), description))
    return decoded


def _read(path: Path, key: str) -> Decoded | None:
    """Return the arrays that the file holds, or None if it is of no use."""
    try:
        kept = read_checkpoint(path, FORMAT)
    except CheckpointError:
        return None
    if kept.description.get("key") != key or set(kept.tensors) != set(ImageArrays._fields):
        return None
    return Decoded(ImageArrays(**kept.tensors), str(kept.description.get("digest")))
