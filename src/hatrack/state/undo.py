"""Undoing of operations that fail or are interrupted, so that a network or a backbone is as it was before.

Ctrl-C raises ``KeyboardInterrupt`` between any two instructions. The state that an operation changes is therefore
recorded before it begins, and restored after any error. The record holds references: a network is made of dictionaries,
lists and tensors, and operations replace entries rather than write into tensors. Tensors that they do write into are
copied.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import traceback
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from contextvars import ContextVar
from types import MethodType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.optim import Optimizer
from torch.overrides import _get_current_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode

from hatrack.support.modes import plain_modes, trainable

__all__ = [
    "Snapshot",
    "UndoLog",
    "all_or_nothing",
    "attaches_or_not",
    "copies_of",
    "leaves_modes",
    "values_before_attaching",
]


class UndoLog:
    """Record of changes of parameters, attributes and tables in place, by which all of them are undone."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set_data(self, parameter: Tensor, data: Tensor) -> None:
        """Give a parameter other values, of any shape; it stays the same object, so that optimizers keep it.

        Args:
            parameter: the parameter.
            data: its new values.
        """
        before, gradient = parameter.data, parameter.grad
        _replace(parameter, data)

        def undo() -> None:
            _replace(parameter, before)
            parameter.grad = gradient

        self._undo.append(undo)

    def set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute, such as ``in_features`` or a buffer.

        Args:
            owner: the object.
            name: name of the attribute, which exists.
            value: its new value.
        """
        before = getattr(owner, name)
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, before))

    def set_item(self, table: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """Replace an entry of a table.

        Args:
            table: the table.
            key: key of the entry, which exists.
            value: its new value.
        """
        before = table[key]
        table[key] = value
        self._undo.append(lambda: table.__setitem__(key, before))

    def undo(self) -> None:
        """Undo all changes, the last one first."""
        while self._undo:
            self._undo.pop()()


def _replace(parameter: Tensor, data: Tensor) -> None:
    parameter.grad = None
    # A graph that is still referenced (by a loss, say) keeps the node that collects the gradient, with the old shape.
    # A change of the type makes torch drop that node.
    other = torch.float32 if data.dtype == torch.float64 else torch.float64
    parameter.data = torch.empty(0, dtype=other, device=data.device)
    parameter.data = data


MethodT = TypeVar("MethodT", bound=Callable[..., Any])
Selector = Callable[[Any], Iterable[Tensor]]
"""Function from a network to the tensors whose values an operation changes in place."""

_EMPTY: dict[Any, Any] = {}

_IMMUTABLE = frozenset([int, float, bool, str, bytes, tuple, frozenset, type(None), Tensor, nn.Parameter])
"""Types of values that an operation replaces and never changes; tensors are recorded by themselves."""

_TORCH = frozenset(vars(nn.Module()))
"""Attributes that torch gives to every module."""

_BEFORE: ContextVar[Snapshot | None] = ContextVar("_BEFORE", default=None)
"""Record of the backbone that is being attached; None outside of that."""


class _Modes:
    """Record of torch's modes in this thread."""

    def __init__(self) -> None:
        self._depths = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
        self._grad_enabled = torch.is_grad_enabled()
        self._functions = torch._C._get_torch_function_state()  # type: ignore[attr-defined]
        self._saving = _hooks_of_saving()
        self._autocast = _Autocast()

    def leave(self) -> None:
        """Restore the modes, leaving those whose end was not reached."""
        functions, dispatches = self._depths
        torch._C._set_torch_function_state(self._functions)  # type: ignore[attr-defined]
        while torch._C._len_torch_dispatch_stack() > dispatches:
            mode: Any = _get_current_dispatch_mode()
            mode.__exit__(None, None, None)
        while torch._C._len_torch_function_stack() > functions:
            mode = _get_current_function_mode()  # type: ignore[no-untyped-call]
            mode.__exit__(None, None, None)
        while (hooks := _hooks_of_saving()) != self._saving and hooks is not None:
            torch._C._autograd._pop_saved_tensors_default_hooks()
        self._autocast.restore()
        torch.set_grad_enabled(self._grad_enabled)


