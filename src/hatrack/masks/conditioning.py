"""Conditioning of weights: how far consolidated tasks freeze the weights that they use."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from hatrack.errors import InputError

__all__ = ["ElasticWeights", "FreeWeights", "NoWeights", "WeightConditioning", "union"]


def union(masks: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Return the entries of a weight that any mask uses.

    Args:
        masks: booleans of the weight's shape; there may be none.
        weight: the weight.

    Returns:
        Booleans of the weight's shape.
    """
    return reduce(torch.logical_or, masks, torch.zeros_like(weight, dtype=torch.bool))


class WeightConditioning(abc.ABC):
    """Rule for which entries of a weight later tasks may still change.

    Attributes:
        kind: its name in files.
        trains_weights: whether tasks train weights, or only choose among them.
    """

    kind: ClassVar[str]
    trains_weights: ClassVar[bool] = True

    @abc.abstractmethod
    def attention(self, masks: Sequence[Tensor], weight: Tensor) -> Tensor:
        """Return how far every entry is frozen; gradients are multiplied by 1 minus that, and at 1 no bit changes.

        Args:
            masks: the consolidated tasks' masks of the weight, booleans of its shape.
            weight: the weight.

        Returns:
            Booleans, or numbers in [0, 1], of the weight's shape.
        """


@dataclass(frozen=True)
class FreeWeights(WeightConditioning):
    """Conditioning that trains the weights that no consolidated task uses: ``1 − A^{≤t}`` of each gradient passes."""

    kind = "free-weights"

    def attention(self, masks: Sequence[Tensor], weight: Tensor) -> Tensor:
        """Freeze what any consolidated task uses: the cumulative mask."""
        return union(masks, weight)


@dataclass(frozen=True)
class NoWeights(WeightConditioning):
    """Conditioning that never trains weights; tasks learn which of them to use."""

    kind = "no-weights"
    trains_weights = False

    def attention(self, masks: Sequence[Tensor], weight: Tensor) -> Tensor:
        """Freeze every entry."""
        return torch.ones_like(weight, dtype=torch.bool)


@dataclass(frozen=True)
class ElasticWeights(WeightConditioning):
    """Conditioning that freezes no weight: old tasks drift, though weights that mattered to them move less.

    A penalty is added to the loss instead, ``λ/2 Σ F (θ − θ*)²`` (elastic weight consolidation, Kirkpatrick et al.,
    PNAS 2017, Eq. 3): θ* are the weights after the last task, F their importance for the tasks so far. See
    :meth:`hatrack.WeightMaskedNetwork.penalty` and :meth:`hatrack.WeightMaskedNetwork.tie`.

    Attributes:
        strength: λ, at least 0; with 0 weights move freely.
    """

    kind = "elastic-weights"

    strength: float = 5000.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength < float("inf"):
            raise InputError(f"the strength of elastic weights must be at least 0 and finite, not {self.strength}")

    def attention(self, masks: Sequence[Tensor], weight: Tensor) -> Tensor:
        """Freeze no entry."""
        return torch.zeros_like(weight, dtype=torch.bool)
