"""Heads, the layers that turn features into a task's logits, and the check of what a backbone gives them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hatrack.errors import InputError

__all__ = ["linear_head", "require_features"]


def linear_head(features: int, num_classes: int, generator: torch.Generator | None = None) -> nn.Linear:
    """Make a linear layer with torch's usual initialisation, U(−1/√F, 1/√F).

    Args:
        features: number of inputs, F.
        num_classes: number of outputs.
        generator: source of randomness on the CPU; None takes torch's global one.
    """
    layer = nn.Linear(features, num_classes, device="meta")  # which draws nothing from torch's global generator
    bound = features**-0.5 if features else 0.0
    layer.weight = nn.Parameter(torch.empty(num_classes, features).uniform_(-bound, bound, generator=generator))
    layer.bias = nn.Parameter(torch.empty(num_classes).uniform_(-bound, bound, generator=generator))
    return layer


def require_features(output: object) -> Tensor:
    """Check that a backbone's result is a batch of features.

    Args:
        output: the result.

    Returns:
        The result, features ``(N, F)``.

    Raises:
        InputError: it is something else.
    """
    if isinstance(output, Tensor) and output.dim() == 2:
        return output
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise InputError(
        f"the backbone must map a batch to features (N, F), and gave {found}; "
        "leave out its last layer, since every task brings a head of its own, and flatten what is left"
    )
