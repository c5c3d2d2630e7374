"""Penalty on weights that leave their former values (Kirkpatrick et al., PNAS 2017, Eq. 3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["quadratic_distance"]


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
