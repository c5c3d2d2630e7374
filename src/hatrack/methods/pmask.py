"""PMASK: hard attention on parameters."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from hatrack.functional import Compensation
from hatrack.growth.policy import Growth
from hatrack.masks import ElasticWeights, Embedding, FreeWeights
from hatrack.methods.at_once import at_once
from hatrack.methods.base import Batch, Earlier, EpochPlan, Loss, Setup
from hatrack.methods.importance import Fisher, fisher_diagonal
from hatrack.methods.late_cost import Onset
from hatrack.methods.masked import Room, WeightMaskedMethod, growth_of
from hatrack.methods.proximal import Penalty, proximal_step, require_step_sizes
from hatrack.methods.turning import TurningSettings
from hatrack.streams import Task
from hatrack.support.ranges import require_nonnegative, require_range

__all__ = ["PMASK", "PMASKSettings"]


@dataclass(frozen=True)
class PMASKSettings(TurningSettings):
    """Settings of PMASK: those of HAT, with weights in the place of units.

    Attributes:
        s_max: largest scale of the gates.
        c: weight of the regulariser, how few weights a task has to get by with. Where embeddings learn faster by
            themselves (``embedding_lr_factor`` None, with Adam), it sets in between 20 and 60 % of the epochs.
        embedding_lr_factor: how much faster embeddings learn than weights. None is 1 with SGD. With Adam it is as much,
            1 to 50, as lets embeddings cross half of their range in the steps of all epochs, and weight decay leaves
            them alone.
        compensation: arithmetic of the embedding's gradient: exact, float32 (as the code of HAT's authors), or none.
        ewc: λ of elastic weight consolidation: above 0 used weights are no longer held bit for bit, but drawn back the
            more, the more they mattered to earlier tasks (``λ/2 Σ F (θ − θ*)²``). Then old tasks drift, and new ones
            find room.
        ewc_penalty: proximal, a step that is bounded at any λ; or explicit, a term of the loss.
        ewc_fisher: how F is estimated, under the task's mask: sampled, true, or a twentieth of these: batches, authors.
        capacity: fixed, or grow: layers that are nearly full get more units before a task begins.
        growth_threshold: a layer grows when fewer of its weights are free than this share of its original units has.
        growth_share: by how large a share of its original width.
    """

    s_max: float = 400.0
    c: float = 0.75
    embedding_lr_factor: float | None = None
    compensation: Compensation = Compensation.EXACT
    ewc: float = 0.0
    ewc_penalty: Penalty = Penalty.PROXIMAL
    ewc_fisher: Fisher = Fisher.SAMPLED
    capacity: Room = Room.FIXED
    growth_threshold: float = 0.2
    growth_share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "s_max", above=0)
        require_nonnegative(self, "ewc")
        if self.embedding_lr_factor is not None:
            require_range(self, "embedding_lr_factor", above=0)
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
    earlier = Earlier(
        {"embedding_lr_factor": 1.0},
        before=Earlier({"ewc_penalty": Penalty.EXPLICIT, "embedding_lr_factor": 1.0}),
    )
    training = MappingProxyType({"optimizer": "adam", "lr": 0.001})

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self._share = 1.0

    @property
    def embedding_lr_factor(self) -> float | None:
        """Factor of the embeddings' learning rate, by the settings."""
        return self.settings.embedding_lr_factor

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
        """Return the task's loss, what the masks cost, and what it costs elastic weights to move.

        The last is left out while gradients are recorded, where a proximal step stands for it.
        """
        loss, explicit = super().loss(batch), self.settings.ewc_penalty is Penalty.EXPLICIT
        if not self.settings.ewc or (torch.is_grad_enabled() and not explicit):
            return loss
        return loss.plus(self.network.penalty())

    def protect(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Keep what earlier tasks rely on; with ``ewc``, draw weights back after every step of the optimizer.

        Raises:
            InputError: the penalty is proximal, and the optimizer is not SGD, Adam or AdamW.
        """
        if self.settings.ewc and self.settings.ewc_penalty is Penalty.PROXIMAL:
            require_step_sizes(optimizer)
            optimizer.register_step_post_hook(lambda stepped, *_: self.draw_back(stepped))
        return super().protect(optimizer)

    def draw_back(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the proximal step of elastic weights that belongs to a step of the optimizer; none in the first task."""
        network, penalty = self.network, self.network.quadratic_penalty
        if penalty is None or not network.tasks.consolidated:
            return
        weights = {name: network.backbone.get_parameter(name) for name in penalty.anchors}
        proximal_step(optimizer, weights, penalty.anchors, penalty.importance, self.settings.ewc / 2)

    @at_once(
        lambda method: () if method.network.quadratic_penalty is None else method.network.quadratic_penalty.buffers()
    )
    def end_task(self, task: Task) -> None:
        """Consolidate the task; with ``ewc``, measure under its mask what its weights matter to it."""
        super().end_task(task)
        if self.settings.ewc:
            generator = self.setup.generator("fisher", task.name)
            self.network.anchor(fisher_diagonal(self.network, task, self.settings.ewc_fisher, generator))

    def begin_epoch(self, epoch: int, epochs: int, samples: Batch) -> EpochPlan:
        """Have the regulariser set in where embeddings learn fast, or masks are gone before weights have learned."""
        fast = self.embedding_lr_factor is None and self.pace is not None and self.pace.adaptive
        self._share = Onset.of(epochs).share(epoch) if fast else 1.0
        return super().begin_epoch(epoch, epochs, samples)

    def strength(self) -> float:
        """Return the c of HAT's Eq. 4, the weight of the share of free weights a task takes; whole in validation."""
        return self.settings.c * (self._share if self.network.training else 1.0)
