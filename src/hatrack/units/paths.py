"""Paths: which functions a network calls for an input, to tell whether two calls do the same.

A labelled run says what is done to units, and costs several forward passes; a path costs one. Where a call takes the
path of one that was labelled, it does the same to units.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hatrack.units.run import FACTS, function_name, tensors_in

__all__ = ["Path", "path_of", "stray_parameters"]


@dataclass(frozen=True)
class Path:
    """The calls of functions that a network makes for a batch, in their order.

    Attributes:
        samples: number of samples of the batch.
        calls: for each call the function's name, where the tensors come from that it is given (the name of a parameter,
            or the number of an earlier call), and its settings.
    """

    samples: int
    calls: tuple[tuple[str, tuple[str | int, ...], tuple[Any, ...]], ...]

    def is_same(self, other: Path) -> bool:
        """Return whether both make the same calls, with settings alike or in proportion to the number of samples.

        Flags are not compared: what dropout and norms do to units is the same in training.
        """
        if len(self.calls) != len(other.calls):
            return False
        for (name, given, settings), (its_name, its_given, its_settings) in zip(self.calls, other.calls, strict=True):
            if (name, given, len(settings)) != (its_name, its_given, len(its_settings)):
                return False
            for mine, its in zip(settings, its_settings, strict=True):
                if mine != its and not self._is_in_proportion(mine, its, other):
                    return False
        return True

    def _is_in_proportion(self, mine: Any, its: Any, other: Path) -> bool:
        return isinstance(mine, int) and isinstance(its, int) and mine * other.samples == its * self.samples


class _Recorder(TorchFunctionMode):
    """Notes which functions are called, and with what."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._parameters = {id(parameter): name for name, parameter in model.named_parameters()}
        self._made: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self.calls: list[tuple[str, tuple[str | int, ...], tuple[Any, ...]]] = []
        self.others: list[nn.Parameter] = []  # parameters that are not the model's

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if name.rpartition(".")[2] in FACTS or _counts_batches(name, args):
            return func(*args, **kwargs)
        given = list(tensors_in((args, kwargs)))
        self.others += [p for p in given if isinstance(p, nn.Parameter) and id(p) not in self._parameters]
        number = len(self.calls)
        self.calls.append((name, tuple(map(self._origin, given)), tuple(_settings((args, kwargs)))))
        output = func(*args, **kwargs)
        self._made.update({id(value): (weakref.ref(value), number) for value in tensors_in(output)})
        return output

    def _origin(self, value: Tensor) -> str | int:
        """The name of a parameter, or the number of the call that made a value; of the input and constants -1."""
        if id(value) in self._parameters:
            return self._parameters[id(value)]
        reference, number = self._made.get(id(value), (None, -1))
        return number if reference is not None and reference() is value else -1


def _counts_batches(name: str, args: tuple[Any, ...]) -> bool:
    """Return whether a call is a batch norm's count of batches, which it keeps in training alone."""
    counter = args[0] if args else None
    return name.endswith(".add_") and isinstance(counter, Tensor) and not counter.dim() and counter.dtype == torch.int64


def _settings(tree: Any) -> Iterator[Any]:
    """Yield the numbers and texts among nested arguments, but for flags."""
    if isinstance(tree, (tuple, list)):
        for branch in tree:
            yield from _settings(branch)
    elif isinstance(tree, dict):
        for key, branch in tree.items():
            yield key
            yield from _settings(branch)
    elif isinstance(tree, slice):
        yield from _settings((tree.start, tree.stop, tree.step))
    elif isinstance(tree, (int, float, str, torch.dtype)) and not isinstance(tree, bool):
        yield tree


def path_of(model: nn.Module, x: Tensor, training: bool) -> Path:
    """Return the path that a network takes for an input.

    Args:
        model: the network, which is run as it is: a copy, where that may leave traces.
        x: a batch.
        training: whether to run it in training mode.
    """
    model.train(training)
    recorder = _Recorder(model)
    with recorder:
        model(x)
    return Path(len(x), tuple(recorder.calls))


def stray_parameters(model: nn.Module, x: Tensor) -> list[nn.Parameter]:
    """Return parameters that a network computes with although they are not its own, as torch knows it.

    Such as those of layers that it keeps in a plain list.

    Args:
        model: the network, which is run as it is.
        x: a batch.
    """
    recorder = _Recorder(model)
    with recorder:
        model(x)
    return recorder.others
