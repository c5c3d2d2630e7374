"""Heads: the layer that turns features into a task's logits."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["linear_head"]


def linear_head(features: int, num_classes: int, generator: torch.Generator | None = None) -> nn.Linear:
    """A linear layer with torch's usual initialisation, U(−1/√F, 1/√F), from an explicit source of randomness.

    Args:
        features: number of inputs, F.
        num_classes: number of outputs.
        generator: on the CPU; torch's global one if left out.
    """
    layer = nn.Linear(features, num_classes, device="meta")  # which draws nothing from torch's global generator
    bound = features**-0.5 if features else 0.0
    layer.weight = nn.Parameter(torch.empty(num_classes, features).uniform_(-bound, bound, generator=generator))
    layer.bias = nn.Parameter(torch.empty(num_classes).uniform_(-bound, bound, generator=generator))
    return layer
