"""Parameters: their types, and lists of them divided by which they are and not by their values."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["DRAWN", "divided", "type_of_choice"]

DRAWN = torch.float32
"""Type that initial values are drawn in, whatever torch's default type is: the same seed gives the same values."""


def type_of_choice(weights: torch.dtype) -> torch.dtype:
    """Return the type of what a mask is learned by: that of the weights, but float32 where these have fewer digits.

    Small steps of an optimizer would be lost in them.

    Args:
        weights: type of the weights that the mask is about.
    """
    return torch.promote_types(torch.zeros((), dtype=weights).abs().dtype, torch.float32)


def divided(
    parameters: Iterable[nn.Parameter], apart: Iterable[Tensor]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return those of the parameters that are not among others, and those that are, each in their order."""
    chosen = {id(tensor) for tensor in apart}
    rest: list[nn.Parameter] = []
    found: list[nn.Parameter] = []
    for parameter in parameters:
        (found if id(parameter) in chosen else rest).append(parameter)
    return rest, found