def _hooks_of_saving() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None:
    """Return the innermost hooks on tensors that are saved for backward passes, by default; None if there are none."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


class _Autocast:
    """Mixed precision as it was when this was made: how deep its contexts are nested, and what they chose.

    An interrupt just behind the entrance of a context leaves it open for ever, and with it a cache of weights in fewer
    digits that is never emptied: later trainings under autocast would compute with the weights of before.
    """

    def __init__(self) -> None:
        self._depth = _autocast_depth()
        self._caches = torch.is_autocast_cache_enabled()
        self._chosen = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")
        ]

    def restore(self) -> None:
        """Leave contexts whose end was not reached, and empty the cache where none is left."""
        while _autocast_depth() > self._depth:
            if torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()
        while _autocast_depth() < self._depth:
            torch.autocast_increment_nesting()
        torch.set_autocast_cache_enabled(self._caches)
        for kind, enabled, dtype in self._chosen:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)


def _autocast_depth() -> int:
    """Return the number of autocast contexts that are open; torch tells it in passing alone."""
    return (torch.autocast_increment_nesting() + torch.autocast_decrement_nesting()) // 2


class Snapshot:
    """Record of a module's structure and tensors, from which these are restored in place.

    Args:
        root: the module; its parts are recorded with it.
        optimizers: optimizers whose parameters and state are recorded, too; the state by reference.
        values_of: tensors whose values are copied.
    """

    def __init__(self, root: nn.Module, optimizers: Iterable[Optimizer] = (), values_of: Iterable[Tensor] = ()) -> None:
        self._tables: list[tuple[MutableMapping[Any, Any], dict[Any, Any]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._tensors: list[tuple[Tensor, Tensor, bool, Tensor | None, Tensor | None]] = []
        self._seen: set[int] = set()
        self._values = [
            (tensor, tensor.detach().clone(), _version_of(tensor))
            for tensor in values_of
            if not _is_uninitialized(tensor)
        ]
        for module in root.modules():
            self._record_module(module)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                self._record_table(group)
                self._record_list(group["params"])
            self._record_table(optimizer.state)
            for memory in optimizer.state.values():
                self._record_table(memory)
        self._modes = _Modes()
        self._random_state = torch.get_rng_state()

    def restore(self) -> None:
        """Restore everything; a second call changes nothing."""
        self._modes.leave()
        torch.set_rng_state(self._random_state)
        for table, entries in self._tables:
            _put_back(table, entries)
        for items, before in self._lists:
            items[:] = before
        with torch.no_grad():
            for tensor, data, trained, gradient, values in self._tensors:
                if not _is_same_memory(tensor, data):
                    UndoLog().set_data(tensor, data)
                if gradient is not None and values is not None and not _is_same_memory(gradient, values):
                    UndoLog().set_data(gradient, values)
                if tensor.grad is not gradient:  # which may be of an earlier shape, and could not be assigned then
                    tensor.grad = gradient
                tensor.requires_grad_(trained)
            for tensor, values, _ in self._values:
                if not torch.equal(tensor, values):
                    tensor.copy_(values)

    def values(self) -> dict[int, Tensor]:
        """Return, by identity, the copies of tensors, which must not be written to."""
        return {id(tensor): values for tensor, values, _ in self._values}

    def copies(self) -> dict[int, Tensor]:
        """Return, by identity, the copies of tensors that nothing has written to since."""
        unchanged = [each for each in self._values if each[2] is not None and each[2] == _version_of(each[0])]
        return {id(tensor): values for tensor, values, _ in unchanged}

    def _record_module(self, module: nn.Module) -> None:
        if id(module) in self._seen:
            return
        ours = any(kind.__module__.startswith("hatrack.") for kind in type(module).__mro__)  # subclasses of users, too
        self._record_table(vars(module))
        # Torch gives every module a dozen tables, nearly all of them empty; a network of many tasks has many modules.
        for name, value in vars(module).items():
            if name in _TORCH and isinstance(value, dict):
                self._tables.append((value, dict(value) if value else _EMPTY))
                if value and "hooks" in name:
                    self._record_all(value.values())
            elif ours:
                self._record(value)
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in self._seen and not _is_uninitialized(parameter):
                self._seen.add(id(parameter))
                gradient = parameter.grad
                values = None if gradient is None else gradient.data
                self._tensors.append((parameter, parameter.data, parameter.requires_grad, gradient, values))

    def _record(self, value: Any) -> None:
        """Record a container of the network's own, or a helper object, with what is in it."""
        if isinstance(value, (Tensor, nn.Module, type, enum.Enum, Optimizer)) or id(value) in self._seen:
            return
        if isinstance(value, dict):
            self._record_table(value)
            self._record_all(value.values())
        elif isinstance(value, list):
            self._record_list(value)
            self._record_all(value)
        elif isinstance(value, MethodType):
            self._record(value.__self__)
        elif type(value).__module__.startswith("hatrack.") and hasattr(value, "__dict__") and not _is_frozen(value):
            self._record(vars(value))

    def _record_all(self, values: Iterable[Any]) -> None:
        for each in [value for value in values if type(value) not in _IMMUTABLE]:
            self._record(each)

    def _record_table(self, table: MutableMapping[Any, Any]) -> None:
        if id(table) not in self._seen:
            self._seen.add(id(table))
            self._tables.append((table, dict(table)))

    def _record_list(self, items: list[Any]) -> None:
        if id(items) not in self._seen:
            self._seen.add(id(items))
            self._lists.append((items, list(items)))


