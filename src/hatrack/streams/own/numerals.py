"""Numbers as texts: which are read, and which only look like one."""

from __future__ import annotations

import re
import unicodedata
from enum import Enum

import torch

__all__ = ["DecimalMark", "fault_of_number", "looks_like_number", "read_number", "uses_comma"]

LARGEST = torch.finfo(torch.float32).max
"""Largest number that is read: what the network's float32 cannot hold is as bad as what is no number."""


class DecimalMark(Enum):
    """Character in front of the decimals of a number."""

    POINT = "."
    """1.5 is one and a half."""

    COMMA = ","
    """1,5 is one and a half."""


# Python's own float() would take 1_000, digits of other scripts, and words, too.
_DIGITS = r"[-+]?(?:\d+{0}?\d*|{0}\d+)(?:[eE][-+]?\d+)?"
_WITH_POINT, _WITH_COMMA = (re.compile(_DIGITS.format(mark), re.ASCII) for mark in (r"\.", ","))
_COMMA = re.compile(r"[-+]?\d+,\d+")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:([,.'\u2019 \u00a0\u202f])\d{3})(?:\1\d{3})*(?:[.,]\d*)?")
_FIRST_DIGIT = re.compile(r"[\W_]*\d")


def read_number(text: str, mark: DecimalMark = DecimalMark.POINT) -> float | None:
    """Return the finite number that a text is, in ASCII digits; None if it is none, or beyond float32.

    Args:
        text: the text, without spaces around it.
        mark: character in front of decimals.
    """
    is_point = mark is DecimalMark.POINT
    if (_WITH_POINT if is_point else _WITH_COMMA).fullmatch(text) is None:
        return None
    number = float(text if is_point else text.replace(",", "."))
    return number if abs(number) <= LARGEST else None


def looks_like_number(text: str) -> bool:
    """Return whether a person, or Python, could take a text for a number, a date, a time or an amount.

    So does what begins with a digit of any script, behind signs and currencies, and ``nan`` and ``inf``.
    """
    shown = unicodedata.normalize("NFKC", text)
    if _FIRST_DIGIT.match(shown):
        return True
    try:
        float(shown)
    except ValueError:
        return False
    return True


def uses_comma(text: str) -> bool:
    """Return whether a text could be a number with a decimal comma."""
    return _COMMA.fullmatch(text) is not None


def fault_of_number(text: str, mark: DecimalMark = DecimalMark.POINT) -> str:
    """Say what is wrong with a cell that should hold a number and does not, and how to have it read if it does."""
    if not text:
        return "the value is missing"
    said = f"{text!r} is not a finite number"
    if mark is DecimalMark.POINT and uses_comma(text):
        return f'{said} (decimals need a point, or decimal = "," (`decimal=,`); thousands need no separator)'
    if mark is DecimalMark.COMMA and read_number(text) is not None:
        return f"{said} (decimals need a comma here; thousands need no separator)"
    return f"{said} (write thousands without a separator)" if _THOUSANDS.fullmatch(text) else said
