"""The samples of a training, on the device where it happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hatrack.methods import Batch
from hatrack.streams import Split, Task

__all__ = ["Samples"]


@dataclass(frozen=True)
class Samples:
    """The samples of one or several tasks, on the training device."""

    x: Tensor
    y: Tensor
    task_of: Tensor
    tasks: tuple[str, ...]

    @classmethod
    def of(cls, tasks: Sequence[Task], splits: Sequence[Split], device: torch.device) -> Samples:
        """All samples of one split of each task."""
        loaded = [split.load() for split in splits]
        x = loaded[0][0] if len(loaded) == 1 else torch.cat([x for x, _ in loaded])
        y = torch.cat([y for _, y in loaded])
        task_of = torch.cat([torch.full((len(y),), index) for index, (_, y) in enumerate(loaded)])
        return cls(x.to(device), y.to(device), task_of.to(device), tuple(task.name for task in tasks))

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor | slice, progress: float) -> Batch:
        """Some of the samples."""
        return Batch(self.x[rows], self.y[rows], self.tasks, self.task_of[rows], progress)

    def step(self, rows: Tensor, progress: float) -> Batch:
        """The samples of a training step, which know their rows."""
        return replace(self.batch(rows, progress), rows=rows)
