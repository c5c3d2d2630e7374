"""Plain L2: all weights stay near those of the task before."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from hatrack.methods.multi_head import AnchoredMethod
from hatrack.methods.proximal import PenaltySettings
from hatrack.streams import Task

__all__ = ["L2", "L2Settings"]


@dataclass(frozen=True)
class L2Settings(PenaltySettings):
    """Settings of L2.

    Attributes:
        strength: weight of the squared distance from the weights of the task before; chosen on validation samples.
        penalty: proximal, a step that is bounded at any strength; or explicit, a term of the loss as in the paper.
    """

    strength: float = 1.0


class L2(AnchoredMethod):
    """Penalises ``strength · ‖θ − θ*‖²`` from the second task on, θ* being the weights of the task before."""

    name = "l2"
    description = "plain L2: all weights stay near those of the task before"
    source = "a baseline of Kirkpatrick et al., PNAS 2017, and of Yoon et al., ICLR 2018 (DNN-L2)"
    capturable = True
    settings_type = L2Settings
    grid = MappingProxyType({"strength": (0.01, 0.1, 1.0, 10.0)})

    def end_task(self, task: Task) -> None:
        """Tie the weights to what they are now."""
        self.hold()
