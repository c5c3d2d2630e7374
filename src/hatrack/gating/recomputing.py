"""Gated inputs of layers, computed again in the backward pass instead of being kept for it.

A layer keeps its gated input for the gradient of its weight, and the gate keeps what it was computed of: of every large
activation there are two then, and three where two layers read it. But the product takes one pass over memory to be made
again, to the same bits.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["GatedInput", "counting"]

WORTH = 2**18
"""Smallest number of entries of a gated input that is not kept: noticing it costs Python some microseconds."""


class _Unchanged(NamedTuple):
    """A tensor that is kept for the backward pass, and the count of its changes in place."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Unchanged:
        return cls(tensor, tensor._version)

    def get(self) -> Tensor:
        """Return the tensor.

        Raises:
            RuntimeError: it has been written to, as torch says it of what it keeps itself.
        """
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"tensor of shape {tuple(self.tensor.shape)} is at version {self.tensor._version}; expected version "
                f"{self.version} instead"
            )
        return self.tensor


class _Again(NamedTuple):
    """Factors of a product, and the shape in which it is asked for."""

    value: _Unchanged
    gates: _Unchanged
    shape: torch.Size

    def get(self) -> Tensor:
        """Return the product; see :meth:`_Unchanged.get`."""
        with torch.no_grad():
            product = self.value.get() * self.gates.get()
            return product if product.shape == self.shape else product.view(self.shape)


class _Counting:
    """Hook that looks at what is kept, and keeps it as it is."""

    def __init__(self, note: Callable[[Tensor], None]) -> None:
        self.note = note

    def __call__(self, tensor: Tensor) -> Tensor:
        self.note(tensor)
        return tensor


def counting(note: Callable[[Tensor], None]) -> AbstractContextManager[None]:
    """Return a context in which ``note`` is told of all tensors that are kept for a backward pass.

    Products that are made again are not among these, as they are not without it.
    """
    hooks: AbstractContextManager[None] = torch.autograd.graph.saved_tensors_hooks(_Counting(note), lambda kept: kept)
    return hooks


def _outer() -> Any:
    """Return the hook that is told of what is kept; None if there is none."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return None if hooks is None else hooks[0]


def _is_ours_to_decide() -> bool:
    """Return whether nobody else changes what is kept for the backward pass, as checkpoints do."""
    outer = _outer()
    return outer is None or isinstance(outer, _Counting)


class GatedInput:
    """Product of a large value and its gates, for as long as it is alive.

    Args:
        made: the product ``value * gates``.
        value: what is gated.
        gates: numbers in [0, 1], of a shape that broadcasts to that of the value.
    """

    def __init__(self, made: Tensor, value: Tensor, gates: Tensor) -> None:
        self._made, self._version = weakref.ref(made), made._version
        self._value, self._gates = _Unchanged.of(value.detach()), _Unchanged.of(gates.detach())

    @staticmethod
    def is_worth(made: Tensor) -> bool:
        """Return whether a product is large enough, and would be kept for a backward pass by torch alone."""
        if torch.compiler.is_compiling() or made.numel() < WORTH or not made.requires_grad or made.is_inference():
            return False
        if type(made) is not Tensor or torch._C._get_tracing_state():
            return False
        if not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
            return False
        # Function transforms take no such hooks, and outer ones, as of checkpoints, would not see what is kept.
        return _is_ours_to_decide() and not torch._C._are_functorch_transforms_active()

    def is_input(self, given: Tensor) -> bool:
        """Return whether a layer is given this product, as it was made."""
        return self._made() is given and given._version == self._version

    @contextmanager
    def not_kept(self) -> Iterator[None]:
        """While a layer computes with it, what the layer keeps of the product is how to make it again.

        To be around layers alone that keep their inputs and weights, and none of their results: hooks see of a result
        no later change in place, for which torch would refuse the backward pass.
        """
        if not _is_ours_to_decide():  # any more: a hook of the layer has put its own around it
            yield
            return
        outer = _outer()

        def pack(tensor: Tensor) -> _Unchanged | _Again:
            if self._stands_for(tensor):
                return _Again(self._value, self._gates, tensor.shape)
            return _Unchanged.of(tensor if outer is None else outer(tensor))

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.get()):
            yield

    def _stands_for(self, tensor: Tensor) -> bool:
        """Return whether what a layer keeps is the product, or a view of all its numbers in their order."""
        made = self._made()
        if made is None or tensor.data_ptr() != made.data_ptr() or tensor.dtype != made.dtype:
            return False
        if tensor.shape == made.shape:
            return tensor.stride() == made.stride()
        return tensor.numel() == made.numel() and tensor.is_contiguous() and made.is_contiguous()
