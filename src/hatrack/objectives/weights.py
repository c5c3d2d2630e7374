"""Weights of classes or labels in the loss: given, or such that rare ones count as much as frequent ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hatrack.errors import InputError
from hatrack.objectives.base import Objective

__all__ = ["ClassWeights", "check_weights"]

BALANCED = "balanced"


@dataclass(frozen=True)
class ClassWeights:
    """Choice of the weights of classes or labels.

    Attributes:
        values: a weight for each, above 0; None balances them by the training targets.
    """

    values: tuple[float, ...] | None = None

    @classmethod
    def read(cls, text: str | Sequence[float]) -> ClassWeights:
        """Read ``balanced``, or numbers, as a text joined by commas or as they are.

        Raises:
            InputError: it is neither.
        """
        if isinstance(text, str) and text.strip().lower() == BALANCED:
            return cls()
        try:
            values = tuple(map(float, text.split(",") if isinstance(text, str) else text))
        except (ValueError, TypeError):
            raise InputError(f"class_weights={text} does not fit: write balanced, or numbers such as 1,2.5") from None
        if not values or not all(0 < value < math.inf for value in values):
            raise InputError(f"class_weights={text} does not fit: weights must be finite and above 0")
        return cls(values)

    def __str__(self) -> str:
        return BALANCED if self.values is None else ",".join(f"{value:g}" for value in self.values)

    def of(self, objective: Objective, targets: Tensor) -> Objective:
        """Return an objective with these weights.

        Args:
            objective: the objective.
            targets: the training targets, which balanced weights are computed from.

        Raises:
            InputError: it has no classes or labels, or another number of them.
        """
        return objective.weighted(objective.balance(targets) if self.values is None else self.values)


def check_weights(weights: Sequence[float] | None, names: Sequence[str], what: str) -> None:
    """Check weights of classes or labels.

    Raises:
        InputError: there are more or fewer than names, or one is not a finite number above 0.
    """
    if weights is None:
        return
    if len(weights) != len(names):
        raise InputError(f"class_weights must hold one number per {what}, {len(names)}, not {len(weights)}")
    if not all(0 < weight < math.inf for weight in weights):
        raise InputError(f"class_weights must be finite numbers above 0, not {tuple(weights)}")
