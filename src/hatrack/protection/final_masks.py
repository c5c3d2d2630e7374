"""Final masks of consolidated tasks and sums of their samples, which are no buffers, so that they are watched apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hatrack.masks.sums import TaskSums
from hatrack.masks.tasks import TaskState
from hatrack.protection.versions import stamp_of
from hatrack.state.comparing import is_same_tensor

__all__ = ["FinalMasks"]


class FinalMasks:
    """Masks and sums of consolidated tasks as they are now, by which they are put back.

    Loading the state of a task alone replaces them, past everything that watches over the network as a whole.

    Args:
        tasks: the consolidated tasks, with the names of their parts in the network.
    """

    def __init__(self, tasks: Iterable[tuple[str, TaskState]] = ()) -> None:
        self._tasks = {state.name: _OfTask(path, state) for path, state in tasks}

    def moved(self) -> list[str]:
        """Return the names of masks and sums that are not those that were recorded."""
        return [name for task in self._tasks.values() for name in task.moved()]

    def put_back(self, states: Iterable[TaskState] | None = None) -> list[str]:
        """Put masks and sums of tasks back where others lie in their places, or something wrote into them.

        Args:
            states: the tasks; all of them if None.

        Returns:
            The names of what had other bits.
        """
        wanted = self._tasks if states is None else dict.fromkeys(state.name for state in states)
        return [name for task in wanted if task in self._tasks for name in self._tasks[task].put_back()]


@dataclass(frozen=True)
class _Mask:
    """A tensor of a final mask; its stamp is that of when it had its saved bits."""

    tensor: Tensor
    saved: Tensor
    stamp: tuple[int, int]

    def is_touched(self, present: Tensor) -> bool:
        """Return whether another tensor lies in its place, or something has written into it."""
        return present is not self.tensor or stamp_of(present) != self.stamp

    def has_moved(self, present: Tensor) -> bool:
        """Return whether what lies in its place has other bits."""
        return not is_same_tensor(present, self.saved.to(present.device))


class _OfTask:
    """Masks and sums of one task."""

    def __init__(self, path: str, state: TaskState) -> None:
        self._path, self._state = path, state
        self._sums: TaskSums | None = state.sums
        self._masks = {name: _recorded(getattr(state, name)) for name in state.mask_names}

    def moved(self) -> list[str]:
        state, sums = self._state, self._state.sums
        found = [name for name, mask in self._masks.items() if mask.has_moved(getattr(state, name))]
        if sums is not self._sums and (sums is None or self._sums is None or not sums.is_same(self._sums)):
            found.append("sums")
        return [f"{self._path}.{name}" for name in found]

    def put_back(self) -> list[str]:
        state = self._state
        touched = [name for name, mask in self._masks.items() if mask.is_touched(getattr(state, name))]
        if not touched and state.sums is self._sums:
            return []
        moved = self.moved()
        for name in touched:
            mask = self._masks[name]
            present = getattr(state, name)
            if mask.has_moved(present):
                with torch.inference_mode(False):
                    present = mask.saved.to(present.device, copy=True)
                setattr(state, name, present)
            self._masks[name] = _Mask(present, mask.saved, stamp_of(present))
        state.sums = self._sums
        return moved


def _recorded(tensor: Tensor) -> _Mask:
    return _Mask(tensor, tensor.detach().clone(), stamp_of(tensor))
