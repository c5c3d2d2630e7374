"""Paths: the functions that a network calls for an input, to tell whether two calls do the same.

A labelled run says what is done to units, and costs several forward passes; a path costs one. Where a call takes the
path of one that was labelled, it does the same to units.
"""

from __future__ import annotations

import enum
import hashlib
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hatrack.state.comparing import PLAIN_VALUES, own_attributes
from hatrack.support.inputs import Inputs, tensors_in
from hatrack.support.interface import PLAIN, Interface
from hatrack.support.names import words
from hatrack.support.transforms import is_inside_transform
from hatrack.units.decisions import Decisions, Way, reads_truth
from hatrack.units.functions import FACTS, FunctionNames

__all__ = ["Path", "PathRecord", "features_and_path", "path_of", "stray_parameters"]

_COUNTING = words(
    """
    view reshape expand repeat unflatten resize_ broadcast_to tile as_strided narrow split split_with_sizes tensor_split
    chunk __getitem__ repeat_interleave zeros ones full empty rand randn randint eye arange linspace
    new_zeros new_ones new_full new_empty one_hot bernoulli_
    """
)
"""Names of functions whose numbers may be in proportion to the samples; in others that makes another path."""

_FLAGGED = ("dropout", "batch_norm", "instance_norm", "attention", "lstm", "gru", "rnn_tanh", "rnn_relu")
"""Ends of the names of functions with a flag for training, which does not change what they do to units."""

_ATTENTION = "scaled_dot_product_attention"
"""End of the name of a function whose rate of dropout differs between modes; to units it does the same."""

_NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format, enum.Enum, range, type(...))
"""Further settings that are told apart by what they are."""

_Call = tuple[str, tuple[Any, ...], tuple[Any, ...]]


@dataclass(frozen=True)
class Path:
    """Calls of modules and functions that a network makes for a batch, in their order.

    Attributes:
        samples: number of samples of the batch.
        calls: for each call the name of the module or function, the origins of its tensors (the name of a parameter or
            buffer, the number of an earlier call, the input, or the digest of a constant), and its settings.
        way: outcomes of all truth values of tensors that were read.
    """

    samples: int
    calls: tuple[_Call, ...]
    way: Way = ()

    def is_same(self, other: Path) -> bool:
        """Return whether both make the same calls, where sizes may be in proportion to the number of samples."""
        if len(self.calls) != len(other.calls):
            return False
        for (name, given, settings), (its_name, its_given, its_settings) in zip(self.calls, other.calls, strict=True):
            if (name, given, len(settings)) != (its_name, its_given, len(its_settings)):
                return False
            counting = name.rpartition(".")[2] in _COUNTING
            for mine, its in zip(settings, its_settings, strict=True):
                if mine != its and not (counting and self._is_in_proportion(mine, its, other)):
                    return False
        return True

    def _is_in_proportion(self, mine: Any, its: Any, other: Path) -> bool:
        counts = type(mine) is int and type(its) is int and mine > 0
        return counts and mine * other.samples == its * self.samples


