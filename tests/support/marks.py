"""Marks of cases that a quick run can do without, and how many examples a run tries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import settings

DEEP = 40
"""Examples of a property in the profile ``deep``."""


def slow_unless(quick: Callable[..., bool], cases: Iterable[Any]) -> list[Any]:
    """Mark cases of a parametrized test as slow, all but those that a quick run has, too.

    Args:
        quick: says of a case, given its values one by one, whether a quick run has it.
        cases: values of one parameter, or tuples of values of several.
    """
    marked = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        marked.append(case if quick(*values) else pytest.param(*values, marks=pytest.mark.slow))
    return marked


def slow_but(kept: Iterable[str], cases: Iterable[str]) -> list[Any]:
    """Mark all names as slow but some."""
    return slow_unless(set(kept).__contains__, cases)


def is_deep() -> bool:
    """Return whether this run is one of the profile ``deep``."""
    return settings().max_examples >= DEEP


def in_turn(names: Iterable[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs in which every value of two parameters occurs, the second ones in turn; all pairs in a deep run."""
    if is_deep():
        return [(name, other) for name in names for other in others]
    return [(name, others[number % len(others)]) for number, name in enumerate(names)]


def examples(deep: int) -> int:
    """Return how many examples a property is tried on, if not as many as others.

    Args:
        deep: their number in the profile ``deep``; the whole suite tries half of them, and a quick run an eighth.
    """
    return max(2, deep * settings().max_examples // DEEP)
