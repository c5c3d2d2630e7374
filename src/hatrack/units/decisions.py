"""Decisions: truth values that a network reads of its input, each of which is followed both ways.

A path may depend on whether a padding mask is full, say. Which way it goes is decided by the input alone, never by
units, so that a task always goes the same way for the same batch; what either way does to units is found by running
both.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch

from hatrack.errors import UnsupportedError

__all__ = ["MOST_WAYS", "Decisions", "Way", "reads_truth"]

MOST_WAYS = 8
"""Largest number of ways through a network that are followed."""

_MOST_READ = 100
"""Largest number of truth values that one run may read: a forced one may keep a loop from ending."""

_ON_PURPOSE = re.compile(r"^(if .*:\s*|elif .*:\s*|else:\s*)?(raise|assert)\b")
"""Lines that raise an error, on their own or behind their condition."""

Way = tuple[bool, ...]
"""Outcomes of all decisions on a way through a network."""


def reads_truth(own_name: str, args: tuple[Any, ...]) -> bool:
    """Return whether a function reads a single truth value into Python, by its own name and its arguments."""
    if own_name in ("__bool__", "is_nonzero"):
        return True
    return own_name == "item" and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.bool


@dataclass
class Decisions:
    """Outcomes of the decisions in one run: the first ones are given, the others are as values have it.

    Attributes:
        given: outcomes of the first decisions.
        taken: outcomes so far.
        seen: outcomes of all truth values that were read, those of constants included.
        refusal: refusal of the last decision, for those that cannot be followed both ways.
    """

    given: Way = ()
    taken: list[bool] = field(default_factory=list)
    seen: list[bool] = field(default_factory=list)
    refusal: UnsupportedError | None = None
    _place: CodeType | None = None

    def take(self, natural: bool, refusal: UnsupportedError | None = None) -> bool:
        """Return the outcome of the next decision.

        Args:
            natural: the outcome that values have.
            refusal: refusal of this decision.

        Raises:
            UnsupportedError: there are too many decisions, and a refusal.
        """
        self.refusal = refusal
        if len(self.taken) >= _MOST_READ and refusal is not None:
            raise refusal
        outcome = self.given[len(self.taken)] if len(self.taken) < len(self.given) else natural
        self.taken.append(outcome)
        self.seen.append(outcome)
        self._place = next(_code_outside(sys._getframe()), None)
        return outcome

    def alternatives(self) -> Iterator[Way]:
        """Yield the beginnings of the ways that branch off this one, behind what was given."""
        for index in range(len(self.given), len(self.taken)):
            yield (*self.taken[:index], not self.taken[index])

    def ended_with(self, error: BaseException) -> bool:
        """Return whether an error was raised on purpose in the function that took the last decision.

        Such as ``if mask.any(): raise ValueError(...)``: that way gives no answer, so that it needs no analysis.
        """
        frames = list(traceback.walk_tb(error.__traceback__))
        frame, line = frames[-1]
        statement = traceback.extract_tb(error.__traceback__)[-1].line or ""
        return frame.f_code is self._place and line > 0 and bool(_ON_PURPOSE.search(statement))


def _code_outside(frame: Any) -> Iterator[CodeType]:
    """Yield the code that is running, innermost first, outside of torch and hatrack."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if module not in ("torch", "hatrack", "contextlib"):
            yield frame.f_code
        frame = frame.f_back
