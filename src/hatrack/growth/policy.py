"""Growth: the policy that widens a network, and the widening of its tasks and optimizers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hatrack.errors import InputError
from hatrack.growth.initial_values import measure_initial_scales
from hatrack.growth.layers import Layer, widened
from hatrack.growth.widening import Widening
from hatrack.masks.tasks import TaskState, UnitTask, packed_mask
from hatrack.state.tryouts import largest
from hatrack.state.undo_log import UndoLog
from hatrack.support.names import unknown_name
from hatrack.units import UnitGraph

__all__ = [
    "Growth",
    "Origin",
    "changed_answers",
    "free_units",
    "plan_growth",
    "require_growable",
    "widen_optimizer",
    "widen_own_parts",
    "widen_tasks",
]


Places = Mapping[nn.Parameter, Sequence[Tensor | None]]


@dataclass(frozen=True)
class Growth:
    """Policy that widens a network before a task is added, so that the number of tasks has no bound.

    Both shares are of a group's *original* width: every task finds about as much room as the first ones did, and the
    network grows with what tasks use. With masks of weights, a group has the number of free units that would leave as
    many free weights. Groups whose readers' results depend on how many units there are (layer and group norm,
    attention), or that no rule can widen (recurrent layers, weight norm, weights of the user's own, convolutions in
    groups that are not depthwise), stay as they are; a warning says so if nothing else is nearly full.

    Attributes:
        threshold: a group grows when fewer free units are left than this share, in [0, 1].
        share: number of units that it gets then, as a share above 0; but at least as many as the threshold demands.
    """

    threshold: float = 0.2
    share: float = 0.25

    def __post_init__(self) -> None:
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
            :func:`hatrack.growth.initial_values.measure_initial_scales`.
    """

    widths: Mapping[str, int]
    initial_scales: Mapping[str, float]

    @classmethod
    def of(cls, graph: UnitGraph, backbone: nn.Module) -> Origin:
        """Measure a network that has not grown."""
        return cls({group.name: group.size for group in graph.groups}, measure_initial_scales(backbone))

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


def widen_tasks(states: Iterable[UnitTask], widening: Widening, undo_log: UndoLog) -> Places:
    """Widen consolidated tasks for new units, which they do not use.

    Masks are off there, heads have zeros for new features, and batch norms leave new units unchanged.

    Args:
        states: the tasks.
        widening: result of widening the backbone.
        undo_log: records the changes.

    Returns:
        New indices of the old entries of every widened parameter, along its first axes.
    """
    places: dict[nn.Parameter, Sequence[Tensor | None]] = {}
    total = (widening.graph.num_units,)
    for state in states:
        units: tuple[Tensor | None, ...] = (widening.units,)
        undo_log.set_attribute(state, "packed", packed_mask(widened(state.mask, total, units)))
        undo_log.set_attribute(state, "num_units", widening.graph.num_units)
        places |= widen_own_parts(state, widening, undo_log)
    return places


def widen_own_parts(state: TaskState, widening: Widening, undo_log: UndoLog) -> Places:
    """Widen a task's head, with zeros for new features, and its batch norms, which leave new units unchanged.

    Args:
        state: the task.
        widening: result of widening the backbone.
        undo_log: records the changes.

    Returns:
        New indices of the old entries of every widened parameter, along its first axes.
    """
    columns: tuple[Tensor | None, ...] = (None, widening.features)
    head, features = state.head, len(widening.graph.features().units)
    undo_log.set_data(head.weight, widened(head.weight.data, (head.out_features, features), columns))
    undo_log.set_attribute(head, "in_features", features)
    places: dict[nn.Parameter, Sequence[Tensor | None]] = {head.weight: columns}  # type: ignore[dict-item]
    for name, norm in state.norms.items():
        change, layer = widening.changes.get(name), Layer.of(norm)
        if change is not None and layer is not None:
            before = layer.replace(change.widths, _constant, undo_log)
            layer.resize(change.widths, undo_log)
            layer.put_back(before, change.kept)
            places |= layer.places(change.kept)
    return places


def _constant(name: str, shape: torch.Size, old: Tensor) -> Tensor:
    raise AssertionError(f"a norm has no {name} to draw")


def widen_optimizer(optimizer: Optimizer, places: Places, undo_log: UndoLog) -> None:
    """Widen an optimizer's state of parameters, with zeros for new entries.

    Args:
        optimizer: the optimizer.
        places: new indices of the old entries of every widened parameter, along its first axes.
        undo_log: records the changes.

    Raises:
        InputError: the state has a value without the parameter's shape.
    """
    for parameter, where in places.items():
        memory = optimizer.state.get(parameter, {})
        old_shape = [len(kept) if kept is not None else n for kept, n in zip(where, parameter.shape, strict=False)]
        old_shape += parameter.shape[len(where) :]
        for key, value in memory.items():
            if isinstance(value, Tensor) and list(value.shape) == old_shape:
                undo_log.set_item(memory, key, widened(value, parameter.shape, where))
            elif (value.numel() > 1) if isinstance(value, Tensor) else isinstance(value, (list, tuple, dict)):
                raise InputError(
                    f"what {type(optimizer).__name__} remembers as {key!r} cannot be widened with the network; "
                    "grow before this optimizer makes its first step, or train every task with an optimizer of its own"
                )


def changed_answers(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tasks whose logits changed by more than rounding in kernels of another shape.

    Args:
        before: logits of every task on the same samples before.
        now: logits by the same names now.
    """
    differing = []
    for name, logits in before.items():
        # On a GPU products may be rounded to ten bits (TF32), whatever the type.
        tolerance = max(100 * torch.finfo(logits.dtype).eps, 0.01 if logits.is_cuda else 0.0)
        if not torch.allclose(now[name], logits, rtol=0.0, atol=tolerance * largest(logits), equal_nan=True):
            differing.append(name)
    return differing
