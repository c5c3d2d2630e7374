"""Penalties of methods that draw weights back to where they were."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = [
    "proximal",
    "quadratic_distance",
]


def quadratic_distance(
    parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor], importance: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Compute the weighted squared distance ``Σ Ω (θ − θ*)²``, a scalar.

    Args:
        parameters: θ by name.
        anchor: θ* by the same names.
        importance: Ω by the same names; None weighs all alike, with 1.
    """
    terms = []
    for name, parameter in parameters.items():
        squared = (parameter - anchor[name]).square()
        terms.append((squared if importance is None else importance[name] * squared).sum())
    return torch.stack(terms).sum()


def proximal(value: Tensor, anchor: Tensor, stiffness: Tensor | float) -> Tensor:
    """Compute the proximal step of a penalty, ``(θ + k θ*) / (1 + k)``: where ``‖x − θ‖² + k ‖x − θ*‖²`` is least.

    Args:
        value: θ.
        anchor: θ*, of its shape.
        stiffness: k, at least 0, a number or of that shape: the step size times the curvature of the penalty. At 0 the
            value stays as it is, to the bit; at infinity it is the anchor.

    Returns:
        A tensor of the value's shape, between value and anchor.
    """
    if isinstance(stiffness, Tensor):
        share = stiffness.reciprocal().add_(1.0).reciprocal_()  # k / (1 + k), also of an infinite k
        return torch.lerp(value, anchor, share)
    return value if stiffness == 0.0 else torch.lerp(value, anchor, 1.0 / (1.0 + 1.0 / stiffness))
