"""Growth policy: when and by how much a network is widened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hatrack.errors import InputError
from hatrack.support.names import unknown_name
from hatrack.support.ranges import require_types
from hatrack.units import UnitGraph

__all__ = ["Growth", "Origin", "free_units", "plan_growth", "require_growable"]


@dataclass(frozen=True)
class Growth:
    """Policy that widens a network before a task is added, so that the number of tasks has no bound.

    Both shares are of a group's *original* width: every task finds about as much room as the first ones did, and the
    network grows with what tasks use. With masks of weights, a group has the number of free units that would leave as
    many free weights. Groups whose readers' results depend on how many units there are (layer and group norm,
    attention), or that no rule can widen (recurrent layers, heads of fused attention, weight norm, weights of the
    user's own, convolutions in groups that are not depthwise), stay as they are; a warning says so if no other group
    that is nearly full can grow. Groups that the backbone's own code counts, so that it does not run or gives other
    outputs when they are wider (``h / h.shape[1]``), stay as they are, too; a warning names them, the cause and the
    remedy, whether others grow or not. In types of less than 32 bits a change of outputs counts from 4 eps of the
    largest logit on (3 % in bfloat16, 0.4 % in float16; 1 % at least on a GPU): less is not told from rounding.

    Attributes:
        threshold: a group grows when fewer free units are left than this share, in [0, 1].
        share: number of units that it gets then, as a share above 0; but at least as many as the threshold demands.
    """

    threshold: float = 0.2
    share: float = 0.25

    def __post_init__(self) -> None:
        require_types(self)
        if not 0.0 <= self.threshold <= 1.0:
            raise InputError(f"the threshold of growth must be in [0, 1], not {self.threshold}")
        if not 0.0 < self.share < float("inf"):
            raise InputError(f"the share of growth must be above 0 and finite, not {self.share}")


@dataclass(frozen=True)
class Origin:
    """Widths and initial scales of a network before it ever grew.

    Attributes:
        widths: number of units by group.
        initial_scales: initial scale of parameters, by name; see
            :func:`hatrack.growth.layers.measure_initial_scales`.
    """

    widths: Mapping[str, int]
    initial_scales: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the origin as JSON values, for :meth:`from_json`."""
        return {"widths": dict(self.widths), "spread": dict(self.initial_scales)}

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> Origin:
        """Make the origin that :meth:`to_json` described."""
        return cls(described["widths"], described["spread"])


def free_units(graph: UnitGraph, cumulative: Tensor) -> dict[str, int]:
    """Return the number of units in every group that no task uses.

    Args:
        graph: the units of the network.
        cumulative: attention of all consolidated tasks, ``(U,)``, booleans or numbers (1/2 and more means used).
    """
    return {group.name: group.size - int((cumulative[group.span] >= 0.5).sum()) for group in graph.groups}


def plan_growth(growth: Growth, free: Mapping[str, float], widths: Mapping[str, int]) -> dict[str, int]:
    """Return the number of units to add to each group that is nearly full.

    Args:
        growth: the policy.
        free: number of free units of every group; with masks of weights the number that would leave as many free
            weights.
        widths: original widths of the groups.
    """
    plan = {}
    for name, number in free.items():
        original = widths[name]
        if number < growth.threshold * original:
            missing = math.ceil(math.ceil(growth.threshold * original) - number)
            plan[name] = max(math.ceil(growth.share * original), missing)
    return plan


def require_growable(groups: Mapping[str, int], graph: UnitGraph) -> None:
    """Check a request to grow.

    Args:
        groups: number of units to add, by group.
        graph: the units of the network.

    Raises:
        InputError: there is no such group, or a number of units is not a whole number of at least 1.
    """
    for name, count in groups.items():
        if name not in [group.name for group in graph.groups]:
            raise unknown_name("group of units", name, [group.name for group in graph.groups])
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"the group {name!r} can grow by a whole number of units, at least 1, not {count!r}")
