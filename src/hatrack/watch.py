"""Version counters: whether anything but hatrack has touched what must not move, at the price of comparing integers.

Torch counts the changes in place of every tensor. What is noted here is the count at which a tensor was last known to
be right, and where its values lie in memory. Changes through ``.data``, NumPy arrays, DLPack and captured CUDA graphs
leave no count.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from hatrack.guarantee import Guarantee
from hatrack.protect import Keepsake, Shield

__all__ = ["Controls", "Parts", "Watch", "count_fused_steps", "stamp_of"]

_Table = dict[str, Any]
_SETTINGS = (bool, int, float, complex, str, type(None))
"""Types of attributes by which a module may choose what it does."""

_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes of every module, its mode among them."""

_UNCOUNTED = itertools.count(1)


def stamp_of(tensor: Tensor) -> tuple[int, int]:
    """Return the count of a tensor's changes in place, and the address of its values.

    Tensors made in inference mode have no count: each stamp of them is another one, so that values are compared.
    """
    return (-next(_UNCOUNTED) if tensor.is_inference() else tensor._version), tensor.data_ptr()


def _count_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Count what a step of a fused optimizer changes, since torch does not."""
    for group in optimizer.param_groups:
        if group.get("fused"):
            changed = [p for p in group["params"] if p.grad is not None and not p.is_inference()]
            torch.autograd.graph.increment_version(changed)


def _count_step_with_closure(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if (args[1] if len(args) > 1 else kwargs.get("closure")) is not None:  # gradients came after the step began
        _count_step(optimizer, args, kwargs)


@functools.cache
def count_fused_steps() -> None:
    """Have the steps of fused optimizers counted from now on, whether they are protected or not."""
    register_optimizer_step_pre_hook(_count_step)
    register_optimizer_step_post_hook(_count_step_with_closure)


class Parts:
    """Record of the layers and parameters that a network has, to notice when others are in their place, or converted.

    Args:
        network: the network.
        parts: where the parts of it are that are recorded, with all that is in them, by keys of the caller's.
    """

    def __init__(self, network: nn.Module, parts: Mapping[str, str] = MappingProxyType({})) -> None:
        self._roots = {key: _Root.of(network, name) for key, name in parts.items()}

    def replaced(self, keys: Iterable[str] | None = None) -> list[str]:
        """Return the names of what is no longer there, is new, is another object or of another type.

        Plain tensors that stand in for parameters during a call do not count.

        Args:
            keys: of the recorded parts to look at; all of them if left out.
        """
        roots = self._roots.values() if keys is None else [self._roots[key] for key in keys if key in self._roots]
        return [name for root in roots for name in root.replaced()]


@dataclass(frozen=True)
class _Root:
    """Record of one part of a network.

    Attributes:
        places: for every layer and parameter the table that it is in, its key, itself, its type and its name.
        tables: the keys of every table, with the name of the module that it belongs to.
        methods: the ``forward`` that is an attribute of a module, or None, with its name.
    """

    places: list[tuple[_Table, str, Any, torch.dtype | None, str]]
    tables: list[tuple[_Table, frozenset[str], str]]
    methods: list[tuple[nn.Module, Any, str]]

    @classmethod
    def of(cls, network: nn.Module, root: str) -> _Root:
        """Record a part by its name in the network."""
        owner, _, key = root.rpartition(".")
        table = network.get_submodule(owner)._modules
        record = cls([(table, key, table[key], None, root)], [], [])
        for name, module in network.get_submodule(root).named_modules(prefix=root):
            record.methods.append((module, vars(module).get("forward"), f"{name}.forward"))
            for table in (module._parameters, module._modules):
                typed = table is module._parameters
                for key, part in table.items():
                    dtype = part.dtype if typed and part is not None else None
                    record.places.append((table, key, part, dtype, f"{name}.{key}"))
                record.tables.append((table, frozenset(table), name))
        return record

    def replaced(self) -> list[str]:
        """Return the names of what is another object, as :meth:`Parts.replaced` does."""
        names = []
        for table, key, part, dtype, name in self.places:
            present: Any = table.get(key)
            if present is not part:
                if present is None or isinstance(present, (nn.Parameter, nn.Module)):
                    names.append(name)
            elif dtype is not None and present.dtype is not dtype:
                names.append(name)
        for table, keys, name in self.tables:
            if len(table) > len(keys):
                names += [f"{name}.{key}" for key in table if key not in keys]
        return names + [name for module, method, name in self.methods if vars(module).get("forward") is not method]


class Controls:
    """Record of settings and hooks of a network's modules, which decide on what it computes.

    Args:
        module: the network.
        moving: names of attributes that a run itself changes.
    """

    def __init__(self, module: nn.Module, moving: Collection[str] = ()) -> None:
        self._parts = [(p, _settings_of(p, name, moving), _hooks_of(p)) for name, p in module.named_modules()]

    def are_altered(self) -> bool:
        """Return whether any of them is another one by now."""
        for part, settings, hooks in self._parts:
            attributes = vars(part)
            for key, value in settings.items():
                present = attributes.get(key)
                if present is not value and (type(present) is not type(value) or present != value):
                    return True
            if _hooks_of(part) != hooks:
                return True
        return False


def _settings_of(part: nn.Module, name: str, moving: Collection[str]) -> dict[str, Any]:
    """Attributes of a module by which it may choose what it does; those of its class that an attribute may cover."""
    prefix = f"{name}." if name else ""
    kinds = [kind for kind in type(part).__mro__ if kind not in nn.Module.__mro__]
    inherited = [key for kind in kinds for key, value in vars(kind).items() if _is_setting(value) and key[:2] != "__"]
    names = [key for key in dict.fromkeys((*vars(part), *inherited)) if key not in _OF_TORCH]
    own = {key: vars(part).get(key) for key in names if f"{prefix}{key}" not in moving}
    return {key: value for key, value in own.items() if _is_setting(value)}


def _is_setting(value: Any) -> bool:
    return isinstance(value, _SETTINGS) or (isinstance(value, tuple) and all(isinstance(v, _SETTINGS) for v in value))


def _hooks_of(part: nn.Module) -> tuple[int, ...]:
    return (*part._forward_pre_hooks, -1, *part._forward_hooks)


class Watch:
    """Stamps of all tensors of which entries are frozen.

    Args:
        guarantee: what must not move; all of it is right at this moment.
        touched: indices in ``guarantee.all()`` of what may have moved already.
    """

    def __init__(self, guarantee: Guarantee, touched: Collection[int] = ()) -> None:
        self.guarantee = guarantee
        self._stamps = {
            id(tensor): stamp_of(tensor) for index, (tensor, _) in enumerate(guarantee.all()) if index not in touched
        }

    def __reduce__(self) -> tuple[type[Watch], tuple[Any, ...]]:
        """Copies watch the copied tensors, which have counts of their own."""
        touched = [index for index, (tensor, _) in enumerate(self.guarantee.all()) if self.is_touched(tensor)]
        return type(self), (self.guarantee, touched)

    def is_touched(self, tensor: Tensor) -> bool:
        """Return whether something has written to a tensor since it was last known to be right."""
        return self._stamps.get(id(tensor)) != stamp_of(tensor)

    def note(self, tensor: Tensor) -> None:
        """Take a tensor for right as it is now."""
        self._stamps[id(tensor)] = stamp_of(tensor)

    def moved(self, watched: Iterable[tuple[Tensor, Shield | Keepsake]]) -> list[tuple[Tensor, Shield | Keepsake]]:
        """Return those tensors of which frozen entries have other bits; only what was touched is looked at."""
        moved = []
        for tensor, keeper in watched:
            if self.is_touched(tensor):
                stamp = stamp_of(tensor)  # before the comparison: another thread may write meanwhile
                if keeper.has_moved(tensor):
                    moved.append((tensor, keeper))
                else:
                    self._stamps[id(tensor)] = stamp
        return moved
