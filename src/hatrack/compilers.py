"""Getting on with torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch._C._dynamo.eval_frame as frames

__all__ = ["keep_compilers_out", "start_compilers_inside"]


def start_compilers_inside(*functions: Callable[..., Any]) -> None:
    """Have torch.compile begin with what these functions call, and run them as they are.

    A compiler that sees a task's name, or its number of classes, compiles afresh for every task, and gives up without a
    word after eight of them. Further in, tasks are tensors of one shape, and all of them are served by the same code.

    ``torch.compiler.disable(recursive=False)`` would do the same, but forbids torch.export. What torch's own ``skip``
    does is done here without the import of the compiler, which takes seconds: the code is marked for whichever compiler
    is imported later.
    """
    _mark(functions, inside=False)


def keep_compilers_out(*functions: Callable[..., Any]) -> None:
    """Have torch.compile run these functions and all that they call as they are, in compiled calls too."""
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
