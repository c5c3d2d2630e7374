"""Names that people type: what to say when one is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from hatrack.errors import InputError

__all__ = ["look_up", "unknown_name"]

Entry = TypeVar("Entry")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that does not exist, with the closest one that does.

    Args:
        kind: what is named, such as ``"task"``.
        name: what was asked for.
        known: the names that exist.

    Returns:
        The error, to be raised by the caller.
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    guess = f", did you mean {close[0]!r}?" if close else ";"
    choice = f"choose one of: {', '.join(names)}" if names else f"there is no {kind} yet"
    return InputError(f"there is no {kind} {name!r}{guess} {choice}")


def look_up(kind: str, name: str, table: Mapping[str, Entry]) -> Entry:
    """The entry of a table.

    Args:
        kind: what the table holds, in the singular, for the message.
        name: what was asked for.
        table: the entries by name.

    Raises:
        InputError: there is no such name; the message gives the closest one and all that exist.
    """
    if name not in table:
        raise unknown_name(kind, name, table)
    return table[name]
