"""Linear heads, the layers that turn features into a task's logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.support.compilers import start_compilers_inside
from hatrack.support.parameters import DRAWN

__all__ = ["apply_head", "linear_head", "pad_classes"]


def linear_head(features: int, num_classes: int, generator: torch.Generator | None = None) -> nn.Linear:
    """Make a linear layer of float32 with torch's usual initialisation, U(−1/√F, 1/√F).

    Args:
        features: number of inputs, F.
        num_classes: number of outputs.
        generator: source of randomness on the CPU; None takes torch's global one.
    """
    layer = nn.Linear(features, num_classes, device="meta")  # which draws nothing from torch's global generator
    bound = features**-0.5 if features else 0.0
    weight, bias = (torch.empty(shape, dtype=DRAWN) for shape in ((num_classes, features), (num_classes,)))
    layer.weight = nn.Parameter(weight.uniform_(-bound, bound, generator=generator))
    layer.bias = nn.Parameter(bias.uniform_(-bound, bound, generator=generator))
    return layer


def apply_head(head: nn.Linear, features: Tensor, axis: int = -1) -> Tensor:
    """Return logits of features.

    Args:
        head: the layer.
        features: features, with F of them along one axis.
        axis: that axis, along which the logits have the classes.
    """
    if axis == -1:
        return F.linear(features, head.weight, head.bias)
    return F.linear(features.movedim(axis, -1), head.weight, head.bias).movedim(-1, axis)


start_compilers_inside(apply_head)


def pad_classes(logits: Tensor, missing: int, axis: int = -1) -> Tensor:
    """Return logits with −inf behind the last class.

    Args:
        logits: logits, with classes along one axis.
        missing: number of classes to add.
        axis: that axis.
    """
    behind = -axis - 1 if axis < 0 else logits.dim() - axis - 1
    return F.pad(logits, (*(0, 0) * behind, 0, missing), value=float("-inf"))