def all_or_nothing(values_of: Selector | None = None) -> Callable[[MethodT], MethodT]:
    """Decorate a method of a network so that an error restores the network and its optimizers.

    Other threads ask before or after it. It runs outside of mixed precision and of inference mode.

    Args:
        values_of: returns the tensors that the method writes into; None where it replaces tensors only.
    """

    def decorate(method: MethodT) -> MethodT:
        @functools.wraps(method)
        def wrapped(network: Any, *args: Any, **kwargs: Any) -> Any:
            with network.turns.changing():
                try:
                    return all_of(network, *args, **kwargs)
                finally:
                    torch.clear_autocast_cache()  # within torch.autocast it holds the weights of before the change

        def all_of(network: Any, *args: Any, **kwargs: Any) -> Any:
            protection = vars(network).get("protection")
            values = () if values_of is None else values_of(network)
            snapshot = Snapshot(network, () if protection is None else protection.hooks.optimizers(), values)
            generator = kwargs.get("generator")
            drawn = None if generator is None else generator.get_state()
            try:
                grad = torch.is_grad_enabled()
                with plain_modes(), torch.set_grad_enabled(grad):  # what is made there could never be trained
                    return method(network, *args, **kwargs)
            except BaseException as error:
                _drop_inference_guards(error)
                snapshot.restore()
                if generator is not None and drawn is not None:
                    generator.set_state(drawn)
                raise

        return cast(MethodT, wrapped)

    return decorate


def leaves_modes(method: MethodT) -> MethodT:
    """Decorate a method that changes copies alone, or undoes changes itself, so that an error restores torch's modes.

    An interrupt just behind the entrance of ``torch.no_grad`` would leave gradients off for good.
    """

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        modes = _Modes()
        try:
            return method(*args, **kwargs)
        except BaseException as error:
            _drop_inference_guards(error)
            modes.leave()
            raise

    return cast(MethodT, wrapped)


def attaches_or_not(constructor: MethodT) -> MethodT:
    """Decorate a network's constructor so that an error restores the backbone; it runs outside of torch's contexts."""

    @functools.wraps(constructor)
    def wrapped(network: Any, backbone: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(backbone, nn.Module):
            constructor(network, backbone, *args, **kwargs)
            return
        with plain_modes():
            trainable(backbone)
            snapshot, outer = Snapshot(backbone, values_of=[*backbone.parameters(), *backbone.buffers()]), _BEFORE.get()
            try:
                _BEFORE.set(snapshot)
                constructor(network, backbone, *args, **kwargs)
            except BaseException as error:
                _drop_inference_guards(error)
                snapshot.restore()
                raise
            finally:
                _BEFORE.set(outer)

    return cast(MethodT, wrapped)


def values_before_attaching() -> dict[int, Tensor]:
    """Return, by identity, the values that tensors of a backbone had before a network began to be attached to it.

    They are the copies that are kept to undo attaching, and must not be written to. There are none outside of a
    constructor that :func:`attaches_or_not` decorates.
    """
    snapshot = _BEFORE.get()
    return {} if snapshot is None else snapshot.values()


def copies_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of tensors, which must not be written to.

    While a backbone is attached, they are those that are kept to undo it; a second copy of all parameters would be what
    the process needs most memory for.
    """
    snapshot = _BEFORE.get()
    kept = {} if snapshot is None else snapshot.copies()
    return [kept[id(t)] if id(t) in kept else t.detach().clone() for t in tensors]


def _drop_inference_guards(error: BaseException) -> None:
    """End the guards of inference mode that an interrupt has kept alive.

    An interrupt right after torch has made such a guard, and before it is entered, leaves it to the traceback. When
    that is freed, the guard restores the modes in which it was made, long after everything else was restored.
    """
    if isinstance(error, KeyboardInterrupt):
        traceback.clear_frames(error.__traceback__)


def _put_back(table: MutableMapping[Any, Any], entries: dict[Any, Any]) -> None:
    """Restore the entries of a table in their order, which matters for hooks, parameters and modules."""
    if list(table) == list(entries):
        for key, value in entries.items():
            if table[key] is not value:
                table[key] = value
        return
    table.clear()
    table.update(entries)


def _is_same_memory(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    if one.layout != torch.strided:
        return True
    return one.data_ptr() == other.data_ptr() and one.stride() == other.stride()


def _version_of(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return what changes whenever a tensor is written to, or gets other memory; None where torch does not count."""
    if tensor.is_inference() or tensor.layout != torch.strided:
        return None
    return tensor._version, tensor.data_ptr(), tensor.dtype, tensor.device


def _is_uninitialized(tensor: Tensor) -> bool:
    return isinstance(tensor, (UninitializedBuffer, UninitializedParameter))


def _is_frozen(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and bool(value.__dataclass_params__.frozen)  # type: ignore[union-attr]
