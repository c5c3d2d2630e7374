"""Joint training: all tasks so far at once, what no method that sees one task at a time is expected to beat."""

from __future__ import annotations

from collections.abc import Sequence

from hatrack.methods.multi_head import MultiHeadMethod
from hatrack.streams import Task

__all__ = ["Joint"]


class Joint(MultiHeadMethod):
    """Trains a fresh network on tasks 1 to t together, for every t."""

    name = "joint"
    description = "joint training: a fresh network on the data of all tasks so far, for every new task"
    source = "upper bound of Serrà et al., ICML 2018"
    capturable = True

    def begin_task(self, task: Task) -> None:
        """Start anew, with the same initial weights and the same heads."""
        before = self.network
        self.network = self.new_network()
        for name in before.task_names:
            self.open(name, before.num_classes(name))
        super().begin_task(task)

    def training_tasks(self, seen: Sequence[Task]) -> Sequence[Task]:
        """Return all tasks so far."""
        return seen
