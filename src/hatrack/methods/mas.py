"""Memory aware synapses."""

from __future__ import annotations

from dataclasses import dataclass

from hatrack.methods.at_once import at_once
from hatrack.methods.base import Earlier
from hatrack.methods.importance import added, output_sensitivity
from hatrack.methods.multi_head import AnchoredMethod
from hatrack.methods.proximal import Penalty, PenaltySettings
from hatrack.streams import Task

__all__ = ["MAS", "MASSettings"]


@dataclass(frozen=True)
class MASSettings(PenaltySettings):
    """Settings of MAS.

    Attributes:
        strength: λ; the authors' code has 1, and says that object recognition used that. No search is known. The
            squared length of the output is a sum over classes, so that importance, and with it what λ means, grows with
            their number.
        penalty: proximal, a step that is bounded at any strength; or explicit, a term of the loss as in the paper.
    """

    strength: float = 1.0


class MAS(AnchoredMethod):
    """Penalises ``λ Σ Ω (θ − θ*)²`` (Aljundi et al.).

    Ω is the mean over a task's samples of the size of the gradient of the squared length of the output, without labels,
    and is summed over tasks. Sizes are taken sample by sample, as the paper says; the authors' code does so only when
    asked, and takes the size of the gradient of a batch of 200, divided by 200, otherwise, which is smaller.
    """

    name = "mas"
    description = "memory aware synapses: weights that the outputs were sensitive to move less"
    source = "Aljundi et al., ECCV 2018"
    capturable = True
    settings_type = MASSettings
    earlier = Earlier({"penalty": Penalty.EXPLICIT})

    @at_once()
    def end_task(self, task: Task) -> None:
        """Measure the sensitivity of the task's outputs, and add it to that of earlier tasks."""
        self.hold(added(self.importance, output_sensitivity(self.network, task)))
