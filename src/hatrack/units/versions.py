"""Versions of the rules, by which units of a network are those that it had when it was saved.

1. Heads of :class:`torch.nn.MultiheadAttention` are always on. Files do not name this version.
2. They are units.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from hatrack.units.rules.attention import heads_always_on
from hatrack.units.trace import Rule

__all__ = ["HEADS_ALWAYS_ON", "RULES_VERSION", "rules_of_version", "version_of_rules"]

RULES_VERSION = 2
"""Version of the registered rules."""

HEADS_ALWAYS_ON: Mapping[Any, Rule] = MappingProxyType({nn.MultiheadAttention: heads_always_on})
"""Rules by which version 1 differs from version 2."""


def rules_of_version(version: int, given: Mapping[Any, Rule] | None) -> Mapping[Any, Rule] | None:
    """Return the rules for a network by which its units are those of a version.

    Args:
        version: the version, 1 to :data:`RULES_VERSION`.
        given: rules of the user's own, which go before; None for none.
    """
    return {**HEADS_ALWAYS_ON, **(given or {})} if version < RULES_VERSION else given


def version_of_rules(rules: Mapping[Any, Rule] | None) -> int:
    """Return the version of the rules by which a network is read.

    Args:
        rules: rules for this network alone; None for none.
    """
    is_earlier = rules is not None and rules.get(nn.MultiheadAttention) is heads_always_on
    return RULES_VERSION - 1 if is_earlier else RULES_VERSION
