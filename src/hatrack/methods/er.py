"""Experience replay."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hatrack.methods.at_once import at_once
from hatrack.methods.base import Batch, Loss
from hatrack.methods.memory import RehearsalMethod
from hatrack.streams import Task

__all__ = ["ER"]


class ER(RehearsalMethod):
    """The mean cross-entropy over the new samples and some of a reservoir of earlier tasks' samples.

    A step takes as many remembered samples as the paper does: as many as there are new ones in a batch of 64. A task's
    training samples are offered to the reservoir once, in random order, when the task is learned.
    """

    name = "er"
    description = "experience replay: learn some samples of earlier tasks, drawn from a small memory, again"
    source = 'Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019'

    def rehearsed_loss(self, batch: Batch) -> Loss:
        """Return the cross-entropy of new and remembered samples together."""
        rows = self.memory.draw(self.settings.replay, self.drawing)
        new, old = self.logits_of(batch, rows)
        return Loss(F.cross_entropy(torch.cat([new, old]), torch.cat([batch.y, rows["y"]])), new)

    @at_once()
    def end_task(self, task: Task) -> None:
        """Offer the task's training samples to the memory."""
        x, y = task.train.load()
        order = torch.randperm(len(y), generator=self.offering)
        number = torch.full_like(y, len(self.network.task_names) - 1)
        columns = {"x": x[order], "y": y[order], "task": number}
        memory = self.memory.copy()
        memory.add({key: value.to(self.setup.device) for key, value in columns.items()}, self.offering)
        self.memory = memory
        super().end_task(task)
