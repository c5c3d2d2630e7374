"""Scratch memory: tensors that are needed anew in every step, on memory that those of earlier steps have left."""

from __future__ import annotations

import itertools
import weakref

import numpy as np
import torch
from torch import Tensor

__all__ = ["ScratchMemory"]

_ALIGNMENT = 64
"""Alignment in bytes, that of torch's own tensors, on which a matrix product's last bits may depend."""


class ScratchMemory:
    """Memory for tensors of a few sizes that come and go in every step of training.

    Memory that is new to a process is slow: the system clears every page at its first use, which takes longer than
    writing to it, and beyond 32 MiB a tensor's memory is new each time. Here a block is used again once nothing refers
    to the last tensor on it: no view, no graph, no gradient. Torch itself tells, by giving up its reference to the
    block; so nobody has to say when a tensor is no longer needed, and none can change while it is. Several threads may
    ask at the same time: who takes a block out of the table has it. There is no lock, which an interrupt in the wrong
    moment would leave closed for good. There are as many blocks as were in use at once, until they are cleared.

    Copies and pickles begin without blocks.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        # With the last view that was handed out. Each operation on the table is a single one of Python's.
        self._blocks: dict[int, tuple[np.ndarray, weakref.ref[np.ndarray]]] = {}

    def __reduce__(self) -> tuple[type[ScratchMemory], tuple[()]]:
        """Start copies without blocks."""
        return type(self), ()

    def empty_like(self, like: Tensor) -> Tensor:
        """Return a contiguous tensor of another's shape, type and device, whose values are whatever was there.

        On other devices than the CPU, and where there is no memory to manage, it is torch's own.
        """
        managed = like.device.type == "cpu" and like.layout is torch.strided and like.numel()
        if not managed or torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            return torch.empty_like(like, memory_format=torch.contiguous_format)
        memory = self._take(like.numel() * like.element_size())
        strides = torch.empty(like.shape, device="meta").stride()
        return torch.empty(0, dtype=like.dtype).set_(torch.from_numpy(memory).untyped_storage(), 0, like.shape, strides)

    def clear(self) -> None:
        """Give all memory back to the system that no tensor uses, and the rest once none does."""
        self._blocks.clear()

    def _take(self, size: int) -> np.ndarray:
        """Return bytes that nothing else uses."""
        block = self._left_over(size + _ALIGNMENT)
        if block is None:
            block = np.empty(size + _ALIGNMENT, dtype=np.uint8)
        start = -block.ctypes.data % _ALIGNMENT
        memory = block[start : start + size]
        self._blocks[next(self._numbers)] = block, weakref.ref(memory)
        return memory

    def _left_over(self, size: int) -> np.ndarray | None:
        """Take a block of so many bytes out of the table whose last tensor is gone; None if there is none."""
        for number, (block, last) in list(self._blocks.items()):
            if block.nbytes == size and last() is None and self._blocks.pop(number, None) is not None:
                return block
        return None
