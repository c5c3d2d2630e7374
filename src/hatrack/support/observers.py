"""Observers of torch's functions and operations, and computations that they are not to see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

__all__ = ["unobserved_by"]


@contextmanager
def unobserved_by(functions: TorchFunctionMode, operations: TorchDispatchMode) -> Iterator[None]:
    """While this lasts, two observers that are entered see nothing; others see all that they would see.

    An observer that lets a computation pass still takes several times as long as most of those with labels. Where
    another one was entered since, or this one is at work just now, nothing changes.

    Args:
        functions: observer of functions.
        operations: observer of operations of torch's lowest level.
    """
    leaves_functions = _get_current_function_mode() is functions  # type: ignore[no-untyped-call]
    leaves_operations = _get_current_dispatch_mode() is operations
    if leaves_functions:
        functions.__exit__(None, None, None)  # type: ignore[no-untyped-call]
    if leaves_operations:
        operations.__exit__(None, None, None)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if leaves_operations:
            operations.__enter__()  # type: ignore[no-untyped-call]
        if leaves_functions:
            functions.__enter__()  # type: ignore[no-untyped-call]
