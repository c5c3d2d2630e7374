"""Origins of values in the arguments of modules, which tell where a function inside a module may read units.

A gate can only stand at the input of a module. A function that mixes units, such as ``F.layer_norm`` or a mean over
channels, is exact behind that gate if no other value that belongs to units has joined on the way from there: its view
of a unit that is off is then computed from zeros and from units that are on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hatrack.units.graph import OUTPUT

__all__ = ["Argument", "Sources"]


@dataclass(eq=False)
class Argument:
    """Argument that a module was called with, or its result.

    Attributes:
        module: the module's name.
        position: the argument's position, or any behind the last one if it was given by name; ``OUTPUT`` for a result.
        keyword: the argument's name, if it was given by name.
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

    def enter(self, module: str, args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[tuple[Argument, Any, bool]]:
        """Enter a module: inside it, its arguments come from themselves.

        Returns:
            State before the call, for :meth:`leave`.
        """
        given = [("", value) for value in args] + list(kwargs.items())
        arguments = [
            Argument(module, position, keyword, value, value._version)
            for position, (keyword, value) in enumerate(given)
            if isinstance(value, Tensor) and value.is_floating_point()
        ]
        before = [(argument, self.of(argument.value), self.is_cleared(argument.value)) for argument in arguments]
        inside = {id(value) for _, each in given if isinstance(each, (tuple, list)) for value in each}
        for argument in arguments:
            # One value may be given twice, and a gate be needed at each place; none reaches inside a list.
            same = frozenset(other for other in arguments if other.value is argument.value)
            self.remember(argument.value, None if id(argument.value) in inside else same, cleared=True)
            self._given.setdefault((module, argument.position), []).append(argument)
        return before

    def leave(self, before: list[tuple[Argument, Any, bool]]) -> None:
        """Leave a module: its arguments are again what they were outside, unless they were changed in place."""
        for argument, sources, cleared in before:
            self.remember(argument.value, None if argument.changed else sources, cleared)
