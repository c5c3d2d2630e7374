"""Origins of values in the arguments of modules, which tell where a function inside a module may read units.

A gate can only stand at the input of a module. A function that mixes units, such as ``F.layer_norm`` or a mean over
channels, is exact behind that gate if no other value that belongs to units has joined on the way from there: its view
of a unit that is off is then computed from zeros and from units that are on.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from hatrack.units.graph import OUTPUT

__all__ = ["Argument", "Sources", "arguments_of"]

_BEHIND = 1000
"""Number above every position of an argument, from which those count that can be given by name alone."""


@dataclass(eq=False)
class Argument:
    """Argument that a module was called with, or its result.

    Attributes:
        module: the module's name.
        position: the argument's position, as from :func:`arguments_of`; ``OUTPUT`` for a result.
        keyword: the argument's name; empty if it has none.
        value: the tensor that was given.
        version: the value's version, which grows when it is changed in place.
        labels: the labels of a result; None for an argument.
    """

    module: str
    position: int
    keyword: str
    value: Tensor
    version: int
    labels: Tensor | None = None

    @property
    def changed(self) -> bool:
        """True if an argument was changed in place since; a gate would have put a copy in its place."""
        return self.position != OUTPUT and self.value._version != self.version


def arguments_of(module: nn.Module, args: Iterable[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[int, str, Any]]:
    """Yield the arguments of a call with a position and a name that are the same however they are given.

    Args:
        module: the module that is called.
        args: positional arguments.
        kwargs: keyword arguments.

    Yields:
        Position, name (empty if it has none) and value. What has no position gets a number that no position reaches.
    """
    names = _positional_names(type(module).forward)
    for position, value in enumerate(args):
        yield position, names[position] if position < len(names) else "", value
    for name, value in kwargs.items():
        yield names.index(name) if name in names else _BEHIND + zlib.crc32(name.encode()), name, value


@lru_cache(maxsize=1024)
def _positional_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a method's arguments that can be given by position, without the first."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[1:]
    except (TypeError, ValueError):  # written in C, say
        return ()
    return tuple(each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD)


class Sources:
    """Record of the arguments that values are computed from, if from nothing else that belongs to units."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, int, frozenset[Argument]]] = {}
        self._behind: dict[int, tuple[Tensor, int, frozenset[Argument]]] = {}
        self._cleared: set[int] = set()
        self._given: dict[tuple[str, int], list[Argument]] = {}

    def of(self, value: Tensor) -> frozenset[Argument] | None:
        """Return the arguments that a value comes from; None if from others too, or changed in place by others."""
        known = self._known.get(id(value))
        return known[2] if known is not None and known[1] == value._version else None

    def behind(self, value: Tensor) -> frozenset[Argument] | None:
        """Return the arguments and results of modules that a value comes from; None if from elsewhere too."""
        known = self._behind.get(id(value))
        return self.of(value) or (known[2] if known is not None and known[1] == value._version else None)

    def remember_behind(self, value: Tensor, sources: frozenset[Argument] | None) -> None:
        """Record the arguments and results of modules that a value comes from."""
        if sources is None:
            self._behind.pop(id(value), None)
        else:
            self._behind[id(value)] = (value, value._version, sources)

    def leave_with(self, module: str, value: Tensor, labels: Tensor) -> Argument:
        """Record the result of a module; from here on it comes from there, unless its origin is known.

        Args:
            module: the module's name.
            value: its result.
            labels: the labels of that.
        """
        result = Argument(module, OUTPUT, "", value, value._version, labels)
        self._given.setdefault((module, OUTPUT), []).append(result)
        self.remember_behind(value, frozenset([result]))
        return result

    def is_cleared(self, value: Tensor) -> bool:
        """Return whether a value is 0 at units that are off, as the arguments are behind their gates."""
        return self.of(value) is not None and id(value) in self._cleared

    def remember(self, value: Tensor, sources: frozenset[Argument] | None, cleared: bool) -> None:
        """Record where a value comes from, and whether it is 0 at units that are off."""
        (self._cleared.add if cleared else self._cleared.discard)(id(value))
        if sources is None:
            self._known.pop(id(value), None)
        else:
            self._known[id(value)] = (value, value._version, sources)  # kept, so that no other gets its identity

    def given(self, module: str, position: int) -> list[Argument]:
        """Return the values that a module was given for one argument, call by call."""
        return self._given.get((module, position), [])

    def enter(
        self, name: str, module: nn.Module, args: Iterable[Any], kwargs: Mapping[str, Any]
    ) -> list[tuple[Argument, Any, bool]]:
        """Enter a module: inside it, its arguments come from themselves.

        Args:
            name: the module's name.
            module: the module.
            args: positional arguments of the call.
            kwargs: keyword arguments.

        Returns:
            State before the call, for :meth:`leave`.
        """
        given = list(arguments_of(module, args, kwargs))
        arguments = [
            Argument(name, position, keyword, value, value._version)
            for position, keyword, value in given
            if isinstance(value, Tensor) and value.is_floating_point()
        ]
        before = [(argument, self.of(argument.value), self.is_cleared(argument.value)) for argument in arguments]
        inside = {id(value) for *_, each in given if isinstance(each, (tuple, list)) for value in each}
        for argument in arguments:
            # One value may be given twice, and a gate be needed at each place; none reaches inside a list.
            same = frozenset(other for other in arguments if other.value is argument.value)
            self.remember(argument.value, None if id(argument.value) in inside else same, cleared=True)
            self._given.setdefault((name, argument.position), []).append(argument)
        return before

    def leave(self, before: list[tuple[Argument, Any, bool]]) -> None:
        """Leave a module: its arguments are again what they were outside, unless they were changed in place."""
        for argument, sources, cleared in before:
            self.remember(argument.value, None if argument.changed else sources, cleared)
