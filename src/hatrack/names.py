"""Names that people type: what to say when one is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from hatrack.errors import InputError

__all__ = ["unknown_name"]


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
