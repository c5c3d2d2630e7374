"""Writes through ``.data`` that nothing puts back, for tests of what frozen entries are for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from hatrack.protection.spots import Spots

__all__ = ["without_spots"]


@contextmanager
def without_spots() -> Iterator[None]:
    """While this lasts, no spots of tensors are compared, as on a GPU."""
    with patch.object(Spots, "have_moved", lambda _: False):
        yield
