"""Structure of a network: records of layers, parameters, settings and hooks, by which changes are found."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hatrack.state.comparing import PLAIN_VALUES
from hatrack.support.dropout import Dropout

__all__ = ["Controls", "Parts", "Reshaped", "restore_settings", "settings_in_json"]

_Table = dict[str, Any]
_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes of every module, its mode among them."""


_CODE = (type, FunctionType, BuiltinFunctionType, MethodType, enum.Enum, torch.dtype, torch.device, torch.layout)
"""Types of values that decide on what is computed, and do not change themselves."""

_MOST = 256
"""Entries of a container or an array beyond which it is taken for data and not looked at in every call."""

_DROPOUTS = frozenset(
    {nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, Dropout}
)
"""Layers that leave their input as it is in evaluation mode, whatever their ``p`` is; not classes made of these."""


class Parts:
    """Record of a network's layers and parameters, by which replaced and converted ones are found.

    Args:
        network: the network.
        parts: names of the submodules to record, with everything in them, by keys that the caller chooses.
    """

    def __init__(self, network: nn.Module, parts: Mapping[str, str] = MappingProxyType({})) -> None:
        self._roots = {key: _Root.of(network, name) for key, name in parts.items()}

    def replaced(self, keys: Iterable[str] | None = None) -> list[str]:
        """Return the names of layers and parameters that are missing, new, other objects or of another type.

        Plain tensors that stand in for parameters during a call do not count.

        Args:
            keys: of the recorded parts to look at; all of them if left out.
        """
        roots = self._roots.values() if keys is None else [self._roots[key] for key in keys if key in self._roots]
        return [name for root in roots for name in root.replaced()]

    def reshaped(self, keys: Iterable[str] | None = None) -> list[Reshaped]:
        """Return the parameters of another shape than was recorded, as :meth:`replaced` takes its arguments."""
        roots = self._roots.values() if keys is None else [self._roots[key] for key in keys if key in self._roots]
        return [each for root in roots for each in root.reshaped()]


class Reshaped(NamedTuple):
    """Tensor whose shape has changed.

    Attributes:
        name: its name in the network.
        before: its shape when it was recorded.
        now: its shape now.
    """

    name: str
    before: torch.Size
    now: torch.Size


@dataclass(frozen=True)
class _Root:
    """Record of one part of a network.

    Attributes:
        places: for every layer and parameter the table that it is in, its key, itself, its type and its name.
        shapes: the parameters, each with its shape and its name.
        tables: the keys of every table, with the name of the module that it belongs to.
        methods: the ``forward`` that is an attribute of a module, or None, with its name.
    """

    places: list[tuple[_Table, str, Any, torch.dtype | None, str]]
    shapes: list[tuple[nn.Parameter, torch.Size, str]]
    tables: list[tuple[_Table, frozenset[str], str]]
    methods: list[tuple[nn.Module, Any, str]]

    @classmethod
    def of(cls, network: nn.Module, root: str) -> _Root:
        """Record a part by its name in the network.

        Args:
            network: the network.
            root: name of the submodule.
        """
        owner, _, key = root.rpartition(".")
        table = network.get_submodule(owner)._modules
        record = cls([(table, key, table[key], None, root)], [], [], [])
        for name, module in network.get_submodule(root).named_modules(prefix=root):
            record.methods.append((module, vars(module).get("forward"), f"{name}.forward"))
            for table in (module._parameters, module._modules):
                typed = table is module._parameters
                for key, part in table.items():
                    dtype = part.dtype if typed and part is not None else None
                    record.places.append((table, key, part, dtype, f"{name}.{key}"))
                    if typed and part is not None:
                        record.shapes.append((part, part.shape, f"{name}.{key}"))
                record.tables.append((table, frozenset(table), name))
        return record

    def replaced(self) -> list[str]:
        """Return the names of layers, parameters and methods that have changed, as :meth:`Parts.replaced`."""
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

    def reshaped(self) -> list[Reshaped]:
        """Return the parameters whose shape has changed."""
        return [Reshaped(name, shape, part.shape) for part, shape, name in self.shapes if part.shape != shape]


