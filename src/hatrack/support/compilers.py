"""Marks for torch.compile, which keep per-task Python out of compiled graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch._C._dynamo.eval_frame as frames

__all__ = ["keep_compilers_out", "start_compilers_inside"]


def start_compilers_inside(*functions: Callable[..., Any]) -> None:
    """Let torch.compile compile the functions that these functions call, but not themselves.

    A compiler that sees a task's name, or its number of classes, compiles again for every task, and silently gives up
    after eight of them. Further in, tasks are tensors of one shape, and the same code serves all of them.

    ``torch.compiler.disable(recursive=False)`` would do the same, but forbids torch.export. This does what torch's own
    ``skip`` does without importing the compiler, which takes seconds: the code is marked for a compiler that is
    imported later.
    """
    _mark(functions, inside=False)


def keep_compilers_out(*functions: Callable[..., Any]) -> None:
    """Keep torch.compile out of these functions and of all that they call."""
    _mark(functions, inside=True)


def _mark(functions: Iterable[Callable[..., Any]], inside: bool) -> None:
    if not hasattr(frames, "_FrameExecStrategy"):  # an older torch
        from torch._dynamo import disable
        from torch._dynamo.decorators import skip

        for function in functions:
            (disable if inside else skip)(function)
        return
    action = frames._FrameAction
    strategy = frames._FrameExecStrategy(action.SKIP, action.SKIP if inside else action.DEFAULT)
    for function in functions:
        frames.set_code_exec_strategy(function.__code__, strategy)
        function._torchdynamo_disable = True  # type: ignore[attr-defined]
