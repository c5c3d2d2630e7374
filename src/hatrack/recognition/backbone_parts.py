"""Answers of single modules of a backbone, without gates, and the check that no training changes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hatrack.errors import InputError
from hatrack.gating.attachment import scratch_without_gates
from hatrack.state.movement import without_trace
from hatrack.support.inputs import Inputs, map_tensors, tensors_in
from hatrack.support.interface import Interface
from hatrack.support.names import look_up

__all__ = ["AttachedBackbone", "answer_of", "named", "require_untrained"]


class AttachedBackbone(Protocol):
    """Masks of a network's tasks, as far as they say what of the backbone is never trained.

    Attributes:
        interface: how the backbone is called.
    """

    interface: Interface

    @property
    def backbone(self) -> nn.Module:
        """The backbone, with gates."""

    @property
    def untrained(self) -> Sequence[str]:
        """Names of its untrained parameters."""

    @property
    def per_task_buffers(self) -> Sequence[str]:
        """Names of its modules and of its single buffers that tasks have copies of."""


class _Reached(BaseException):
    """End of a pass at a module that has answered; no ``except Exception`` of a backbone catches it."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer


@contextmanager
def _running(of: AttachedBackbone, path: str) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield a copy of the backbone without gates, in evaluation mode, to be run without a trace, and a module of it.

    Raises:
        InputError: it has no module of that name.
    """
    with without_trace(), torch.no_grad():
        scratch = scratch_without_gates(of.backbone).eval()
        modules = {name: module for name, module in scratch.named_modules() if name or not path}
        yield scratch, look_up("module of the backbone", path, modules)


def named(path: str) -> str:
    """Return how a message names a module of a backbone, or the backbone itself, whose name is empty."""
    return f"module {path!r} of the backbone" if path else "the backbone"


def answer_of(path: str, x: Inputs, of: AttachedBackbone) -> Any:
    """Return what a module gives in a pass that ends there, if nothing that training changes was computed with.

    Args:
        path: its name in the backbone; the empty name stands for the backbone, whose features are the answer.
        x: a batch.
        of: the masks of the network.

    Raises:
        InputError: there is no such module, the pass does not come to it, or something that training moves is computed
            with before it has answered.
    """

    def stop(module: nn.Module, given: object, answer: Any) -> None:
        raise _Reached(answer)

    with _running(of, path) as (scratch, module):
        x, read = map_tensors(torch.clone, x), _MemoryRead()  # the backbone may write into what it is given
        if path:
            module.register_forward_hook(stop)
        try:
            with read:
                answer = of.interface.run(scratch, x)
        except _Reached as reached:
            answer = reached.answer
        else:
            if path:
                raise _never_called(path)
        _require_none_moving(path, read, scratch, of)
        return answer


def require_untrained(path: str, x: Inputs, of: AttachedBackbone) -> None:
    """Check that a pass calls a module once, and that training changes nothing that is computed with until then.

    Args:
        path: its name in the backbone.
        x: a small batch.
        of: the masks of the network.

    Raises:
        InputError: there is no such module; it is not called, or several times; or parameters that are trained, or
            buffers of which tasks have copies, are computed with before it has answered.
    """
    with _running(of, path) as (scratch, module):
        read, calls = _MemoryRead(), list[object]()

        def note(module: nn.Module, given: object, answer: object) -> None:
            calls.append(answer)
            read.is_over = True

        if path:
            module.register_forward_hook(note)
        x = map_tensors(torch.clone, x)
        with read:
            answer = of.interface.run(scratch, x)
        calls += [] if path else [answer]
        if not calls:
            raise _never_called(path)
        _require_none_moving(path, read, scratch, of)
    if len(calls) > 1:
        raise InputError(
            f"{named(path)} is called {len(calls)} times, and gives something else each time: name a module that is "
            "called once"
        )


def _require_none_moving(path: str, read: _MemoryRead, scratch: nn.Module, of: AttachedBackbone) -> None:
    """Check that nothing of a backbone's copy that training moves was read in a pass."""
    own = tuple(f"{name}." for name in of.per_task_buffers)
    trained = [name for name, each in scratch.named_parameters() if name not in of.untrained and read.has(each)]
    moving = [name for name, each in scratch.named_buffers() if f"{name}.".startswith(own) and read.has(each)]
    which = [*trained, *moving]
    if not which:
        return
    some = f"{which[0]!r}" + (f" and {len(which) - 1} more" if len(which) > 1 else "")
    remedy = "turn that off, requires_grad_(False), before the network is made, or " if trained else ""
    raise InputError(
        f"until {named(path)} has answered, {some} is computed with, which training moves: {remedy}name a module that "
        "answers before"
    )


def _never_called(path: str) -> InputError:
    return InputError(f"{named(path)} is not called for these samples: name one that is")


class _MemoryRead(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Observer of the memory that operations are given; views and functions of weights are among it.

    Attributes:
        is_over: whether what follows does not count.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which would import the compiler, for seconds

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_over = False
        self._seen: dict[int, set[tuple[int, int]]] = {}

    def has(self, tensor: Tensor) -> bool:
        """Return whether an operation was given a tensor, or another one in a part of its memory."""
        if not tensor.numel():
            return False
        start, end = _extent(tensor)
        seen = self._seen.get(tensor.untyped_storage().data_ptr(), ())
        return any(first < end and start < last for first, last in seen)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self.is_over:
            for each in tensors_in((args, kwargs or {})):
                if each.numel():
                    self._seen.setdefault(each.untyped_storage().data_ptr(), set()).add(_extent(each))
        return func(*args, **(kwargs or {}))


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Return where a tensor begins in its storage, and where it ends, in bytes."""
    start = int(tensor.storage_offset())
    last = start + sum((int(size) - 1) * int(step) for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return start * tensor.element_size(), (last + 1) * tensor.element_size()
