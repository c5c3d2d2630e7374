"""Work on large tensors piece by piece, so that what passes go over stays in a processor's cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["as_numbers", "blocks", "empty_like", "spare_blocks"]

_BLOCK = 2**18
"""Number of entries to work on at a time on a CPU: they and their results stay in its cache, whereas a further pass
over memory takes longer than computing something. Smaller blocks spend more time on calls than they save (measured)."""


def empty_like(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor like another one, with any values."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def as_numbers(mask: Tensor, spare: Tensor) -> Tensor:
    """Convert booleans to numbers in memory that is given; numbers of the same type stay as they are."""
    if mask.dtype == spare.dtype:
        return mask
    return spare.copy_(mask.view(torch.uint8) if mask.dtype == torch.bool else mask)  # six times as fast as of booleans


def _block_size(tensor: Tensor) -> int:
    return max(1, min(_BLOCK, tensor.numel()) if tensor.device.type == "cpu" else tensor.numel())


def spare_blocks(like: Tensor, count: int) -> list[Tensor]:
    """Return memory for so many results of a block."""
    return [torch.empty(_block_size(like), dtype=like.dtype, device=like.device) for _ in range(count)]


def blocks(*given: Tensor | None, out: Sequence[Tensor | None] = ()) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield the same entries of several tensors of one shape, piece by piece; None for a tensor that is None.

    Args:
        given: tensors to read, the first not None.
        out: tensors to write to, whose pieces come last.

    Raises:
        ValueError: a tensor to write to is not contiguous, so that its entries lie in another order.
    """
    if any(result is not None and not result.is_contiguous() for result in out):
        raise ValueError("results are to be contiguous")
    (first, *_) = given
    assert first is not None
    size = _block_size(first)
    flat = [None if tensor is None else tensor.detach().contiguous().view(-1) for tensor in (*given, *out)]
    pieces = [None if tensor is None else torch.split(tensor, size) for tensor in flat]
    for number in range(-(-first.numel() // size)):
        yield tuple(None if parts is None else parts[number] for parts in pieces)
