"""Dark experience replay: the logits of remembered samples are kept, too."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.methods.base import Batch, Loss
from hatrack.methods.memory import RehearsalMethod, RehearsalSettings
from hatrack.streams import Task

__all__ = ["DERPP", "DERPPSettings", "logit_distance"]


@dataclass(frozen=True)
class DERPPSettings(RehearsalSettings):
    """Settings of DER++, with the weights that its authors' code has for CIFAR-10 in 5 tasks and 500 samples.

    The grid holds the values that the code lists as best for one data set and memory or another.

    Attributes:
        memory: samples to remember, of all tasks together.
        replay: remembered samples per step, for each of the two terms: as many as there are new ones in a batch of 64.
            The authors' code has 32 of both.
        alpha: weight of the distance between the logits then and now, a mean over samples and classes. The authors' one
            head takes the mean over the classes of all tasks, a head per task over those of one.
        beta: weight of the remembered samples' cross-entropy; 0 is DER.
    """

    alpha: float = 0.2
    beta: float = 0.5


def logit_distance(now: Tensor, then: Tensor) -> Tensor:
    """Return the mean squared difference between logits ``(N, C)``, over the classes that a sample's task has.

    Args:
        now: logits, −inf behind the last class of a sample's task.
        then: what they were; anything behind the last class.
    """
    there = now > float("-inf")
    return (now[there] - then[there]).square().mean()


class DERPP(RehearsalMethod):
    """Cross-entropy of new samples and, times β, remembered ones; times α, the distance of remembered logits (Eq. 6).

    Samples are offered to the reservoir in every training step, with the logits that the network gives them then. The
    two terms draw from the memory independently.
    """

    name = "derpp"
    description = "dark experience replay++: keep the logits of remembered samples near what they were"
    source = "Buzzega et al., NeurIPS 2020"
    settings_type = DERPPSettings
    grid = MappingProxyType({"alpha": (0.1, 0.2, 0.5, 1.0), "beta": (0.5, 1.0)})

    def begin_task(self, task: Task) -> None:
        """Open the task's head; make room for its logits."""
        super().begin_task(task)
        kept = self.memory.columns.get("logits")
        if kept is not None and kept.shape[1] < self._widest:
            self.memory.columns["logits"] = F.pad(kept, (0, self._widest - kept.shape[1]))

    @property
    def _widest(self) -> int:
        return max(self.network.num_classes(name) for name in self.network.task_names)

    def loss(self, batch: Batch) -> Loss:
        """Return the loss, and offer the samples of a training step to the memory."""
        loss = super().loss(batch)
        if torch.is_grad_enabled():
            self._remember(batch, loss.logits)
        return loss

    def rehearsed_loss(self, batch: Batch) -> Loss:
        """Return the sum of the three terms."""
        dark, plain = (self.memory.draw(self.settings.replay, self.drawing) for _ in range(2))
        new, of_dark, of_plain = self.logits_of(batch, dark, plain)
        loss = Loss(F.cross_entropy(new, batch.y), new).plus(
            self.settings.alpha * logit_distance(of_dark, dark["logits"])
        )
        return loss.plus(self.settings.beta * F.cross_entropy(of_plain, plain["y"]))

    def _remember(self, batch: Batch, logits: Tensor) -> None:
        names = self.network.task_names
        own = logits.detach()[:, : self.network.num_classes(names[-1])]
        columns = {
            "x": batch.x,
            "y": batch.y,
            "task": torch.full_like(batch.y, len(names) - 1),
            "logits": F.pad(own, (0, self._widest - own.shape[1])),
        }
        self.memory.add(columns, self.offering)
