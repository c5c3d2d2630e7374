"""Labels as texts: which stand for a missing one, which are two spellings of one, and in what order they come."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation

from hatrack.errors import UnfitDataError

__all__ = ["is_missing", "order_of", "refuse_alike", "refuse_missing"]

_WORDS = "? #N/A #NA -1.#IND -1.#QNAN 1.#IND 1.#QNAN <NA> N/A NA NULL None NaT n/a null"
MISSING = frozenset(["", "#N/A N/A", *_WORDS.split()])
"""Words for a missing value in tables of pandas, R, Weka and databases; NaN counts as well, in any spelling."""


def is_missing(text: str) -> bool:
    """Return whether a text stands for a missing one."""
    return text.strip() in MISSING or _is_nan(text)


def refuse_missing(labels: Sequence[str], where: Callable[[int], str]) -> None:
    """Refuse labels that stand for a missing one: they would become a class of their own.

    Args:
        labels: the labels of all samples.
        where: names the place of a label, given its position.

    Raises:
        UnfitDataError: a label is missing; its place is named.
    """
    missing = {label for label in set(labels) if is_missing(label)}
    for position, label in enumerate(labels):
        if label in missing:
            said = f" ({label!r}); fill it in, remove the sample, or" if label.strip() else "; fill it in or"
            other = " write another word if it is a class of its own" if label.strip() else " remove the line"
            raise UnfitDataError(f"{where(position)}: the label is missing{said}{other}")


def refuse_alike(labels: Sequence[str], where: Callable[[int], str]) -> None:
    """Refuse two spellings of one label: the same number, or texts that differ only in what is not seen.

    Args:
        labels: the labels of all samples.
        where: names the place of a label, given its position.

    Raises:
        UnfitDataError: there are two spellings; both and the place of the later one are named.
    """
    spellings: dict[Decimal | str, str] = {}
    for label in dict.fromkeys(labels):
        first = spellings.setdefault(_as_seen(label), label)
        if first != label:
            both = [repr(each) if each.isascii() else f"{each!r} ({each!a})" for each in (first, label)]
            raise UnfitDataError(
                f"{where(labels.index(label))}: writes a class as {both[1]} that is {both[0]} elsewhere; write it one "
                "way, or give two classes names that differ to the eye"
            )


def order_of(label: str) -> tuple[int, Decimal, str]:
    """Return the sorting key of a label: numbers before words, each in their own order; no two labels share a key."""
    number = _number(label)
    return (1, Decimal(0), label) if number is None else (0, number, label)


def _is_nan(label: str) -> bool:
    try:
        return Decimal(label).is_nan()
    except InvalidOperation:
        return False


def _number(label: str) -> Decimal | None:
    """Return the exact number that a label is; None where it is none. NaN is none: it has no place among numbers."""
    try:
        number = Decimal(label)
    except InvalidOperation:
        return None
    return None if number.is_nan() else number


def _as_seen(label: str) -> Decimal | str:
    """Return a label as a person reads it: its number, or its text without the differences that no font shows."""
    number = _number(label)
    if number is not None:
        return number
    shown = "".join(letter for letter in unicodedata.normalize("NFC", label) if unicodedata.category(letter) != "Cf")
    return " ".join(shown.split())
