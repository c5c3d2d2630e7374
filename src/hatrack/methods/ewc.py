"""Elastic weight consolidation."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType

from hatrack.methods.at_once import at_once
from hatrack.methods.base import Earlier
from hatrack.methods.importance import Fisher, added, averaged, fisher_diagonal
from hatrack.methods.multi_head import AnchoredMethod
from hatrack.methods.proximal import Penalty, PenaltySettings
from hatrack.streams import Task
from hatrack.support.ranges import require_range

__all__ = ["EWC", "Consolidation", "EWCSettings"]


class Consolidation(enum.Enum):
    """Rule by which the importance of several tasks becomes one; both tie the weights to those after the last task."""

    MEAN = "mean"
    """The mean of the tasks' Fisher diagonals, as in the HAT authors' code."""

    ONLINE = "online"
    """``F ← γ F + F_task`` (Schwarz et al., "Progress & Compress", ICML 2018)."""


@dataclass(frozen=True)
class EWCSettings(PenaltySettings):
    """Settings of EWC.

    Attributes:
        strength: λ; the HAT paper's 5000 goes with ``fisher=authors``.
        fisher: estimate of the Fisher information: sample by sample with sampled labels, or true ones; or over batches
            of 20, about a twentieth of these: batches, or authors (with dropout on, as in the HAT authors' code).
        consolidation: mean over the tasks (the HAT authors' code), or online.
        gamma: γ of online; 1 forgets no task, smaller ones let old tasks fade.
        penalty: proximal; or explicit, a term of the loss as in the paper, whose steps grow without bound where the
            learning rate times λ times the Fisher exceeds 2.
    """

    strength: float = 5000.0
    fisher: Fisher = Fisher.SAMPLED
    consolidation: Consolidation = Consolidation.MEAN
    gamma: float = 1.0

    def __post_init__(self) -> None:
        require_range(self, "gamma", least=0, most=1)


class EWC(AnchoredMethod):
    """Penalises ``λ/2 Σ F (θ − θ*)²`` (Kirkpatrick et al., Eq. 3), F being the diagonal of the Fisher information."""

    name = "ewc"
    description = "elastic weight consolidation: weights that mattered to earlier tasks move less, by their Fisher"
    source = "Kirkpatrick et al., PNAS 2017"
    capturable = True
    settings_type = EWCSettings
    training = MappingProxyType({"clip_norm": 100.0})
    earlier = Earlier({"penalty": Penalty.EXPLICIT, "fisher": Fisher.BATCHES}, {})
    grid = MappingProxyType({"strength": (500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0)})

    def scale(self) -> float:
        """Return λ/2."""
        return super().scale() / 2

    @at_once()
    def end_task(self, task: Task) -> None:
        """Measure what the task's weights matter to it, and merge that with earlier tasks."""
        generator = self.setup.generator("fisher", task.name)
        fisher = fisher_diagonal(self.network, task, self.settings.fisher, generator)
        if self.settings.consolidation is Consolidation.ONLINE:
            faded = {name: self.settings.gamma * old for name, old in self.importance.items()}
            self.hold(added(faded, fisher))
        else:
            self.hold(averaged(self.importance, fisher, len(self.network.task_names)))
