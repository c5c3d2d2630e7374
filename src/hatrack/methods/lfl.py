"""Less-forgetting learning."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from hatrack.methods.base import Earlier
from hatrack.methods.multi_head import DistilledMethod, MultiHeadNetwork

__all__ = ["LFL", "LFLSettings"]


@dataclass(frozen=True)
class LFLSettings:
    """Settings of LFL, with the value that the HAT paper chose.

    Attributes:
        strength: λ, the weight of the features' distance, which is a mean over samples here. The HAT authors' code sums
            over a batch of 64, so that its 0.05 is 3.2 here; a sum would weigh validation, in larger batches, otherwise
            than training.
        matched_dropout: whether features of the old network are dropped as those of the new one are. False compares
            dropped features with whole ones, as the HAT authors' code does: that pulls features to where no network
            ever was, and forgets more than no penalty at all (see the measured comparison).
    """

    strength: float = 0.05
    matched_dropout: bool = True


class LFL(DistilledMethod):
    """Adds ``λ/2 ‖f_old(x) − f(x)‖²`` to the loss, f being the features that the heads read (Jung et al.).

    The boundaries between the classes of old tasks, their heads, are frozen; the new task has a head of its own.
    """

    name = "lfl"
    description = "less-forgetting learning: features of new data stay near those of the old network"
    source = "Jung et al., 2016 (arXiv:1607.00122)"
    settings_type = LFLSettings
    training = MappingProxyType({"clip_norm": 200.0})
    earlier = Earlier(training={})
    grid = MappingProxyType({"strength": (1e-1, 5e-2, 1e-2, 5e-3, 1e-3, 5e-4, 1e-4, 5e-5)})

    def distance(self, old: MultiHeadNetwork, features: Tensor, old_features: Tensor) -> Tensor:
        """Return half the squared distance of the features, averaged over samples; old heads get no gradient."""
        return (features - old_features).square().sum(dim=1).mean() / 2
