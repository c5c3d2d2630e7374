"""State that moves when a network is run: buffers and attributes that are no parameters.

What one task's samples move changes the outputs of the others. Buffers are therefore every task's own, as those of
batch norms are; attributes, which no file would hold, are refused unless outputs do not depend on them.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Movement", "OwnBuffers", "StateOf", "find_movement", "get_buffers", "scratch_of", "set_buffers"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_OF_TORCH = frozenset(vars(nn.Module())) | {"forward", "_flat_weights", "_flat_weight_refs"}
"""Attributes that torch itself keeps in a module, buffers and parts among them."""

_NUMBERS = (bool, int, float, complex, str, type(None))


@dataclass(frozen=True)
class Movement:
    """Names of what moves when a network is run.

    Attributes:
        buffers: buffers that keep their shape and type.
        attributes: everything else: plain attributes, and buffers that change their shape, which are caches.
    """

    buffers: tuple[str, ...]
    attributes: tuple[str, ...]


class OwnBuffers(nn.Module):
    """A task's own values of buffers of the backbone, in the order of their names there.

    Args:
        values: what they start as.
    """

    def __init__(self, values: Sequence[Tensor] = ()) -> None:
        super().__init__()
        for index, value in enumerate(values):
            self.register_buffer(str(index), value)

    @property
    def values(self) -> list[Tensor]:
        """The present values."""
        return list(self.buffers())

    def replace(self, values: Sequence[Tensor]) -> None:
        """Take other tensors for them, such as those that a forward pass has put in their place."""
        for index, value in enumerate(values):
            if self._buffers[str(index)] is not value:
                self._buffers[str(index)] = value.detach()


def scratch_of(module: ModuleT) -> ModuleT:
    """Return a copy of a module, with the same parameters, that may be run without a trace in the original."""
    shared: dict[int, Any] = {id(parameter): parameter for parameter in module.parameters()}
    for part in module.modules():  # computed from parameters, such as by weight norm; these cannot be copied
        for value in vars(part).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                shared[id(value)] = value
    return copy.deepcopy(module, shared)


def set_buffers(module: nn.Module, names: Sequence[str], values: Sequence[Tensor]) -> None:
    """Put tensors in the place of buffers, by their names in the module."""
    for name, value in zip(names, values, strict=True):
        owner, _, own = name.rpartition(".")
        module.get_submodule(owner)._buffers[own] = value


def get_buffers(module: nn.Module, names: Sequence[str]) -> list[Tensor]:
    """Return the buffers of these names, as they are now."""
    return [module.get_buffer(name) for name in names]


class StateOf:
    """Record of a network's buffers and attributes, to put them back.

    Args:
        module: the network.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parts = [
            (part, {n: (b, None if b is None else b.clone()) for n, b in part._buffers.items()}, _remembered(part))
            for part in module.modules()
        ]

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the network that state again."""
        for part, buffers, attributes in self._parts:
            for name, (buffer, value) in buffers.items():
                if buffer is not None and value is not None and not _same(buffer, value):
                    buffer.copy_(value)
                part._buffers[name] = buffer
            for name in [name for name in _state(part) if name not in attributes]:
                del vars(part)[name]
            for name, (attribute, content) in attributes.items():
                vars(part)[name] = attribute
                if content is not None and not _same(attribute, content):
                    attribute.clear()
                    (attribute.update if isinstance(attribute, dict) else attribute.extend)(content)


def _remembered(part: nn.Module) -> dict[str, tuple[Any, Any]]:
    kinds = (dict, list, deque)
    return {name: (v, copy.copy(v) if isinstance(v, kinds) else None) for name, v in _state(part).items()}


@torch.no_grad()
def find_movement(module: nn.Module, example: Tensor, per_task: Sequence[str]) -> Movement:
    """Run a network in training and in evaluation mode, and see what of its state is another afterwards.

    Args:
        module: the network; it is left as it is.
        example: a batch, of several samples where norms need them.
        per_task: names of the modules whose buffers every task has its own of already.
    """
    buffers: dict[str, None] = {}
    attributes: dict[str, None] = {}
    own = tuple(f"{name}." for name in per_task)
    for training in (True, False):
        scratch = scratch_of(module).train(training)
        try:
            with torch.random.fork_rng(devices=[]):
                scratch(example)
        except (RuntimeError, ValueError):
            if not training:
                raise
            continue  # such as a batch norm that would see one sample
        before, after = dict(module.named_buffers()), dict(scratch.named_buffers())
        for name in (name for name in after if not name.startswith(own)):
            was, now = before.get(name), after[name]
            if was is None or was.shape != now.shape or was.dtype != now.dtype:
                attributes[name] = None
            elif not _same(was, now):
                buffers[name] = None
        parts = zip(module.named_modules(), scratch.modules(), strict=True)
        for (name, original), part in parts:
            for path in _differences(_state(original), _state(part)):
                attributes[f"{name}.{path}".lstrip(".")] = None
    return Movement(tuple(name for name in buffers if name not in attributes), tuple(attributes))


def _state(module: nn.Module) -> dict[str, Any]:
    return {n: value for n, value in vars(module).items() if n not in _OF_TORCH and not n.startswith("_hatrack")}


def _differences(before: dict[Any, Any], after: dict[Any, Any]) -> Iterator[str]:
    for name in {**before, **after}:
        if name not in before or name not in after or not _same(before[name], after[name]):
            yield str(name)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and (one is other or torch.equal(one.nan_to_num(), other.nan_to_num()))
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return False
    if isinstance(one, _NUMBERS) or isinstance(other, _NUMBERS):
        return type(one) is type(other) and (one == other or one != one)
    if isinstance(one, dict) and isinstance(other, dict):
        return len(one) == len(other) and not any(_differences(one, other))
    if isinstance(one, (list, tuple, deque)) and isinstance(other, (list, tuple, deque)):
        return len(one) == len(other) and all(map(_same, one, other))
    return True  # what else objects hold is not looked into
