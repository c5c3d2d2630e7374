"""Fine-tuning that keeps everything but the heads, and fine-tuning that keeps nothing."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hatrack.methods.multi_head import MultiHeadMethod
from hatrack.streams import Task

__all__ = ["SGDFrozen", "SGDRestart"]


class SGDFrozen(MultiHeadMethod):
    """Trains the whole network on the first task, and only a new head on each other one: nothing can be forgotten.

    Batch norms are frozen with the backbone, statistics included. Dropout goes on, as in the HAT authors' code.
    """

    name = "sgd-frozen"
    description = "the features of the first task for all others, which train only a head"
    source = "baseline SGD-F of Serrà et al., ICML 2018"
    capturable = True

    @property
    def _frozen(self) -> bool:
        return len(self.network.task_names) > 1

    def begin_task(self, task: Task) -> None:
        """Open the task's head; from the second task on, freeze everything else."""
        super().begin_task(task)
        if self._frozen:
            self.network.requires_grad_(False)
            self.network.head(task.name).requires_grad_(True)

    def train_mode(self, mode: bool) -> None:
        """Switch modes, but for frozen batch norms."""
        super().train_mode(mode)
        if self._frozen:
            for module in self.network.modules():
                if isinstance(module, _NormBase):
                    module.eval()

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return all parameters, and from the second task on those of the new head."""
        return list(self.network.heads[-1].parameters()) if self._frozen else super().trained_parameters()


class SGDRestart(MultiHeadMethod):
    """Starts every task with the initial weights again: the backbone forgets all, and only heads are kept."""

    name = "sgd-restart"
    description = "a backbone that starts from its initial weights at each task, everything but heads forgotten"
    source = "a baseline of the code of Serrà et al., ICML 2018"
    capturable = True

    def begin_task(self, task: Task) -> None:
        """Take a fresh backbone, keep the heads, and open the task's own."""
        before = self.network
        self.network = self.new_network()
        self.network.heads, self.network.task_names = before.heads, before.task_names
        super().begin_task(task)
