"""Observers of torch's functions and operations, and computations that they are not to see."""

from __future__ import annotations

from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

__all__ = ["Unobserved"]


class Unobserved:
    """Block in which two observers that are entered see nothing; others see all that they would see.

    An observer that lets a computation pass still takes several times as long as most of those with labels. Where
    another one was entered since, or this one is at work just now, nothing changes.

    Args:
        functions: observer of functions.
        operations: observer of operations of torch's lowest level.
    """

    def __init__(self, functions: TorchFunctionMode, operations: TorchDispatchMode) -> None:
        self._functions, self._operations = functions, operations
        self._left: tuple[bool, bool] = (False, False)

    def __enter__(self) -> None:
        functions = _get_current_function_mode() is self._functions  # type: ignore[no-untyped-call]
        operations = _get_current_dispatch_mode() is self._operations
        self._left = functions, operations
        if functions:
            self._functions.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if operations:
            self._operations.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __exit__(self, *_: object) -> None:
        functions, operations = self._left
        if operations:
            self._operations.__enter__()  # type: ignore[no-untyped-call]
        if functions:
            self._functions.__enter__()  # type: ignore[no-untyped-call]