class Controls:
    """Record of settings and hooks of a network's modules, which decide on what it computes.

    Args:
        module: the network.
        moving: names of attributes that a run itself changes.
        is_ours: whether a hook is one of hatrack's own, which come and go with the units that are found, and are left
            out; None where there are none.
    """

    def __init__(
        self,
        module: nn.Module,
        moving: Collection[str] = (),
        is_ours: Callable[[object], bool] | None = None,
    ) -> None:
        self._is_ours, self._moving = is_ours or _is_not_ours, frozenset(moving)
        self._parts = [
            (name, p, _controls_of(p, name, self._moving), self._hooks_of(p)) for name, p in module.named_modules()
        ]
        self._all_hooks = [_all_hooks_of(part) for _, part, _, _ in self._parts]
        self._kinds = [type(part) for _, part, _, _ in self._parts]
        self._counts = [len(vars(part)) for _, part, _, _ in self._parts]

    def _hooks_of(self, part: nn.Module) -> tuple[int, ...]:
        """Return the numbers of a module's hooks without hatrack's own, as :func:`_all_hooks_of`.

        They tell whether hooks are the same, since torch gives no number twice.
        """
        before, after = (
            [number for number, hook in table.items() if not self._is_ours(hook)]
            for table in (part._forward_pre_hooks, part._forward_hooks)
        )
        return (*before, -1, *after)

    def are_altered(self) -> bool:
        """Return whether any setting or hook has changed, hatrack's own hooks and the order of all among them."""
        return any(
            _all_hooks_of(part) != together
            or type(part) is not kind
            or any(_is_other(vars(part).get(key), value) for key, value in settings.items())
            or (len(vars(part)) != count and bool(self._new(name, part, settings)))
            for (name, part, settings, _), together, kind, count in zip(
                self._parts, self._all_hooks, self._kinds, self._counts, strict=True
            )
        )

    def _new(self, name: str, part: nn.Module, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings of a module that it did not have."""
        present = _controls_of(part, name, self._moving)
        return {key: value for key, value in present.items() if key not in settings}

    def altered(self, place: str = "") -> list[str]:
        """Return in words what has changed, such as ``"norm.eps (1e-05 before, 0.1 now)"``.

        Args:
            place: name of this network as a part of a larger one; empty where it is the whole.
        """
        found = []
        for (inner, part, settings, hooks), kind in zip(self._parts, self._kinds, strict=True):
            name = f"{place}.{inner}".strip(".")
            if type(part) is not kind:
                found.append(f"the class of {name or 'the backbone'} ({kind.__name__} before)")
            found += [
                f"{name}.{key}".lstrip(".") + f" (missing before, {value!r} now)"
                for key, value in self._new(inner, part, settings).items()
            ]
            for key, value in settings.items():
                present = vars(part).get(key)
                if _is_other(present, value):
                    inherited = getattr(type(part), key, None)
                    before, now = (inherited if each is None else each for each in (value, present))
                    found.append(f"{name}.{key}".lstrip(".") + f" ({before!r} before, {now!r} now)")
            if self._hooks_of(part) != hooks:
                found.append(f"the hooks of {name or 'the backbone'}")
        return found

    def put_back(self, copy: nn.Module) -> None:
        """Give a copy of the network the settings that were recorded, and those of the recorded hooks that it has."""
        for (name, original, settings, hooks), kind in zip(self._parts, self._kinds, strict=True):
            part = copy.get_submodule(name)
            if type(part) is not kind:
                part.__class__ = kind
            for key in self._new(name, original, settings):
                vars(part).pop(key, None)
            for key, value in settings.items():
                if value is None and hasattr(type(part), key):  # it was the class's
                    vars(part).pop(key, None)
                else:
                    vars(part)[key] = value
            for name_of_table in ("_forward_pre_hooks", "_forward_hooks"):  # which twins share with originals
                table = vars(part)[name_of_table]
                kept = {number: hook for number, hook in table.items() if number in hooks or self._is_ours(hook)}
                vars(part)[name_of_table] = type(table)(kept)


def settings_in_json(
    module: nn.Module, moving: Collection[str] = (), *, gathering: bool = False
) -> dict[str, dict[str, Any]]:
    """Return by name of every module of a network the settings by which it may choose what it does, as JSON values.

    Args:
        module: the network.
        moving: names of attributes that a run itself changes.
        gathering: whether those are among them that matter in training alone: ``momentum`` of batch norms, and ``p``
            of torch's dropout.
    """
    found = {name: _settings_of(part, name, moving, gathering) for name, part in module.named_modules()}
    return {
        name: {key: _as_json(value) for key, value in settings.items()} for name, settings in found.items() if settings
    }


def restore_settings(module: nn.Module, saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Give the modules of a network the settings of a file.

    Args:
        module: the network.
        saved: what :func:`settings_in_json` returned. Settings that a module does not have are passed over, and so are
            those that were no numbers, truth values, texts or None.
    """
    for name, part in module.named_modules():
        present = _settings_of(part, name, (), gathering=True)
        for key, value in saved.get(name, {}).items():
            if key in present and _is_other(present[key], value) and _may_replace(value, present[key]):
                vars(part)[key] = value


def _may_replace(value: Any, present: Any) -> bool:
    """Return whether a JSON value is the setting itself, and not a text for one that JSON cannot hold."""
    if isinstance(value, str):
        return isinstance(present, str)
    return isinstance(value, (bool, int, float, type(None))) and isinstance(
        present, (bool, int, float, type(None), np.generic)
    )


def _as_json(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, tuple):
        return [_as_json(each) for each in value]
    plain = isinstance(value, (bool, int, str, type(None))) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else repr(value)


def _settings_of(part: nn.Module, name: str, moving: Collection[str], gathering: bool = False) -> dict[str, Any]:
    """Return attributes of a module by which it may choose what it does, those of its classes included.

    The names that are left out, ``moving``, and ``gathering`` are those of :func:`settings_in_json`.
    """
    prefix = f"{name}." if name else ""
    kinds = [kind for kind in type(part).__mro__ if kind not in nn.Module.__mro__]
    inherited = [key for kind in kinds for key, value in vars(kind).items() if _is_setting(value) and key[:2] != "__"]
    present = [key for key in vars(part) if not key.startswith("_hatrack")]  # records of who is attached
    names = [key for key in dict.fromkeys((*present, *inherited)) if key not in _OF_TORCH]
    own = {key: vars(part).get(key) for key in names if f"{prefix}{key}" not in moving}
    if not gathering:  # old tasks gather no statistics and drop nothing; schedules change both at every step
        if isinstance(part, _NormBase):
            own.pop("momentum", None)
        if type(part) in _DROPOUTS:
            own.pop("p", None)
    return {key: value for key, value in own.items() if _is_setting(value)}


def _controls_of(part: nn.Module, name: str, moving: Collection[str]) -> dict[str, Any]:
    """Return what :func:`_settings_of` does, and further attributes of the module itself that decide on what it does.

    These are functions, members of enumerations, types of numbers and devices; arrays; and lists, tuples, sets and
    mappings of all that. Containers are copies.
    """
    prefix = f"{name}." if name else ""
    own = {
        key: _copied(value)
        for key, value in vars(part).items()
        if key not in _OF_TORCH
        and key != "forward"  # which the record of layers has
        and not key.startswith("_hatrack")
        and f"{prefix}{key}" not in moving
        and not _is_setting(value)
        and _decides(value)
    }
    return {**_settings_of(part, name, moving), **own}


def _copied(value: Any) -> Any:
    """Return a copy of a container and of those in it; code and plain values are themselves."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) is dict:
        return {key: _copied(part) for key, part in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (list, tuple, set, frozenset) else value


def _decides(value: Any, depth: int = 3) -> bool:
    """Return whether a value is code, an array, or a container of such and of plain values, and not too large."""
    if isinstance(value, (*PLAIN_VALUES, *_CODE)):
        return True
    if isinstance(value, np.ndarray):
        return value.size <= _MOST and not value.dtype.hasobject
    if type(value) not in (list, tuple, set, frozenset, dict) or not depth or len(value) > _MOST:
        return False
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    return all(_decides(part, depth - 1) for part in parts)


def _is_other(present: Any, value: Any) -> bool:
    if present is value and not isinstance(value, (list, dict, set, np.ndarray)):
        return False
    if type(present) is not type(value):
        return True
    if isinstance(value, (list, tuple)):
        return len(present) != len(value) or any(map(_is_other, present, value))
    if isinstance(value, dict):
        return present.keys() != value.keys() or any(_is_other(present[key], value[key]) for key in value)
    if isinstance(value, np.ndarray):
        return not np.array_equal(present, value)
    return bool(present != value)


def _is_setting(value: Any) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return all(isinstance(each, PLAIN_VALUES) for each in parts)


def _is_not_ours(hook: object) -> bool:
    return False


def _all_hooks_of(part: nn.Module) -> tuple[int, ...]:
    """Return the numbers of a module's hooks: those before its forward pass, −1, and those after it."""
    return (*part._forward_pre_hooks, -1, *part._forward_hooks)
