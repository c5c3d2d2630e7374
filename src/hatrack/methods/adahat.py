"""Adaptive hard attention to the task."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from hatrack.errors import InputError
from hatrack.functional import Conditioning
from hatrack.methods.base import Earlier
from hatrack.methods.hat import HAT, PAPER_C, HATSettings, InitialEmbedding, MaskSchedule
from hatrack.protection.conditioning import Adaptive, AdaptiveScaling, UnitConditioning

__all__ = ["AdaHAT", "AdaHATSettings"]


@dataclass(frozen=True)
class AdaHATSettings(HATSettings):
    """Settings of AdaHAT: those of HAT, and how far weights in use may move, with the authors' values.

    They go with Adam at 0.001, as in the authors' configuration, which is therefore how the method trains: Adam undoes
    most of a factor on gradients that stays the same.

    Attributes:
        alpha: α, above 0: how much moves at all; the larger, the more is learned, and forgotten.
        epsilon: ε, above 0: bounds the rate of tasks that take next to none of a layer's free units.
        schedule: of the mask, as for HAT; the authors' is the paper's.
        embedding_lr_factor: how much faster embeddings learn than weights; 1 for the authors.
        scaled: gradients (the authors), or steps, which with Adam and the authors' α leaves next to nothing of them.
    """

    alpha: float = 1e-6
    epsilon: float = 0.1
    scaled: AdaptiveScaling = AdaptiveScaling.GRADIENTS
    schedule: MaskSchedule = MaskSchedule.PAPER
    embedding_lr_factor: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        Adaptive(self.alpha, self.epsilon)
        if self.keep != 1.0 or self.conditioning is not Conditioning.CUMULATIVE:
            raise InputError("adahat holds weights in its own way: leave keep and conditioning as they are")


class AdaHAT(HAT):
    """HAT whose weights in use move a little, the less the more tasks use them: room for tasks when all is taken."""

    name = "adahat"
    description = "HAT that gives way: weights in use move the less, the more tasks use them"
    source = "Wang et al., ECML PKDD 2024"
    capturable = False
    settings_type = AdaHATSettings
    settings: AdaHATSettings
    training = MappingProxyType({"optimizer": "adam", "lr": 0.001})
    earlier = Earlier({"c": PAPER_C, "embedding": InitialEmbedding.NORMAL, "scaled": AdaptiveScaling.STEPS}, {})

    def conditioning(self) -> UnitConditioning:
        """Return a conditioning that lets weights move, the less the more tasks use them."""
        return Adaptive(self.settings.alpha, self.settings.epsilon, self.settings.scaled)
