"""Observers of torch's functions and operations, and computations that they are not to see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _get_current_function_mode_stack
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode,
    _get_current_dispatch_mode_stack,
)

__all__ = ["Unobserved", "observed_by"]


@contextmanager
def observed_by(functions: TorchFunctionMode, operations: TorchDispatchMode) -> Iterator[None]:
    """While this lasts, two observers see what torch does, outside of blocks that are :class:`Unobserved`.

    Args:
        functions: observer of functions.
        operations: observer of operations of torch's lowest level.
    """
    with operations, functions:
        try:
            yield
        finally:
            # An interrupt may have come while they were left; they are then entered again, to be left for good.
            if not any(mode is operations for mode in _get_current_dispatch_mode_stack()):
                torch._C._push_on_torch_dispatch_stack(operations)
            if not any(mode is functions for mode in _get_current_function_mode_stack()):  # type: ignore[no-untyped-call]
                torch._C._push_on_torch_function_stack(functions)


class Unobserved:
    """Block in which two observers see nothing; others see all that they would see.

    An observer that lets a computation pass still takes several times as long as most of those with labels. Where
    another one was entered since, or this one is at work just now, nothing changes.

    Args:
        functions: observer of functions.
        operations: observer of operations of torch's lowest level.
    """

    def __init__(self, functions: TorchFunctionMode, operations: TorchDispatchMode) -> None:
        self._functions, self._operations = functions, operations
        self._leaves_functions = self._leaves_operations = False

    def __enter__(self) -> None:
        self._leaves_functions = _get_current_function_mode() is self._functions  # type: ignore[no-untyped-call]
        self._leaves_operations = _get_current_dispatch_mode() is self._operations
        if self._leaves_functions:
            torch._C._pop_torch_function_stack()
        if self._leaves_operations:
            torch._C._pop_torch_dispatch_stack(None)

    def __exit__(self, *_: object) -> None:
        if self._leaves_operations:
            torch._C._push_on_torch_dispatch_stack(self._operations)
        if self._leaves_functions:
            torch._C._push_on_torch_function_stack(self._functions)
