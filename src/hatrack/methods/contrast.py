"""Contrast: features of a class drawn together and pushed away from those of others, before a head is trained."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hatrack.functional import supervised_contrast
from hatrack.support.heads import linear_head

__all__ = ["TEMPERATURE", "Projection", "contrast_epochs", "contrast_of_turns"]

TEMPERATURE = 0.07
"""Temperature of the contrast, that of CLOM."""

PROJECTED = 128
"""Length of projections, as in the paper of Khosla et al."""


def contrast_epochs(share: float, epochs: int) -> int:
    """Return the epochs of contrast: a share of all, at least one, and one is left; none if there is only one."""
    return min(max(round(share * epochs), 1), epochs - 1) if share else 0


@dataclass(frozen=True)
class Projection:
    """Projection that contrast looks at, which is dropped afterwards.

    Attributes:
        module: maps features of one turn to projections.
        turns: number of turns side by side in a backbone's features; 1 where pictures are not turned.
    """

    module: nn.Module
    turns: int

    @classmethod
    def of(cls, features: int, turns: int, generator: torch.Generator) -> Projection:
        """Make the projection of a backbone's features: two dense layers with ReLU between them.

        Args:
            features: number of features, those of all turns together.
            turns: number of turns.
            generator: draws the weights, on the CPU.
        """
        each = features // turns
        layers = OrderedDict(
            hidden=linear_head(each, each, generator), relu=nn.ReLU(), out=linear_head(each, PROJECTED, generator)
        )
        return cls(nn.Sequential(layers), turns)


def contrast_of_turns(projection: Projection, features: Tensor, y: Tensor) -> Tensor:
    """Return the contrast of a batch, in which every class in every turn is a class, a scalar.

    Args:
        projection: the projection.
        features: features of the samples, turn by turn and divided by the number of turns, ``(N, R F)``.
        y: their classes, int64 ``(N,)``.
    """
    turns = projection.turns
    each = turns * features.reshape(len(y) * turns, -1)
    labels = turns * y.unsqueeze(1) + torch.arange(turns, device=y.device)
    return supervised_contrast(projection.module(each), labels.flatten(), TEMPERATURE)
