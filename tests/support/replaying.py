"""What a CUDA graph does, on a CPU: the operations of some work, done again on the same memory and without Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from support.unwatched import without_spots

_READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select")
"""Operations for which a processor has to wait for its device, so that no graph can hold them."""


class _Recorder(TorchDispatchMode):
    """Notes every operation that is done, with the tensors that it reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in _READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        for value, argument in zip(args, func._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(value)
        if "batch_norm" in name:  # writes to its running statistics, which its schema does not say
            self._keep(args)
        self._keep([kwargs[arg.name] for arg in func._schema.arguments if arg.is_out and arg.name in kwargs])
        result = func(*args, **kwargs)
        self.done.append((func, args, kwargs, result))
        return result

    def _keep(self, values: Any) -> None:
        """Keep the values of tensors that are about to be written to."""
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                self._before.setdefault(leaf.data_ptr(), (leaf, leaf.detach().clone()))

    @torch.no_grad()
    def undo(self) -> None:
        """Put everything back that was written to."""
        for tensor, value in reversed(self._before.values()):
            tensor.copy_(value)


def _memory_of(value: Any) -> set[int]:
    return {leaf.untyped_storage()._cdata for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}


def recorded(work: Callable[[], None]) -> Callable[[], None]:
    """Record work, and return its replay, as :func:`hatrack.train.capture.as_cuda_graph` does on a GPU.

    The work is done while it is recorded, and undone; random numbers are as if it had never been.

    Raises:
        RuntimeError: it reads the value of a tensor.
    """
    recorder, drawn = _Recorder(), torch.get_rng_state()
    with recorder, without_spots():
        work()
    recorder.undo()
    torch.set_rng_state(drawn)

    @torch.no_grad()
    def replay() -> None:
        for func, args, kwargs, result in recorder.done:
            if _memory_of(result) & _memory_of((args, kwargs)):  # a view, which is still there, or a write in place
                if func._schema.is_mutable:
                    func(*args, **kwargs)
                continue
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor):
                    old.copy_(new)

    return replay
