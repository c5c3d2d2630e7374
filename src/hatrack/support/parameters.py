"""Lists of parameters, divided by which they are and not by their values."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

__all__ = ["divided"]


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
