"""How earlier tasks hold weights between their units: for good, fading, or the more the more of them there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hatrack import functional
from hatrack.errors import InputError
from hatrack.functional import Conditioning
from hatrack.protection.frozen import attention_on_entries
from hatrack.units import UnitGraph

__all__ = [
    "Adaptive",
    "Damper",
    "Fading",
    "UnitConditioning",
    "attention_of_tasks",
    "dampers",
    "describe_unit_conditioning",
    "unit_conditioning_from",
]


@dataclass(frozen=True)
class Fading:
    """Every later task leaves a share of what a task holds: old tasks fade to make room for new ones.

    The HAT paper's "more online mode", section 2.3. Only the last task is held whole. What is held in part is held as
    the formula says under plain SGD; optimizers that rescale gradients, such as Adam, hardly feel it.

    Attributes:
        keep: what is left of a task's hold after one more task, at least 0 and below 1.
    """

    keep: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.keep < 1.0:
            raise InputError(f"keep must be at least 0 and below 1, not {self.keep}; Conditioning.CUMULATIVE keeps all")


@dataclass(frozen=True)
class Adaptive:
    """Weights move the less, the more tasks rely on them: AdaHAT (Wang et al., ECML PKDD 2024).

    A step is multiplied by ``r / (n + r)``: n counts the earlier tasks that use the unit, the smaller number of a
    weight's two ends; ``r = α / (ε + R)``, R being the share of the layer's free units that the present task takes.

    Attributes:
        alpha: α > 0, how much moves at all; 1e-6 in the authors' configuration.
        epsilon: ε > 0, which bounds the rate of tasks that take next to nothing; 0.1 likewise.
    """

    alpha: float = 1e-6
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        for name in ("alpha", "epsilon"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be above 0 and finite, not {getattr(self, name)}")

    def rates(self, graph: UnitGraph, attention: Tensor, cumulative: Tensor) -> Tensor:
        """R for every unit, ``(U + 1,)``; the last is for what has no unit at its output, and takes all of them.

        Args:
            graph: the units; those of a group have one rate.
            attention: the present task's, ``(U,)``.
            cumulative: that of all earlier tasks, ``(U,)``.
        """
        attention = attention.to(torch.get_default_dtype())
        shares = attention.new_empty(graph.num_units + 1)
        shares[-1] = functional.attention_regularization(attention, cumulative)
        for group in graph.groups:
            here = group.span
            shares[here] = functional.attention_regularization(attention[here], cumulative[here])
        return self.alpha / (self.epsilon + shares)


UnitConditioning = Conditioning | Fading | Adaptive
"""How earlier tasks hold weights: :class:`Conditioning` for good, :class:`Fading` and :class:`Adaptive` in part."""


@dataclass(frozen=True)
class Damper:
    """What scales the steps of one parameter by how many tasks rely on each of its entries.

    Attributes:
        uses: how many do, of the parameter's shape.
        outputs: index of the unit at each entry's output, of a shape that broadcasts to the parameter's.
    """

    uses: Tensor
    outputs: Tensor

    def freedom(self, rates: Tensor) -> Tensor:
        """What is left of a step, by the units' rates ``(U + 1,)``; numbers in (0, 1]."""
        return functional.adaptive_freedom(self.uses, rates[self.outputs])


def attention_of_tasks(conditioning: UnitConditioning, masks: Sequence[Tensor], none: Tensor) -> Tensor:
    """Cumulative attention of the consolidated tasks, ``(U,)``.

    Args:
        conditioning: how they hold.
        masks: theirs, in order, booleans or numbers.
        none: the attention of no task.
    """
    cumulative = none
    for index, mask in enumerate(masks):
        before = cumulative if index else None
        if isinstance(conditioning, Fading):
            cumulative = functional.faded_attention(before, mask, conditioning.keep)
        else:
            cumulative = functional.cumulative_attention(before, mask)
    return cumulative


def dampers(
    graph: UnitGraph, shapes: Mapping[str, torch.Size], masks: Sequence[Tensor], none: Tensor
) -> dict[str, Damper]:
    """For every parameter that any task relies on, what scales its steps.

    Args:
        graph: the units.
        shapes: shapes of the parameters by the names that the graph has for them.
        masks: the consolidated tasks', booleans or numbers ``(U,)``.
        none: the attention of no task, ``(U,)``.
    """
    uses = torch.stack([mask.to(torch.get_default_dtype()) for mask in masks]).sum(0) if masks else none.float()
    uses = torch.cat([uses, uses.new_tensor([len(masks)])])  # all tasks use what has no unit
    result = {}
    for name, shape in shapes.items():
        sides = graph.uses[name]
        if not sides:
            continue
        counted = attention_on_entries(sides, uses, shape)
        if counted.any():
            outputs = sides[0].sides[0].to(uses.device)
            result[name] = Damper(counted.contiguous(), outputs)
    return result


def describe_unit_conditioning(conditioning: UnitConditioning) -> str | dict[str, Any]:
    """A conditioning as JSON values."""
    if isinstance(conditioning, Conditioning):
        return conditioning.value
    return {"kind": type(conditioning).__name__.lower(), **dataclasses.asdict(conditioning)}


def unit_conditioning_from(described: str | Mapping[str, Any]) -> UnitConditioning:
    """The conditioning that :func:`describe_unit_conditioning` described."""
    if isinstance(described, str):
        return Conditioning(described)
    values = {key: value for key, value in described.items() if key != "kind"}
    return Fading(**values) if described["kind"] == "fading" else Adaptive(**values)
