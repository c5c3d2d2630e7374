"""Conditioning of weights between units of earlier tasks: frozen, fading, or adaptive to the number of tasks."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hatrack import functional
from hatrack.errors import InputError
from hatrack.functional import Conditioning
from hatrack.masks.described import from_values, to_values
from hatrack.protection.frozen import attention_on_entries
from hatrack.support.ranges import require_types
from hatrack.units import UnitGraph

__all__ = [
    "Adaptive",
    "AdaptiveScaling",
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
    """Conditioning that fades: every later task leaves a share of the attention of old ones, to make room for new ones.

    It is the HAT paper's "more online mode", section 2.3. Only the last task is frozen wholly. Partial attention slows
    plain SGD as the formula says; optimizers that rescale gradients, such as Adam, hardly notice it.

    Attributes:
        keep: share of a task's attention that is left after one more task, at least 0 and below 1.
    """

    keep: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.keep < 1.0:
            raise InputError(f"keep must be at least 0 and below 1, not {self.keep}; Conditioning.CUMULATIVE keeps all")


class AdaptiveScaling(enum.Enum):
    """Choice of what an adaptive conditioning scales; with plain SGD both are the same."""

    GRADIENTS = "gradients"
    """Gradients, as in the authors' code. Optimizers that divide by the size of gradients, such as Adam, undo a factor
    that stays the same from step to step, so that weights in use do move."""

    STEPS = "steps"
    """Steps of the optimizer, whichever it is: weights in use move by the factor that the formula says."""


@dataclass(frozen=True)
class Adaptive:
    """Conditioning that lets weights move the less, the more tasks use them: AdaHAT (Wang et al., ECML PKDD 2024).

    A gradient is multiplied by ``r / (n + r)``: n counts the earlier tasks that use the unit, the smaller number of a
    weight's two ends; ``r = α / (ε + R)``, R being the share of the layer's free units that the present task takes.

    Attributes:
        alpha: α > 0, the overall rate; 1e-6 in the authors' configuration.
        epsilon: ε > 0, which bounds the rate of tasks that use hardly any unit; 0.1 likewise.
        scaled: what is multiplied; steps with a closure in any case, which makes its gradients too late.
    """

    alpha: float = 1e-6
    epsilon: float = 0.1
    scaled: AdaptiveScaling = AdaptiveScaling.GRADIENTS

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("alpha", "epsilon"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be above 0 and finite, not {getattr(self, name)}")

    def rates(self, graph: UnitGraph, attention: Tensor, cumulative: Tensor) -> Tensor:
        """Compute the rate r of every unit, ``(U + 1,)``; the last, for outputs without a unit, counts all units.

        Args:
            graph: the units; those of a group have one rate.
            attention: the present task's, ``(U,)``.
            cumulative: that of all earlier tasks, ``(U,)``.
        """
        attention = attention.to(torch.float32)
        shares = attention.new_empty(graph.num_units + 1)
        shares[-1] = functional.attention_regularization(attention, cumulative)
        for group in graph.groups:
            here = group.span
            shares[here] = functional.attention_regularization(attention[here], cumulative[here])
        return self.alpha / (self.epsilon + shares)


UnitConditioning = Conditioning | Fading | Adaptive
"""Conditioning of weights: :class:`Conditioning` freezes them, :class:`Fading` and :class:`Adaptive` slow them."""


@dataclass(frozen=True)
class Damper:
    """Scaling of the gradients or steps of one parameter by the number of tasks that use each of its entries.

    Attributes:
        uses: number of tasks that use each entry, of the parameter's shape.
        outputs: index of the unit at each entry's output, of a shape that broadcasts to the parameter's.
        scaled: what is scaled.
    """

    uses: Tensor
    outputs: Tensor
    scaled: AdaptiveScaling

    def freedom(self, rates: Tensor) -> Tensor:
        """Compute the share of a gradient or step that is left, in (0, 1], from the units' rates ``(U + 1,)``."""
        return functional.adaptive_freedom(self.uses, rates[self.outputs])


def attention_of_tasks(conditioning: UnitConditioning, masks: Sequence[Tensor], none: Tensor) -> Tensor:
    """Compute the cumulative attention of the consolidated tasks, ``(U,)``.

    Args:
        conditioning: the conditioning.
        masks: masks of the tasks, in order, booleans or numbers ``(U,)``.
        none: attention without any task, ``(U,)``.
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
    graph: UnitGraph,
    shapes: Mapping[str, torch.Size],
    masks: Sequence[Tensor],
    none: Tensor,
    scaled: AdaptiveScaling,
) -> dict[str, Damper]:
    """Make dampers for all parameters that any task uses, by name.

    Args:
        graph: the units.
        shapes: shapes of the parameters by their names in the graph.
        masks: masks of the consolidated tasks, booleans or numbers ``(U,)``.
        none: attention without any task, ``(U,)``.
        scaled: what they scale.
    """
    uses = torch.stack([mask.to(torch.float32) for mask in masks]).sum(0) if masks else none.float()
    uses = torch.cat([uses, uses.new_tensor([len(masks)])])  # all tasks use entries without a unit
    result = {}
    for name, shape in shapes.items():
        sides = graph.uses[name]
        if not sides:
            continue
        counted = attention_on_entries(sides, uses, shape)
        if counted.any():
            result[name] = Damper(counted.contiguous(), sides[0].sides[0].to(uses.device), scaled)
    return result


def describe_unit_conditioning(conditioning: UnitConditioning) -> str | dict[str, Any]:
    """Convert a conditioning to JSON values."""
    if isinstance(conditioning, Conditioning):
        return conditioning.value
    return {"kind": type(conditioning).__name__.lower(), **to_values(conditioning)}


def unit_conditioning_from(described: str | Mapping[str, Any]) -> UnitConditioning:
    """Make the conditioning that :func:`describe_unit_conditioning` described."""
    if isinstance(described, str):
        return Conditioning(described)
    if described["kind"] == "fading":
        return from_values(Fading, described)
    return from_values(Adaptive, {"scaled": AdaptiveScaling.STEPS.value, **described})  # what files without it mean
