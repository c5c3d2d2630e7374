"""State that moves when a network is run: buffers and attributes that are no parameters.

State that one task's samples move would change the outputs of other tasks. Every task therefore has buffers of its own,
as of batch norms; moving attributes, which files do not hold, are refused unless outputs are independent of them.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hatrack.state.comparing import PLAIN_VALUES, differences, is_same_tensor, own_attributes, state_of
from hatrack.support.copies import deep_copy
from hatrack.support.inputs import Inputs
from hatrack.support.interface import PLAIN, Interface
from hatrack.support.randomness import random_numbers_apart

__all__ = [
    "Movement",
    "OwnBuffers",
    "ScratchRuns",
    "StateOf",
    "copy_of",
    "get_buffers",
    "movement_of",
    "scratch_of",
    "set_buffers",
    "without_saved_tensors",
    "without_trace",
]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Movement:
    """Names of the state that moves when a network is run.

    Attributes:
        buffers: buffers that keep their shape and type.
        attributes: other state: plain attributes, and buffers that change their shape, which are caches.
    """

    buffers: tuple[str, ...]
    attributes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of everything that moves."""
        return *self.buffers, *self.attributes

    def joined_with(self, other: Movement) -> Movement:
        """Return the state that moves in either of two runs."""
        attributes = dict.fromkeys((*self.attributes, *other.attributes))
        buffers = dict.fromkeys(name for name in (*self.buffers, *other.buffers) if name not in attributes)
        return Movement(tuple(buffers), tuple(attributes))

    def without(self, other: Movement) -> Movement:
        """Return the state that moves here, but not in another run."""
        known = (*other.buffers, *other.attributes)
        return Movement(
            tuple(name for name in self.buffers if name not in known),
            tuple(name for name in self.attributes if name not in known),
        )


@contextmanager
def without_trace() -> Iterator[None]:
    """Keep runs of copies in a block from leaving a trace in torch.

    Random generators are reset afterwards. Hooks on tensors that are saved for backward passes, as of checkpointing,
    are not called. Inference mode is off, since tensors made in it could never be trained.
    """
    unseen = torch.autograd.graph.saved_tensors_hooks(_itself, _itself)
    with torch.inference_mode(False), random_numbers_apart(), unseen:
        yield


def _itself(tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def without_saved_tensors() -> Iterator[Callable[[], bool]]:
    """Keep no tensors for backward passes in a block, which need most of the memory of a forward pass with gradients.

    Yields:
        A function that returns whether a backward pass has missed one of them, which has raised an error.
    """
    missed = []

    def miss(_: object) -> Tensor:
        missed.append(True)
        raise RuntimeError("no tensors were kept for this backward pass")

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, miss):
        yield lambda: bool(missed)


class OwnBuffers(nn.Module):
    """Buffers of the backbone of which a task has values of its own, in the order of their names.

    Args:
        values: initial values.
    """

    def __init__(self, values: Sequence[Tensor] = ()) -> None:
        super().__init__()
        for index, value in enumerate(values):
            self.register_buffer(str(index), value)

    @property
    def values(self) -> list[Tensor]:
        """Present values of the buffers."""
        return list(self.buffers())

    def replace(self, values: Sequence[Tensor]) -> None:
        """Replace the buffers by other tensors, such as those that a forward pass has put in their place."""
        for index, value in enumerate(values):
            if self._buffers[str(index)] is not value:
                self._buffers[str(index)] = value.detach()


def scratch_of(module: ModuleT, shared: Iterable[object] = ()) -> ModuleT:
    """Copy a module to be run without a trace in the original; parameters are shared.

    Args:
        module: the module.
        shared: what else is shared.
    """
    kept = {id(each): each for each in (*module.parameters(), *shared)}
    return deep_copy(module, {**kept, **_graphs(module)})


def copy_of(module: ModuleT) -> ModuleT:
    """Copy a module with parameters of its own; what it keeps of a graph, which cannot be copied, is shared."""
    return deep_copy(module, _graphs(module))


def _graphs(module: nn.Module) -> dict[int, Any]:
    """Return by identity the attributes that were computed from parameters, such as by weight norm."""
    values = (value for part in module.modules() for value in vars(part).values())
    return {id(value): value for value in values if isinstance(value, Tensor) and value.grad_fn is not None}


def set_buffers(module: nn.Module, names: Sequence[str], values: Sequence[Tensor]) -> None:
    """Replace buffers by other tensors.

    Args:
        module: the module.
        names: names of the buffers in the module.
        values: the new tensors, in the same order.
    """
    for name, value in zip(names, values, strict=True):
        owner, _, own = name.rpartition(".")
        module.get_submodule(owner)._buffers[own] = value


def get_buffers(module: nn.Module, names: Sequence[str]) -> list[Tensor]:
    """Return the present buffers with these names, in their order.

    Args:
        module: the module.
        names: names of the buffers in the module.
    """
    return [module.get_buffer(name) for name in names]


