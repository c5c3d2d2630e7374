"""Conditioning of weights: how far consolidated tasks freeze the weights that they use, and the elastic penalty."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor, nn

from hatrack.errors import InputError
from hatrack.functional import quadratic_distance

__all__ = ["ElasticWeights", "FreeWeights", "NoWeights", "QuadraticPenalty", "WeightConditioning", "union"]


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
    :meth:`hatrack.WeightMaskedNetwork.penalty` and :meth:`hatrack.WeightMaskedNetwork.anchor`.

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


class QuadraticPenalty(nn.Module):
    """Anchor of every weight after the last task, and the importance of each of its entries for the tasks so far.

    Importance adds up over tasks, so that a weight which one task of many relies on costs as much as at first
    (Schwarz et al., ICML 2018, with γ = 1); the anchor is the last task's alone.

    Args:
        weights: the weights by name; moving them costs nothing before the first call of :meth:`anchor`.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = tuple(weights)
        for index, weight in enumerate(weights.values()):
            self.register_buffer(f"importance_{index}", torch.zeros_like(weight.detach()))
            self.register_buffer(f"anchor_{index}", weight.detach().clone())

    @property
    def importance(self) -> dict[str, Tensor]:
        """Importance of every entry, at least 0, by the weights' names."""
        return {name: self.get_buffer(f"importance_{index}") for index, name in enumerate(self._names)}

    @property
    def anchors(self) -> dict[str, Tensor]:
        """Values of the weights when they were last anchored, by their names."""
        return {name: self.get_buffer(f"anchor_{index}") for index, name in enumerate(self._names)}

    def distance(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return ``Σ F (θ − θ*)²`` over all weights, a scalar."""
        return quadratic_distance(weights, self.anchors, self.importance)

    @torch.no_grad()
    def anchor(self, weights: Mapping[str, Tensor], importance: Mapping[str, Tensor]) -> None:
        """Anchor the weights where they are now, and add one more task's importance of their entries.

        Args:
            weights: the weights by name.
            importance: importance of their entries for the task, at least 0, by the same names.
        """
        for name, anchor in self.anchors.items():
            anchor.copy_(weights[name])
            self.importance[name].add_(importance[name])

    def buffers_of(self, name: str) -> tuple[str, str]:
        """Return the names of the buffers that hold a weight's importance and its anchor."""
        index = self._names.index(name)
        return f"importance_{index}", f"anchor_{index}"

    @torch.no_grad()
    def release(self, weights: Mapping[str, Tensor], where: Mapping[str, Tensor]) -> None:
        """Release some entries: they move at no cost, and their old values are erased.

        Args:
            weights: the weights by name.
            where: booleans of their shapes by the same names, True for entries to release; weights missing here keep
                all anchors.
        """
        for name, entries in where.items():
            self.importance[name].masked_fill_(entries, 0.0)
            self.anchors[name].copy_(torch.where(entries, weights[name], self.anchors[name]))
