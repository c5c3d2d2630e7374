"""Values of a labelled run that share memory, and get other labels when one of them is written to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hatrack.state.tryouts import memory_of
from hatrack.units.trace import Trace

__all__ = ["Views"]


class Views:
    """Record of the values of a run that share memory with another one.

    Args:
        trace: the labels of all values.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._views: dict[int, list[Tensor]] = {}  # by their memory

    def note(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Record values that share memory with another one, and change when that is written to."""
        by_itself = [value for value in outputs if not any(value is each for each in inputs)]
        given = {memory_of(value): value for value in inputs} if by_itself else {}
        for value in by_itself:
            if (memory := memory_of(value)) in given:
                views = self._views.setdefault(memory, [given[memory]])
                views += [each for each in (given[memory], value) if not any(each is view for view in views)]

    def write_to(self, value: Tensor) -> bool:
        """Label all values that have the same memory as one that was written to; return whether that can be done."""
        others = [view for view in self._views.get(memory_of(value), ()) if view is not value]
        if any(isinstance(view, nn.Parameter) or view.element_size() != value.element_size() for view in others):
            return False
        for view in others:
            where, its = _places(value), _places(view)
            written = torch.full((1 + max(int(each.max()) for each in (where, its) if each.numel()),), -1)
            written[where.flatten()] = self._trace.labels(value).flatten()
            labels = torch.where(written[its] < 0, self._trace.labels(view), written[its])
            self._trace.remember(view, labels, always=True)
            self._trace.sources.remember(view, None, cleared=False)
            self._trace.sources.remember_behind(view, None)
        return True


def _places(value: Tensor) -> Tensor:
    """Return the places of a value's entries in its memory."""
    size = value.untyped_storage().nbytes() // value.element_size()
    return torch.arange(size).as_strided(value.shape, value.stride(), value.storage_offset())