class StateOf:
    """Record of a network's buffers and attributes, to restore them.

    It copies the content of a user's own containers and objects, however deep, which a run may change; ``Snapshot`` in
    ``state/undo.py`` keeps references instead, to what hatrack's own operations replace.

    Args:
        module: the network.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parts = [(part, dict(part._buffers), state_of(part)) for part in module.modules()]
        self._contents: list[tuple[Any, Any]] = []
        self._seen = {id(part) for part in module.modules()} | {id(parameter) for parameter in module.parameters()}
        pending = [value for _, *tables in self._parts for table in tables for value in table.values()]
        while pending:
            value = pending.pop()
            if isinstance(value, PLAIN_VALUES) or id(value) in self._seen:
                continue
            self._seen.add(id(value))
            content = _content_of(value)
            if content is not None:
                self._contents.append((value, content))
                pending += _parts_of(content)

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore the recorded state."""
        for part, buffers, attributes in self._parts:
            _put_back(part._buffers, buffers)
            for name in [name for name in state_of(part) if name not in attributes]:
                del vars(part)[name]
            vars(part).update(attributes)
        for value, content in self._contents:
            _refill(value, content)


def _content_of(value: Any) -> Any:
    """Return a copy of the content of a tensor, a container or an object; None where nothing of it can change."""
    if isinstance(value, Tensor):
        return None if value.requires_grad or isinstance(value, nn.Parameter) else value.clone()
    if isinstance(value, (dict, list, deque, set, np.ndarray)):
        return copy.copy(value)
    if isinstance(value, tuple):
        return None if all(isinstance(each, PLAIN_VALUES) for each in value) else value
    if isinstance(value, MethodType):
        return (value.__self__,)
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    return None if isinstance(value, (type, FunctionType, ModuleType)) else own_attributes(value)


def _parts_of(content: Any) -> list[Any]:
    """Return what the content of a container or an object consists of."""
    if isinstance(content, (Tensor, np.ndarray)):
        return []
    return list(content.values() if isinstance(content, dict) else content)


def _refill(value: Any, content: Any) -> None:
    """Restore the content of a container, an array or an object."""
    if isinstance(value, Tensor):
        if not is_same_tensor(value, content):
            value.copy_(content)
    elif isinstance(value, np.ndarray):
        value[...] = content
    elif isinstance(value, dict):
        _put_back(value, content)
    elif isinstance(value, set):
        value.clear()
        value.update(content)
    elif isinstance(value, (list, deque)):
        value.clear()
        value.extend(content)
    elif not isinstance(value, (tuple, MethodType, partial)):  # whose parts were recorded
        for name in own_attributes(value) or ():
            if name not in content:
                object.__delattr__(value, name)
        for name, attribute in content.items():
            if getattr(value, name, None) is not attribute:
                object.__setattr__(value, name, attribute)


def _put_back(table: MutableMapping[Any, Any], entries: Mapping[Any, Any]) -> None:
    """Restore the entries of a table, which is left alone where none has changed."""
    if list(table) != list(entries) or any(table[key] is not entries[key] for key in entries):
        table.clear()
        table.update(entries)


class ScratchRuns:
    """Runs of a copy of a network in one mode, on one batch after the other.

    Args:
        module: the network; it is left as it is.
        interface: how the network is called, and what of its result are its features.
        training: whether to run in training mode.
        begun: a copy of the network that was run on a batch already, and this batch; None for a new copy.
        ask: computes the features of a batch with a copy of the network, in that mode; None for calling it.
    """

    def __init__(
        self,
        module: nn.Module,
        interface: Interface = PLAIN,
        training: bool = False,
        begun: tuple[nn.Module, Inputs] | None = None,
        ask: Callable[[nn.Module, Inputs], Tensor] | None = None,
    ) -> None:
        self._module, self._interface, self._training, self._ask = module, interface, training, ask
        self._scratch, self._batches = (scratch_of(module), []) if begun is None else (begun[0], [begun[1]])

    def run(self, batch: Inputs) -> Tensor:
        """Return the features of a batch. A run that fails leaves nothing: the copy is made anew."""
        try:
            with without_trace(), torch.no_grad():
                if self._ask is None:
                    features = self._interface.run(self._scratch.train(self._training), batch)
                else:
                    features = self._ask(self._scratch, batch)
        except BaseException:
            self._scratch, self._batches = scratch_of(self._module), []
            raise
        self._batches.append(batch)
        return features

    def has_run(self, batch: Inputs) -> bool:
        """Return whether the copy was run on a batch."""
        return any(batch is known for known in self._batches)

    def movement(self, batches: Sequence[Inputs], per_task: Sequence[str]) -> Movement:
        """Return the state that has moved when the copy was run on batches, those left out that it was run on already.

        Args:
            batches: the batches.
            per_task: names of the modules that are copied for every task.
        """
        for batch in batches:
            if not self.has_run(batch):
                self.run(batch)
        return movement_of(self._module, self._scratch, per_task)


def movement_of(original: nn.Module, scratch: nn.Module, per_task: Sequence[str]) -> Movement:
    """Return the state that a run has moved in a copy of a network.

    Args:
        original: the network.
        scratch: a copy of it that was run.
        per_task: names of the modules that are copied for every task.
    """
    buffers: dict[str, None] = {}
    attributes: dict[str, None] = {}
    own = tuple(f"{name}." for name in per_task)
    before, after = dict(original.named_buffers()), dict(scratch.named_buffers())
    for name in (name for name in after if not name.startswith(own)):
        was, now = before.get(name), after[name]
        if was is None or was.shape != now.shape or was.dtype != now.dtype:
            attributes[name] = None
        elif not is_same_tensor(was, now):
            buffers[name] = None
    parts = zip(original.named_modules(), scratch.modules(), strict=True)
    registered = {id(part) for part in original.modules()}
    for (name, part), copied in parts:
        for path in differences(state_of(part), state_of(copied), registered):
            attributes[f"{name}.{path}".lstrip(".")] = None
    return Movement(tuple(name for name in buffers if name not in attributes), tuple(attributes))
