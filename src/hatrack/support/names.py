"""Names: errors for unknown ones, with the closest that exists, and tables of names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from hatrack.errors import InputError

__all__ = [
    "entries_below",
    "file_name_of",
    "in_one_line",
    "joined_with_and",
    "listed",
    "look_up",
    "prefix_of",
    "unknown_name",
    "words",
]

Entry = TypeVar("Entry")

MOST_NAMES = 100
"""Most names that an error lists; a module of somebody else may have thousands."""

MOST_CHARACTERS = 60
"""Most characters that an error shows of what was given in the place of a name and is no text."""

MOST_LISTED = 5
"""Most names that a sentence lists."""


def entries_below(prefix: str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the entries whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}


def file_name_of(name: str) -> str:
    """Return a name as part of a file's name: without colons, which some systems do not allow there."""
    return name.replace(":", "-")


def in_one_line(error: BaseException | None) -> str:
    """Return the first paragraph of an exception's message in one line, for messages that quote it."""
    return " ".join(str(error).strip().partition("\n\n")[0].split())


def listed(names: Sequence[str]) -> str:
    """Return names in quotes for a message, the first few of them where they are many."""
    return ", ".join(map(repr, names[:MOST_LISTED])) + (", …" if len(names) > MOST_LISTED else "")


def joined_with_and(names: Iterable[str]) -> str:
    """Join names, of which there is one at least, as a sentence does: ``"a, b and c"``."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def unknown_name(
    kind: str, name: object, known: Iterable[str], otherwise: Mapping[str, str] = MappingProxyType({})
) -> InputError:
    """Make the error for a name that does not exist, with the closest one that does.

    Args:
        kind: noun for the message, such as ``"task"``.
        name: the unknown name, or what was given in its place.
        known: the names that exist, of which the first hundred are listed.
        otherwise: names that exist by what else they are called; those of other names are left out.

    Returns:
        The error, to be raised by the caller.
    """
    names = list(known)
    meant = {**{other: it for other, it in otherwise.items() if it in names}, **{it: it for it in names}}
    close = difflib.get_close_matches(name, meant, n=1) if isinstance(name, str) else []
    guess = f", did you mean {meant[close[0]]!r}?" if close else ";"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    choice = f"choose one of: {', '.join(names[:MOST_NAMES])}{more}" if names else f"there is no {kind} yet"
    said = repr(name)
    if not isinstance(name, str) and len(said) > MOST_CHARACTERS:  # such as all the samples, in the place of a task
        said = f"that something of type {type(name).__name__} could name"
    return InputError(f"there is no {kind} {said}{guess} {choice}")


def prefix_of(module: str) -> str:
    """Return what names in a network begin with of the parameters of one of its backbone's modules.

    Args:
        module: name of the module in the backbone, which itself has none.
    """
    return f"backbone.{module}." if module else "backbone."


def look_up(kind: str, name: str, table: Mapping[str, Entry]) -> Entry:
    """Look up an entry of a table.

    Args:
        kind: noun for an entry, for the message.
        name: name of the entry.
        table: the entries by name.

    Raises:
        InputError: there is no such name; the message gives the closest one and all that exist.
    """
    if not isinstance(name, str) or name not in table:
        raise unknown_name(kind, name, table)
    return table[name]


def words(text: str) -> frozenset[str]:
    """Read a table of names.

    Args:
        text: the names, with spaces or line breaks between them.
    """
    return frozenset(text.split())