class PathRecord:
    """Record of the calls of modules and functions while a network runs, from which its path is made.

    Args:
        model: the network.
        x: the batch that it runs on.

    Attributes:
        others: parameters, and other tensors that are trained, that it has computed with and does not own.
    """

    def __init__(self, model: nn.Module, x: Inputs) -> None:
        self._named = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        inputs = list(tensors_in(x))
        self._named.update(
            {id(each): f"the input {number}" if number else "the input" for number, each in enumerate(inputs)}
        )
        self._made: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._calls: list[_Call] = []
        self.others: list[Tensor] = []

    def enter(self, name: str, *_: Any) -> None:
        """Record the call of a module: gates stand before modules, also where two of them compute the same."""
        self._calls.append((f"module {name}", (), ()))

    def call(self, name: str, own: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
        """Record the call of a function before it is made.

        Args:
            name: the full name of the function.
            own: the last part of that.
            args: positional arguments.
            kwargs: keyword arguments.

        Returns:
            The number of the call, for :meth:`result`; None where it is no part of a path.
        """
        if own in FACTS or _counts_batches(name, args):
            return None
        given = list(tensors_in((args, kwargs)))
        self.others += [each for each in given if self._is_stray(each)]
        flags = not name.endswith(_FLAGGED)
        said = _without_dropout(args, kwargs) if name.endswith(_ATTENTION) else (args, kwargs)
        self._calls.append((name, tuple(map(self._source_of, given)), tuple(_settings(said, flags))))
        return len(self._calls) - 1

    def _is_stray(self, value: Tensor) -> bool:
        """Return whether a value is trained, and neither the network's own nor made in the run."""
        if id(value) in self._named or not (isinstance(value, nn.Parameter) or (value.requires_grad and value.is_leaf)):
            return False
        return isinstance(self._source_of(value), str)

    def result(self, number: int | None, output: Any) -> None:
        """Record the result of a call, from its number."""
        if number is not None:
            self._made.update({id(value): (weakref.ref(value), number) for value in tensors_in(output)})

    def path(self, samples: int, way: Way) -> Path:
        """Return the path that was taken.

        Args:
            samples: number of samples of the batch.
            way: outcomes of all truth values of tensors that were read.
        """
        return Path(samples, tuple(self._calls), way)

    def _source_of(self, value: Tensor) -> str | int:
        """Return the origin of a value: a name in the model, the input, the number of a call, or a digest."""
        reference, number = self._made.get(id(value), (None, -1))
        if reference is not None and reference() is value:
            return number
        return self._named.get(id(value)) or _digest(value)


class _Recorder(TorchFunctionMode):
    """Observer of the calls of functions, for a record."""

    def __init__(self, record: PathRecord, way: Way = ()) -> None:
        super().__init__()
        self.decisions = Decisions(way)
        self._record, self._names = record, FunctionNames()

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, own = self._names.of(func)
        number = self._record.call(name, own, args, kwargs)
        output = func(*args, **kwargs)
        if reads_truth(own, args):
            return self.decisions.take(output)
        self._record.result(number, output)
        return output


@torch.no_grad()
def _digest(constant: Tensor) -> str:
    """Return a text that tells a constant from others: its shape, type and a hash of its values."""
    if constant.layout != torch.strided or constant.is_meta or is_inside_transform(constant):
        return f"constant {tuple(constant.shape)} {constant.dtype}"
    values = constant.detach().cpu().contiguous().flatten().view(torch.uint8) if constant.numel() else constant
    content = hashlib.sha256(bytes(values.numpy()) if constant.numel() else b"").hexdigest()
    return f"constant {tuple(constant.shape)} {constant.dtype} {content}"


def _counts_batches(name: str, args: tuple[Any, ...]) -> bool:
    """Return whether a call is a batch norm's count of batches, which it keeps in training alone."""
    counter = args[0] if args else None
    return name.endswith(".add_") and isinstance(counter, Tensor) and not counter.dim() and counter.dtype == torch.int64


def _without_dropout(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return arguments of scaled dot-product attention without its rate of dropout, the fifth one."""
    return (args[:4], args[5:]), {key: value for key, value in kwargs.items() if key != "dropout_p"}


def _settings(tree: Any, flags: bool) -> Iterator[Any]:
    """Yield nested arguments other than tensors; truth values only if asked for, since they may be a mode.

    Nothing is left out: an argument that is not told apart would let two calls pass for the same.
    """
    if isinstance(tree, (tuple, list)):
        for branch in tree:
            yield from _settings(branch, flags)
    elif isinstance(tree, dict):
        for key, branch in tree.items():
            yield key
            yield from _settings(branch, flags)
    elif isinstance(tree, slice):
        yield from _settings((tree.start, tree.stop, tree.step), flags)
    elif isinstance(tree, (bool, np.bool_)):
        yield from (bool(tree),) if flags else ()
    elif isinstance(tree, np.generic):
        yield tree.item()
    elif isinstance(tree, np.ndarray):
        yield f"array {tree.shape} {tree.dtype} {hashlib.sha256(repr(tree.tolist()).encode()).hexdigest()}"
    elif isinstance(tree, (*PLAIN_VALUES, *_NAMED)):
        yield tree
    elif not isinstance(tree, Tensor):  # whose origin is recorded apart
        yield f"{type(tree).__module__}.{type(tree).__qualname__}"
        yield from _settings([each for each in (own_attributes(tree) or {}).items() if _is_plain(each[1])], flags)


def _is_plain(value: Any) -> bool:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return all(isinstance(each, (*PLAIN_VALUES, np.ndarray)) for each in parts)


def path_of(model: nn.Module, x: Inputs, training: bool, interface: Interface = PLAIN, way: Way = ()) -> Path:
    """Return the path that a network takes for an input.

    Args:
        model: the network, which is run as it is: a copy, where that may leave traces.
        x: a batch.
        training: whether to run it in training mode.
        interface: how the network is called, and what of its result are its features.
        way: outcomes of the first truth values of tensors that are read; others are as values have it.
    """
    return features_and_path(model, x, training, interface, way)[1]


def features_and_path(
    model: nn.Module, x: Inputs, training: bool, interface: Interface = PLAIN, way: Way = ()
) -> tuple[Tensor, Path]:
    """Return the features that a network gives for an input, and the path that it takes; see :func:`path_of`."""
    model.train(training)
    record = PathRecord(model, x)
    recorder = _Recorder(record, way)
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(partial(record.enter, name), prepend=True))
        with recorder:
            features = interface.run(model, x)
    return features, record.path(interface.samples(x), tuple(recorder.decisions.seen))


def stray_parameters(model: nn.Module, x: Inputs, interface: Interface = PLAIN) -> list[Tensor]:
    """Return parameters that a network computes with but does not own, such as those of layers in a plain list.

    Other tensors that require gradients, and were not made in the run, count as parameters.

    Args:
        model: the network, which is run as it is.
        x: a batch.
        interface: how the network is called, and what of its result are its features.
    """
    record = PathRecord(model, x)
    with _Recorder(record):
        interface.run(model, x)
    return record.others
