"""Origins of values in the arguments of modules, which tell where a function inside a module may read units.

A gate can only stand at the input of a module. A function that mixes units, such as ``F.layer_norm`` or a mean over
channels, is exact behind that gate if no other value that belongs to units has joined on the way from there: its view
of a unit that is off is then computed from zeros and from units that are on.
"""

from __future__ import annotations

import inspect
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from hatrack.units.graph import OUTPUT

__all__ = ["Argument", "Before", "Sources", "arguments_of"]

_BEHIND = 1000
"""Number above every position of an argument, from which those count that can be given by name alone."""


@dataclass(eq=False)
class Argument:
    """Argument that a module was called with, or its result.

    Attributes:
        module: the module's name.
        position: the argument's position, as from :func:`arguments_of`; ``OUTPUT`` for a result.
        keyword: the argument's name; empty if it has none.
        value: the tensor that was given; None for a result, which is not kept.
        version: the value's version, which grows when it is changed in place.
        labels: the labels of a result; None for an argument.
    """

    module: str
    position: int
    keyword: str
    value: Tensor | None
    version: int
    labels: Tensor | None = None

    @property
    def changed(self) -> bool:
        """True if an argument was changed in place since; a gate would have put a copy in its place."""
        return self.value is not None and self.value._version != self.version


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


Before = tuple[Argument, Tensor, frozenset[Argument] | None, bool]
"""Argument that a module is called with, its value, where that came from before, and whether it was 0 where off."""

_Origin = tuple[weakref.ref[Tensor], int, frozenset[Argument]]
"""Value, the version that it had, and where it comes from."""


def _sources_of(value: Tensor, origin: _Origin | None) -> frozenset[Argument] | None:
    """Return where a value comes from if its identity and its version are those of an origin."""
    same = origin is not None and origin[0]() is value and origin[1] == value._version
    return origin[2] if origin is not None and same else None


class Sources:
    """Record of the arguments that values are computed from, if from nothing else that belongs to units."""

    def __init__(self) -> None:
        self._known: dict[int, _Origin] = {}
        self._behind: dict[int, _Origin] = {}
        self._cleared: set[int] = set()
        self._given: dict[tuple[str, int], list[Argument]] = {}

    def of(self, value: Tensor) -> frozenset[Argument] | None:
        """Return the arguments that a value comes from; None if from others too, or changed in place by others."""
        return _sources_of(value, self._known.get(id(value)))

    def behind(self, value: Tensor) -> frozenset[Argument] | None:
        """Return the arguments and results of modules that a value comes from; None if from elsewhere too."""
        return self.of(value) or _sources_of(value, self._behind.get(id(value)))

    def remember_behind(self, value: Tensor, sources: frozenset[Argument] | None) -> None:
        """Record the arguments and results of modules that a value comes from."""
        if sources is None:
            self._behind.pop(id(value), None)
        else:
            self._behind[id(value)] = (weakref.ref(value), value._version, sources)

    def leave_with(self, module: str, value: Tensor, labels: Tensor) -> Argument:
        """Record the result of a module; from here on it comes from there, unless its origin is known.

        Args:
            module: the module's name.
            value: its result.
            labels: the labels of that.
        """
        result = Argument(module, OUTPUT, "", None, value._version, labels)
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
            self._known[id(value)] = (weakref.ref(value), value._version, sources)

    def given(self, module: str, position: int) -> list[Argument]:
        """Return the values that a module was given for one argument, call by call."""
        return self._given.get((module, position), [])

    def enter(self, name: str, module: nn.Module, args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[Before]:
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
            (Argument(name, position, keyword, value, value._version), value)
            for position, keyword, value in given
            if isinstance(value, Tensor) and value.is_floating_point()
        ]
        before = [(argument, value, self.of(value), self.is_cleared(value)) for argument, value in arguments]
        inside = {id(value) for *_, each in given if isinstance(each, (tuple, list)) for value in each}
        for argument, value in arguments:
            # One value may be given twice, and a gate be needed at each place; none reaches inside a list.
            same = frozenset(other for other, its in arguments if its is value)
            self.remember(value, None if id(value) in inside else same, cleared=True)
            self._given.setdefault((name, argument.position), []).append(argument)
        return before

    def leave(self, before: list[Before]) -> None:
        """Leave a module: its arguments are again what they were outside, unless they were changed in place."""
        for argument, value, sources, cleared in before:
            self.remember(value, None if argument.changed else sources, cleared)
