"""Quadratic penalty on all weights alike."""

from __future__ import annotations

from dataclasses import dataclass

from hatrack.methods.multi_head import AnchoredMethod
from hatrack.methods.proximal import PenaltySettings
from hatrack.streams import Task
from hatrack.support.ranges import require_nonnegative

__all__ = ["L2", "L2Settings"]


@dataclass(frozen=True)
class L2Settings(PenaltySettings):
    """Settings of L2.

    Attributes:
        strength: λ, chosen on validation samples of split CIFAR-10 and split Fashion-MNIST; the paper names none.
        penalty: proximal, a step that is bounded at any strength; or explicit, a term of the loss as in the paper.
    """

    strength: float = 0.01

    def __post_init__(self) -> None:
        require_nonnegative(self, "strength")


class L2(AnchoredMethod):
    """Penalises ``λ Σ (θ − θ*)²``, θ* being the weights after the task before: what DEN is compared with as DNN-L2.

    The penalties that weigh each weight by its importance (``ewc``, ``si``, ``mas``) are to be better than this one.
    """

    name = "l2"
    description = "a quadratic penalty that holds all weights alike"
    source = "Yoon et al., ICLR 2018 (DNN-L2)"
    settings_type = L2Settings

    def end_task(self, task: Task) -> None:
        """Tie all weights to what they are now."""
        self.hold()
