"""Contrast: features of a class drawn together and pushed away from those of others, before a head is trained."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hatrack.functional import supervised_contrast
from hatrack.support.heads import linear_head

__all__ = ["LENGTH", "TEMPERATURE", "Projection", "Standard", "contrast_epochs", "contrast_of_turns"]

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
        """Make the projection of a backbone's features: two dense layers without biases, and ReLU between them.

        A bias would outweigh features that are small at first, so that all samples looked alike; without any, the
        direction of a projection does not depend on the scale of features.

        Args:
            features: number of features, those of all turns together.
            turns: number of turns.
            generator: draws the weights, on the CPU.
        """
        each = features // turns
        hidden, out = (linear_head(each, outputs, generator) for outputs in (each, PROJECTED))
        for layer in (hidden, out):
            layer.register_parameter("bias", None)
        return cls(nn.Sequential(OrderedDict(hidden=hidden, relu=nn.ReLU(), out=out)), turns)


def contrast_of_turns(projection: Projection, features: Tensor, y: Tensor) -> Tensor:
    """Return the contrast of a batch, in which every class in every turn is a class, a scalar.

    Features are taken from their mean over the batch: at first they all point into nearly the same direction, that of
    the mean, and at a small temperature nothing would be learned from what is left.

    Args:
        projection: the projection.
        features: features of the samples, turn by turn and divided by the number of turns, ``(N, R F)``.
        y: their classes, int64 ``(N,)``.
    """
    turns = projection.turns
    each = turns * features.reshape(len(y) * turns, -1)
    labels = turns * y.unsqueeze(1) + torch.arange(turns, device=y.device)
    projected = projection.module(each - each.mean(0))
    with torch.autocast(y.device.type, enabled=False):  # similarities over a small temperature need their digits
        return supervised_contrast(projected, labels.flatten(), TEMPERATURE)


LENGTH = 2.0
"""Length of standardised features of a turn, in the mean of squares; larger ones make steps of SGD unstable."""


@dataclass(frozen=True)
class Standard:
    """Standardisation of features under which a head is trained alone, since contrast leaves features of any scale.

    Attributes:
        mean: mean of the features, ``(R F,)``.
        scale: factor by which what is left is longer than :data:`LENGTH`, a scalar above 0.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, features: Tensor, turns: int) -> Standard:
        """Measure it on features of training samples, ``(N, R F)``, those of R turns divided by R."""
        mean = features.mean(0)
        squares = (features - mean).square().sum(1).mean() * turns  # those of one turn, times R, at their own scale
        return cls(mean, (squares.sqrt() / LENGTH).clamp_min(torch.finfo(features.dtype).eps))

    def __call__(self, features: Tensor) -> Tensor:
        """Return standardised features."""
        return (features - self.mean) / self.scale

    @torch.no_grad()
    def fold_into(self, head: nn.Linear) -> None:
        """Give a head that was trained on standardised features the weights that say the same of others."""
        head.weight.div_(self.scale)
        head.bias.sub_(head.weight @ self.mean)
