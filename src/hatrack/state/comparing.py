"""Comparison of two states of a network's parts, to the bit, and the plain values that settings consist of."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Collection, Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["PLAIN_VALUES", "differences", "is_same_tensor", "own_attributes", "slots_of", "state_of"]

PLAIN_VALUES = (bool, int, float, complex, str, bytes, type(None), np.generic)
"""Values without parts, numbers of NumPy among them."""

_CODE = (type, ModuleType, BuiltinFunctionType, enum.Enum, torch.dtype, torch.device, torch.layout)
"""Types of values without a state of their own."""

_OF_TORCH = frozenset(vars(nn.Module())) | {"forward", "train", "_flat_weights", "_flat_weight_refs"}
"""Attributes that torch itself keeps in a module, buffers and parts among them."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their bytes."""


def differences(before: dict[Any, Any], after: dict[Any, Any], registered: Collection[int] = ()) -> Iterator[str]:
    """Yield the names whose values are missing, new, or others than before, also in what they refer to.

    Args:
        before: a table of values, such as the attributes of a module.
        after: the table later, or in a copy.
        registered: identities of modules that are compared by themselves.
    """
    for name in {**before, **after}:
        if name not in before or name not in after or not _Comparison(registered).is_same(before[name], after[name]):
            yield str(name)


def is_same_tensor(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same shape, type and bits; a NaN is like one of the same bits."""
    if (one.shape, one.dtype, one.layout) != (other.shape, other.dtype, other.layout):
        return False
    if one.is_complex():
        one, other = torch.view_as_real(one.resolve_conj()), torch.view_as_real(other.resolve_conj())
    if not one.is_floating_point() or one.layout != torch.strided:
        return torch.equal(one, other)
    return torch.equal(one.view(_BITS[one.element_size()]), other.view(_BITS[other.element_size()]))


def state_of(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that are neither torch's nor hatrack's."""
    return {n: value for n, value in vars(module).items() if n not in _OF_TORCH and not n.startswith("_hatrack")}


def own_attributes(value: Any) -> dict[str, Any] | None:
    """Return the attributes of an object, those in slots included; None if it can have none."""
    slots = slots_of(type(value))
    if not slots and not hasattr(value, "__dict__"):
        return None
    return {**{name: getattr(value, name) for name in slots if hasattr(value, name)}, **getattr(value, "__dict__", {})}


def slots_of(kind: type) -> tuple[str, ...]:
    """Return the names of the slots that a class and its ancestors have declared."""
    declared = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    names = [name for each in declared for name in ((each,) if isinstance(each, str) else each)]
    return tuple(name for name in names if name not in ("__dict__", "__weakref__") and not name.startswith("__"))


class _Comparison:
    """Comparison of two values and all that they refer to.

    Args:
        registered: identities of modules that are compared by themselves.
    """

    def __init__(self, registered: Collection[int]) -> None:
        self._registered = registered
        self._seen: set[tuple[int, int]] = set()  # pairs, since objects may refer to themselves

    def is_same(self, one: Any, other: Any) -> bool:
        """Return whether two values are the same to the bit."""
        if one is other or (id(one), id(other)) in self._seen or id(one) in self._registered:
            return True
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            return is_same_tensor(one, other)
        if type(one) is not type(other):
            return False
        if isinstance(one, PLAIN_VALUES):
            return _is_same_plain(one, other)
        if isinstance(one, _CODE):
            return bool(one == other)
        self._seen.add((id(one), id(other)))
        if isinstance(one, np.ndarray):
            return self._is_same_array(one, other)
        if isinstance(one, (set, frozenset)):
            return bool(one == other)
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(self.is_same(one[key], other[key]) for key in one)
        if isinstance(one, (list, tuple, deque)):
            return len(one) == len(other) and all(map(self.is_same, one, other))
        return self._is_same_object(one, other)

    def _is_same_array(self, one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return False
        return self.is_same(one.tolist(), other.tolist()) if one.dtype.hasobject else one.tobytes() == other.tobytes()

    def _is_same_object(self, one: Any, other: Any) -> bool:
        if isinstance(one, FunctionType):
            return one.__code__ is other.__code__ and self.is_same(_kept_by(one), _kept_by(other))
        if isinstance(one, MethodType):
            return one.__func__ is other.__func__ and self.is_same(one.__self__, other.__self__)
        if isinstance(one, partial):
            return self.is_same((one.func, one.args, one.keywords), (other.func, other.args, other.keywords))
        if isinstance(one, nn.Module):
            tables = ("_buffers", "_modules")
            return all(self.is_same(vars(one)[key], vars(other)[key]) for key in tables) and self.is_same(
                state_of(one), state_of(other)
            )
        attributes = own_attributes(one)
        if attributes is not None and not self.is_same(attributes, own_attributes(other)):
            return False
        if attributes is not None and not _tells(type(one)):
            return True
        try:  # such as generators of random numbers, counters and iterators, which keep their state elsewhere
            return self.is_same(_told(one), _told(other))
        except Exception:
            return True  # what can neither be looked into nor copied was not copied either


def _tells(kind: type) -> bool:
    """Return whether a class says itself what is to be copied."""
    return any(name in vars(base) for base in kind.__mro__[:-1] for name in ("__reduce__", "__reduce_ex__"))


def _told(value: Any) -> Any:
    """Return what an object says of itself to be copied, iterators unrolled."""
    parts = value.__reduce_ex__(4)
    if isinstance(parts, str):
        return parts
    return [list(part) if isinstance(part, Iterator) else part for part in parts]


def _kept_by(function: FunctionType) -> list[Any]:
    """Return what a function keeps: its defaults and what it encloses."""
    return [function.__defaults__, function.__kwdefaults__, [_content(cell) for cell in function.__closure__ or ()]]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _is_same_plain(one: Any, other: Any) -> bool:
    if isinstance(one, np.generic):
        return bool(one.dtype == other.dtype) and one.tobytes() == other.tobytes()
    if isinstance(one, (float, complex)):
        return repr(one) == repr(other)  # which tells zeros by their signs, and takes NaN for itself
    return bool(one == other)
