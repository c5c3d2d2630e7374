"""How far consolidated tasks hold the weights that their masks let through."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hatrack.errors import InputError

__all__ = ["ElasticWeights", "FreeWeights", "NoWeights", "WeightConditioning", "union"]


def union(masks: Sequence[Tensor], weight: Tensor) -> Tensor:
    """The entries of a weight that any of the masks lets through, booleans of its shape."""
    used = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    for mask in masks:
        used = used | mask
    return used


class WeightConditioning(abc.ABC):
    """What of a weight later tasks may still change.

    Attributes:
        kind: what files call it.
        trains_weights: whether tasks train weights at all, or choose among them only.
    """

    kind: ClassVar[str]
    trains_weights: ClassVar[bool] = True

    @abc.abstractmethod
    def attention(self, masks: Sequence[Tensor], weight: Tensor) -> Tensor:
        """How much of every entry is held: what a gradient is multiplied by is 1 minus that, and 1 keeps every bit.

        Args:
            masks: the consolidated tasks' masks of the weight, booleans of its shape.
            weight: the weight.

        Returns:
            Booleans, or numbers in [0, 1], of the weight's shape.
        """


@dataclass(frozen=True)
class FreeWeights(WeightConditioning):
    """Tasks train the weights that no consolidated task uses: ``1 − A^{≤t}`` of each gradient passes."""

    kind = "free-weights"

    def attention(self, masks: Sequence[Tensor], weight: Tensor) -> Tensor:
        """The cumulative mask."""
        return union(masks, weight)


@dataclass(frozen=True)
class NoWeights(WeightConditioning):
    """Weights stay what they are from the start; tasks learn which of them to use."""

    kind = "no-weights"
    trains_weights = False

    def attention(self, masks: Sequence[Tensor], weight: Tensor) -> Tensor:
        """Everything."""
        return torch.ones(weight.shape, dtype=torch.bool, device=weight.device)


@dataclass(frozen=True)
class ElasticWeights(WeightConditioning):
    """All weights stay free, and none is held bit for bit: tasks drift, the less the more a weight mattered to them.

    What holds is a penalty to be added to the loss, ``λ/2 Σ F (θ − θ*)²`` (elastic weight consolidation, Kirkpatrick et
    al., PNAS 2017, Eq. 3): θ* are the weights after the last task, F how much each mattered to the tasks so far. See
    :meth:`hatrack.WeightMaskedNetwork.penalty` and :meth:`hatrack.WeightMaskedNetwork.tie`.

    Attributes:
        strength: λ, at least 0; with 0 nothing is held at all.
    """

    kind = "elastic-weights"

    strength: float = 5000.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength < float("inf"):
            raise InputError(f"the strength of elastic weights must be at least 0 and finite, not {self.strength}")

    def attention(self, masks: Sequence[Tensor], weight: Tensor) -> Tensor:
        """Nothing."""
        return torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
