"""Quadratic penalties ``s Σ Ω (θ − θ*)²`` on weights: a proximal step after the optimizer's, or a term of the loss.

A term of the loss acts by its gradient, ``2 s Ω (θ − θ*)``. Where the step size times ``2 s Ω`` exceeds 2, such a step
lands further from θ* than it began, and the next one further still. The proximal step is ``θ ← (θ + k θ*) / (1 + k)``,
``k`` being the step size times ``2 s Ω``. It goes to where the penalty and the distance from the optimizer's result are
least together, so that it never passes θ*, at any strength. Both kinds of steps have the same points of rest.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hatrack.errors import InputError
from hatrack.functional import proximal

__all__ = ["Penalty", "PenaltySettings", "proximal_step", "require_step_sizes", "step_size"]

ADAPTIVE = (torch.optim.Adam, torch.optim.AdamW)


class Penalty(enum.Enum):
    """Way in which a quadratic penalty acts on weights."""

    PROXIMAL = "proximal"
    """Implicit: a proximal step follows every step of the optimizer, which sees the task's gradient alone."""

    EXPLICIT = "explicit"
    """Explicit: a term of the loss, whose gradient is clipped, and scaled by the optimizer, with the task's."""


@dataclass(frozen=True)
class PenaltySettings:
    """Settings of methods with a quadratic penalty.

    Attributes:
        penalty: proximal (bounded at any strength), or explicit, a term of the loss as in the papers: above 2 /
            (learning rate × curvature of the penalty) its steps grow without bound.
    """

    penalty: Penalty = Penalty.PROXIMAL


def require_step_sizes(optimizer: Optimizer) -> None:
    """Check that the steps of an optimizer are known to :func:`step_size`.

    Raises:
        InputError: they are not.
    """
    if not isinstance(optimizer, (torch.optim.SGD, *ADAPTIVE)):
        raise InputError(
            f"the proximal step goes with SGD, Adam and AdamW, and not with {type(optimizer).__name__}; choose one of "
            "these, or a penalty that is a term of the loss (`penalty=explicit`)"
        )


def step_size(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> float | Tensor:
    """Return how far an optimizer moves a parameter for every unit of a gradient that stays the same.

    That is the learning rate ``η`` for plain SGD, ``η (1 − dampening) / (1 − μ)`` with momentum, and for Adam and AdamW
    ``η / (√v̂ + ε)``, entry by entry, with the second moments that the optimizer has gathered of the task's gradients.

    Args:
        optimizer: SGD, Adam or AdamW.
        group: the parameter's group.
        parameter: the parameter.

    Returns:
        A number, or a tensor of the parameter's shape; 0 for a parameter that Adam has not moved yet.
    """
    lr = float(group["lr"])
    if isinstance(optimizer, torch.optim.SGD):
        momentum = group["momentum"]
        return lr * (1 - group["dampening"]) / (1 - momentum) if momentum else lr
    state = optimizer.state.get(parameter, {})
    if "exp_avg_sq" not in state:
        return 0.0
    moments = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    step = state["step"] if group["capturable"] else float(state["step"])  # to read it would wait for the device
    corrected = 1.0 - float(group["betas"][1]) ** step
    root: Tensor = (moments / corrected).sqrt_().add_(group["eps"])
    return root.reciprocal_().mul_(lr)


def _with_groups(optimizer: Optimizer) -> Iterator[tuple[int, Mapping[str, Any]]]:
    return ((id(parameter), group) for group in optimizer.param_groups for parameter in group["params"])


@torch.no_grad()
def proximal_step(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    anchor: Mapping[str, Tensor],
    importance: Mapping[str, Tensor] | None,
    strength: float,
) -> None:
    """Draw parameters towards an anchor after a step of their optimizer: the step of ``s Σ Ω (θ − θ*)²``.

    Args:
        optimizer: the optimizer that has made a step; what it does not have stays as it is.
        parameters: θ by name.
        anchor: θ* by the same names.
        importance: Ω, at least 0, by the same names; None weighs all alike, with 1.
        strength: s, at least 0.
    """
    groups = dict(_with_groups(optimizer))
    for name, parameter in parameters.items():
        group = groups.get(id(parameter))
        if group is None:
            continue
        stiffness = 2 * strength * step_size(optimizer, group, parameter)
        if importance is not None:
            stiffness = importance[name] * stiffness
        parameter.copy_(proximal(parameter, anchor[name], stiffness))
