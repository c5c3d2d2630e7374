"""Values of settings: read from texts and JSON, written as JSON, and the types that both can be done with."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from hatrack.errors import InputError
from hatrack.support.importing import failure_of

__all__ = ["as_json", "parse_value", "require_readable", "types_of"]

TYPES = "int, float, bool, str, an enumeration, tuple[int, ...], tuple[float, ...], or one of these or None"
"""Types of settings that can be read."""


def types_of(kind: Any) -> Mapping[str, Any]:
    """Return the types of a data class's fields by name."""
    return _types_of(kind)


@functools.cache
def _types_of(kind: Any) -> Mapping[str, Any]:
    """Return the types of the fields; reading them from their texts takes a millisecond."""
    hints = typing.get_type_hints(kind)
    return types.MappingProxyType({field.name: hints[field.name] for field in dataclasses.fields(kind)})


def as_json(value: Any) -> Any:
    """Return a setting's value as a JSON value."""
    if isinstance(value, enum.Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value


def parse_value(key: str, value: Any, kind: Any) -> Any:
    """Read a setting's value.

    Args:
        key: the setting's name, for the message.
        value: a text, or a JSON value, or one of the right type already.
        kind: the setting's type, one of :data:`TYPES`. Values of enumerations are found in capitals and small letters
            alike where none is spelt as the text is.

    Raises:
        InputError: the value cannot be read as that type, or is not finite. The data class of the setting knows its
            range.
    """
    options = _options(kind)
    leaves_open = len(options) < len(typing.get_args(kind)) and _is_union(kind)
    kind = options[0]
    if leaves_open and (
        value is None or (isinstance(value, str) and value.lower() in (("none",) if kind is str else ("none", "")))
    ):
        return None
    try:
        if _is_enumeration(kind):
            return value if isinstance(value, kind) else _member(kind, value)
        if typing.get_origin(kind) is tuple:
            parts = value.replace("x", ",").split(",") if isinstance(value, str) else list(value)
            read = _READERS[typing.get_args(kind)[0]][0]
            return tuple(read(part) for part in parts if part != "")
        return _READERS[kind][0](value)
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError):
        raise InputError(f"{key}={value} does not fit: {key} must be {_say(kind)}{', or none' * leaves_open}") from None


def require_readable(what: str, kind: Any) -> None:
    """Refuse a class of settings whose defaults could not be written to a file and read again.

    Args:
        what: noun for whose settings they are, for the message.
        kind: the class.

    Raises:
        InputError: it is no data class that can be made without arguments, or a field has a type or a default that
            cannot be read back.
    """
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise InputError(f"{what}: its settings_type must be a frozen dataclass, not {kind!r}")
    for field in dataclasses.fields(kind):
        if not field.init or (field.default is field.default_factory is dataclasses.MISSING):
            lacks = "a default" if field.init else "to be an argument (init=True)"
            raise InputError(f"{what}: its setting {field.name} needs {lacks}")
    try:
        kinds = types_of(kind)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise InputError(f"{what}: the types of its settings cannot be read ({error})") from error
    for key, each in kinds.items():
        if not _is_readable(each):
            said = each.__name__ if isinstance(each, type) and not typing.get_args(each) else str(each)
            raise InputError(f"{what}: its setting {key} is of type {said}, which cannot be read; it may be {TYPES}")
    try:
        settings = kind()
    except Exception as error:  # what it says of its own defaults
        raise InputError(f"{what}: its settings cannot be made without arguments: {failure_of(error)}") from error
    for key, each in kinds.items():
        value = getattr(settings, key)
        if not _comes_back(key, value, each):
            raise InputError(f"{what}: the default {value!r} of its setting {key} would not be read as it is written")


def _comes_back(key: str, value: Any, kind: Any) -> bool:
    """Return whether a value is read from JSON as what was written there."""
    try:
        found = parse_value(key, json.loads(json.dumps(as_json(value), allow_nan=False)), kind)
    except (InputError, TypeError, ValueError):
        return False
    is_alike = type(found) is type(value) or (type(found), type(value)) == (float, int)
    return is_alike and bool(found == value)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _options(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union but for None, or the type alone."""
    return tuple(each for each in typing.get_args(kind) if each is not types.NoneType) if _is_union(kind) else (kind,)


def _is_enumeration(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _is_readable(kind: Any) -> bool:
    """Return whether values of a type can be read."""
    options = _options(kind)
    if len(options) != 1:
        return False
    if typing.get_origin(options[0]) is tuple:
        return typing.get_args(options[0]) in ((int, ...), (float, ...))
    return _is_enumeration(options[0]) or options[0] in _READERS


def _member(kind: type[enum.Enum], value: Any) -> enum.Enum:
    """Return the member of an enumeration whose value is spelt so, or the only one that is but for capitals."""
    text = str(value)
    exact = [member for member in kind if str(member.value) == text]
    (found,) = exact or [member for member in kind if str(member.value).casefold() == text.casefold()]
    return found


def _number(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError
    return number


def _whole(value: Any) -> int:
    if type(value) is int:
        return value  # which may have more digits than a float
    number = _number(value)
    if number != int(number):
        raise ValueError
    return int(number)


_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

_READERS: Mapping[Any, tuple[Callable[[Any], Any], str]] = {
    int: (_whole, "a whole number"),
    float: (_number, "a finite number"),
    bool: (lambda value: _TRUTH[str(value).lower()], "true or false"),
    str: (str, "a text"),
}
"""For every type of a setting, how its value is read, and what it must be."""


def _say(kind: Any) -> str:
    if _is_enumeration(kind):
        return "one of " + ", ".join(str(member.value) for member in kind)
    if kind in _READERS:
        return _READERS[kind][1]
    whole = typing.get_args(kind)[0] is int
    return "whole numbers joined by commas, such as 2000,2000" if whole else "numbers joined by commas, such as 0.5,1"
