"""Ranges of settings: refuse numbers that make no sense, in one form of words."""

from __future__ import annotations

import math
from typing import Any

from hatrack.errors import InputError

__all__ = ["require_nonnegative", "require_range"]


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
        if value is not None and not (least <= value <= most and above < value < below):
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
        if not 0 <= getattr(settings, key) < math.inf:
            raise InputError(f"{key} must be a finite number, 0 or more, not {getattr(settings, key)}")
