"""Layouts in memory: values, such as gradients, that lie there as their parameter does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.optim import Optimizer

__all__ = ["laid_out_like", "lay_gradients_out", "lay_memory_out", "lay_out", "memory_format_of", "strides_of"]

_WITHOUT_VALUES = (UninitializedParameter, UninitializedBuffer)


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


def strides_of(module: nn.Module) -> dict[str, list[int]]:
    """Return, by name, the strides of parameters and buffers that do not lie in memory row by row.

    Kernels sum in another order for another layout, so that the last bits of outputs depend on it. Tensors with gaps,
    or whose entries share memory, are left out.

    Args:
        module: the network.
    """
    return {
        name: list(tensor.stride())
        for name, tensor in _tensors_of(module)
        if not _lies_in(tensor, _plain_strides(tensor.shape)) and _is_dense(tensor.shape, tensor.stride())
    }


def lay_out(module: nn.Module, strides: Mapping[str, Sequence[int]]) -> None:
    """Lay parameters and buffers out in memory as they were recorded; they stay the same objects, of the same values.

    Args:
        module: the network.
        strides: what :func:`strides_of` returned; all other tensors are laid out row by row.
    """
    for name, tensor in _tensors_of(module):
        wanted = tuple(strides.get(name, _plain_strides(tensor.shape)))
        if not _lies_in(tensor, wanted) and all(_is_dense(tensor.shape, each) for each in (tensor.stride(), wanted)):
            laid = torch.empty_strided(tensor.shape, wanted, dtype=tensor.dtype, device=tensor.device)
            tensor.data = laid.copy_(tensor.detach())


def _tensors_of(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Yield by name the parameters and buffers that may lie in memory in several ways."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.layout is torch.strided and tensor.dim() > 1 and not isinstance(tensor, _WITHOUT_VALUES):
            yield name, tensor


def _lies_in(tensor: Tensor, strides: Sequence[int]) -> bool:
    return tensor.stride() == tuple(strides)


def _plain_strides(shape: torch.Size) -> tuple[int, ...]:
    """Return the strides of a tensor that lies in memory row by row."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _is_dense(shape: torch.Size, strides: Sequence[int]) -> bool:
    """Return whether entries of a shape fill memory without gaps, each in a place of its own."""
    if len(shape) != len(strides):
        return False
    step = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1):
        if stride != step:
            return False
        step *= size
    return True


def lay_memory_out(optimizer: Optimizer) -> None:
    """Lay out what an optimizer remembers of parameters as these lie in memory; no number changes.

    Fused optimizers of torch pair numbers by their places in memory.
    """
    for parameter, memory in optimizer.state.items():
        for name, value in list(memory.items()) if isinstance(parameter, Tensor) and isinstance(memory, dict) else ():
            if isinstance(value, Tensor) and (laid := laid_out_like(parameter, value)) is not value:
                memory[name] = laid


def lay_gradients_out(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Step pre-hook: lay gradients out in memory as their parameters are; no number changes.

    Fused optimizers of torch pair numbers by their places in memory, and pair the wrong ones without a word otherwise.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and (laid := laid_out_like(parameter, gradient)) is not gradient:
                parameter.grad = laid
