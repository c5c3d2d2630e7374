"""Transforms and compilers of torch within a network, whose insides cannot be followed."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

__all__ = [
    "COMPILED",
    "TRANSFORMED",
    "forget_compiled",
    "is_inside_transform",
    "outermost",
    "place_of",
    "why_unfollowed",
]

TRANSFORMED = (
    "it computes with units inside of a transform of torch.func, such as torch.vmap or torch.func.grad, where units "
    "cannot be followed; write the operation for a whole batch, without the transform, or keep units out of it"
)
"""Reason for refusing transforms of functions, with the remedy."""

COMPILED = (
    "it hands functions over to torch, which compiles them, as torch.cond, while_loop, flex_attention and "
    "torch.compile do, and what these do to units cannot be followed; call the functions from Python (choose values "
    "with torch.where), or compile the whole network after it was attached"
)
"""Reason for refusing functions that torch itself calls, with the remedy."""

_TORCH, _HATRACK = Path(torch.__file__).parent, Path(__file__).parents[1]
_PYTHON = f"{sysconfig.get_paths()['stdlib']}/"
_REASONS = {"_functorch": TRANSFORMED, "_dynamo": COMPILED, "_higher_order_ops": COMPILED}
"""Reasons by the part of torch that an exception comes from; the last that it has passed on its way counts."""


def is_inside_transform(tensor: Tensor) -> bool:
    """Return whether a tensor stands for another one inside of a transform, so that it has no values of its own."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def outermost(tensor: Tensor) -> Tensor:
    """Return the tensor outside of all transforms that one inside of them stands for; another one is returned as is."""
    while is_inside_transform(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def why_unfollowed(error: BaseException) -> str | None:
    """Return the reason why a network cannot be followed that raised an exception; None if it has another cause.

    It is told by the parts of torch that the exception came through, since their messages speak of torch's inside.
    """
    for filename, _ in _frames(error):
        if Path(filename).is_relative_to(_TORCH):
            reason = _REASONS.get(Path(filename).relative_to(_TORCH).parts[0])
            if reason is not None:
                return reason
    return None


def place_of(error: BaseException) -> str:
    """Return `` (at FILE:LINE)`` for the innermost line of a user's code that an exception came through."""
    places = [each for each in _frames(error) if not _is_of_libraries(each[0])]
    return f" (at {Path(places[-1][0]).name}:{places[-1][1]})" if places else ""


def _is_of_libraries(filename: str) -> bool:
    """Return whether a file is a part of torch, hatrack or Python, or no file at all."""
    if filename.startswith((str(_TORCH), str(_HATRACK), "<")):
        return True
    return filename.startswith(_PYTHON) and "site-packages" not in filename


def _frames(error: BaseException) -> Iterator[tuple[str, int]]:
    """Yield file and line of all frames that an exception came through, the outermost first."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        yield frame.f_code.co_filename, line


def forget_compiled() -> None:
    """Let torch's compiler, if it was imported, forget what it has compiled.

    What it saw while a network was followed is of no use to anybody, and stands in the way of later calls.
    """
    compiler = sys.modules.get("torch._dynamo")
    if compiler is not None:
        compiler.reset()
