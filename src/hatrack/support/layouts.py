"""Layouts in memory: values, such as gradients, that lie there as their parameter does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["laid_out_like", "lay_gradients_out", "memory_format_of"]


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """Return the format that the entries of a tensor lie in: pixel by pixel, or the plain one for all else."""
    for layout, dimensions in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if tensor.dim() == dimensions and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=layout):
            return layout
    return torch.contiguous_format


def laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return values in the memory layout of a parameter.

    They are returned as they are if they lie so already, have another shape, or are sparse.

    Args:
        parameter: any shape, in memory without gaps.
        value: values of any type, on any device.
    """
    if value.layout is not torch.strided or value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def lay_gradients_out(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Step pre-hook: lay gradients out in memory as their parameters are; no number changes.

    Fused optimizers of torch pair numbers by their places in memory, and pair the wrong ones without a word otherwise.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and (laid := laid_out_like(parameter, gradient)) is not gradient:
                parameter.grad = laid
