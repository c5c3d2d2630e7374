"""How far consolidated tasks hold the weights that their masks let through."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["FreeWeights", "NoWeights", "WeightConditioning", "union"]


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
