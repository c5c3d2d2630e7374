"""PMASK: hard attention on parameters."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from hatrack.functional import Compensation
from hatrack.growth.policy import Growth
from hatrack.masks import ElasticWeights, Embedding, FreeWeights
from hatrack.methods.base import Batch, Loss
from hatrack.methods.importance import Fisher, fisher_diagonal
from hatrack.methods.masked import Room, WeightMaskedMethod, growth_of
from hatrack.streams import Task
from hatrack.support.ranges import require_nonnegative, require_range

__all__ = ["PMASK", "PMASKSettings"]


@dataclass(frozen=True)
class PMASKSettings:
    """Settings of PMASK: those of HAT, with weights in the place of units.

    Attributes:
        s_max: largest scale of the gates.
        c: weight of the regulariser, how few weights a task has to get by with.
        compensation: arithmetic of the embedding's gradient: exact, float32 (as the code of HAT's authors), or none.
        ewc: λ of elastic weight consolidation: above 0 used weights are no longer held bit for bit, but drawn back the
            more, the more they mattered to earlier tasks (``λ/2 Σ F (θ − θ*)²``). Then old tasks drift, and new ones
            find room.
        ewc_fisher: how F is estimated, under the task's mask: sampled, true, or batches (about a twentieth of these).
        capacity: fixed, or grow: layers that are nearly full get more units before a task begins.
        growth_threshold: a layer grows when fewer of its weights are free than this share of its original units has.
        growth_share: by how large a share of its original width.
    """

    s_max: float = 400.0
    c: float = 0.75
    compensation: Compensation = Compensation.EXACT
    ewc: float = 0.0
    ewc_fisher: Fisher = Fisher.SAMPLED
    capacity: Room = Room.FIXED
    growth_threshold: float = 0.2
    growth_share: float = 0.25

    def __post_init__(self) -> None:
        require_range(self, "s_max", above=0)
        require_nonnegative(self, "ewc")
        growth_of(self)


class PMASK(WeightMaskedMethod):
    """Learns an embedding per weight and task; layers compute with ``σ(s E) ⊙ W``, and used weights are held.

    Its source names two things to combine it with: elastic weight consolidation of shared weights, ``ewc``, and
    expanding the network, ``capacity=grow``.
    """

    name = "pmask"
    description = "hard attention on parameters: a mask of weights per task, learned as HAT learns its mask of units"
    source = "Raskoti and Ghimire"
    settings_type = PMASKSettings
    settings: PMASKSettings
    training = MappingProxyType({"optimizer": "adam", "lr": 0.001})

    def source_of_masks(self) -> Embedding:
        """Return an embedding, annealed and compensated as in HAT."""
        return Embedding(self.settings.s_max, self.settings.compensation)

    def conditioning(self) -> FreeWeights | ElasticWeights:
        """Return that used weights are frozen; or, with ``ewc``, drawn back to where they were."""
        return ElasticWeights(self.settings.ewc) if self.settings.ewc else FreeWeights()

    def growth(self) -> Growth | None:
        """Return when layers are widened, if they are to be at all."""
        return growth_of(self.settings)

    def loss(self, batch: Batch) -> Loss:
        """Return the task's loss, what the masks cost, and what it costs elastic weights to move."""
        loss = super().loss(batch)
        return loss.plus(self.network.penalty()) if self.settings.ewc else loss

    def end_task(self, task: Task) -> None:
        """Consolidate the task; with ``ewc``, measure under its mask what its weights matter to it."""
        super().end_task(task)
        if self.settings.ewc:
            generator = self.setup.generator("fisher", task.name)
            self.network.tie(fisher_diagonal(self.network, task, self.settings.ewc_fisher, generator))

    def strength(self) -> float:
        """Return the c of HAT's Eq. 4, the weight of the share of free weights that the task takes."""
        return self.settings.c
