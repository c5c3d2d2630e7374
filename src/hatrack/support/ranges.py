"""Types and ranges of settings: refuse what makes no sense, in one form of words."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import numbers
import typing
from collections.abc import Iterable, Mapping
from types import MappingProxyType, UnionType
from typing import Any

from torch import Tensor

from hatrack.errors import InputError

__all__ = ["require_above_zero", "require_nonnegative", "require_range", "require_types", "require_usual"]


def require_types(settings: Any) -> None:
    """Refuse fields of a data class that hold something of another type than they say.

    A text in the place of a member of an enumeration is equal to none of its members, so that whatever asks for one
    after the other would end with the last.

    Args:
        settings: instance of a data class. Fields whose types are more than classes and unions of these are left out.

    Raises:
        InputError: a field holds a value of another type; the message names it, and what it may be.
    """
    for key, kinds in _kinds_of(type(settings)).items():  # type: ignore[arg-type]
        value = getattr(settings, key)
        if not any(_is_a(value, kind) for kind in kinds):
            said = " or ".join(_in_words(kind) for kind in kinds)
            raise InputError(f"{key} must be {said}, not {value!r}")


@functools.cache
def _kinds_of(kind: Any) -> Mapping[str, tuple[type, ...]]:
    """Return the classes that the fields of a data class may hold instances of."""
    try:
        hints = typing.get_type_hints(kind)
    except NameError:  # of a class of somebody's own, whose types are defined within a function
        return MappingProxyType({})
    found = {field.name: _classes_in(hints[field.name]) for field in dataclasses.fields(kind)}
    return MappingProxyType({key: kinds for key, kinds in found.items() if all(isinstance(k, type) for k in kinds)})


def _classes_in(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or what stands alone; what is no class is left as it is."""
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return tuple(kind for each in typing.get_args(hint) for kind in _classes_in(each))
    return (hint,) if typing.get_origin(hint) is None else (None,)


def _is_a(value: Any, kind: type) -> bool:
    if kind in (int, float):
        return isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
    return isinstance(value, kind)


def _in_words(kind: type) -> str:
    if issubclass(kind, enum.Enum):
        return f"a {kind.__name__} ({', '.join(f'{kind.__name__}.{name}' for name in kind.__members__)})"
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", type(None): "None"}
    return words.get(kind, f"a {kind.__name__}")


def require_range(
    settings: Any,
    *keys: str,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Refuse settings outside of a range; a setting that is None is left out, and passes.

    Args:
        settings: object with an attribute per key.
        *keys: names of the settings.
        least: smallest value that is allowed.
        above: bound that a value must exceed.
        most: largest value that is allowed.
        below: bound that a value must stay under.

    Raises:
        InputError: a setting is out of range; the message names it and the range.
    """
    bounds = {f"at least {least}": least, f"above {above}": above, f"at most {most}": most, f"below {below}": below}
    words = " and ".join(said for said, bound in bounds.items() if math.isfinite(bound))
    for key in keys:
        value = getattr(settings, key)
        if value is None:
            continue
        _require_number(key, value)
        if not (least <= value <= most and above < value < below):
            raise InputError(f"{key} must be {words}, not {value}")


def require_nonnegative(settings: Any, *keys: str) -> None:
    """Refuse settings that are negative, infinite or no number.

    Args:
        settings: object with an attribute per key.
        *keys: names of the settings.

    Raises:
        InputError: a setting is not such a number; the message names it.
    """
    for key in keys:
        value = getattr(settings, key)
        _require_number(key, value)
        if not 0 <= value < math.inf:
            raise InputError(f"{key} must be a finite number, 0 or more, not {value}")


def require_usual(settings: Any, keys: Iterable[str] | None = None) -> None:
    """Refuse numbers among the settings of a data class that are negative, infinite or no number.

    None of hatrack's settings may be; a class of a person's own says itself which numbers its settings may be.

    Args:
        settings: instance of a data class.
        keys: names of the settings to look at; all of them if left out.

    Raises:
        InputError: a setting is such a number; the message names it.
    """
    kind = type(settings)
    keys = [field.name for field in dataclasses.fields(kind)] if keys is None else keys
    require_nonnegative(
        settings, *(key for key in keys if _is_a(getattr(settings, key), float) and _is_ours(kind, key))
    )


def _is_ours(kind: type, key: str) -> bool:
    """Return whether a class of hatrack, or none, is the last to define a setting of a data class."""
    owners = (each.__module__ for each in kind.__mro__ if key in vars(each).get("__annotations__", {}))
    return next(owners, "hatrack").partition(".")[0] == "hatrack"


def _require_number(key: str, value: Any) -> None:
    """Refuse what cannot be compared with the bounds of a range."""
    if not _is_a(value, float):
        raise InputError(f"{key} must be a number, not {value!r}")


def require_above_zero(**arguments: Any) -> None:
    """Refuse arguments that are not finite numbers above 0.

    Args:
        **arguments: numbers, or 0-dimensional tensors, by the names of the arguments.

    Raises:
        InputError: one of them is not; the message names it.
    """
    for key, value in arguments.items():
        is_number = _is_a(value, float) or (isinstance(value, Tensor) and value.dim() == 0)
        try:
            number = float(value) if is_number else math.nan
        except OverflowError:  # of a whole number
            number = math.inf
        if not 0 < number < math.inf:
            raise InputError(f"{key} must be a finite number above 0, not {value!r}")
