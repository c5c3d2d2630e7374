"""Columns of numbers for every sample, learned by the mean squared error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.objectives import metrics
from hatrack.objectives.base import Objective
from hatrack.objectives.metrics import Metric
from hatrack.support.names import listed

__all__ = ["Regression"]

MEASURES = {
    metrics.R_SQUARED: metrics.r_squared,
    metrics.MEAN_ABSOLUTE_ERROR: metrics.mean_absolute_error,
    metrics.ROOT_MEAN_SQUARED_ERROR: metrics.root_mean_squared_error,
}


@dataclass(frozen=True)
class Regression(Objective):
    """Columns of numbers: the mean squared error of standardised columns, and R². Targets are float64 ``(N, K)``.

    Outputs are standardised, ``(y − mean) / deviation``; :meth:`values` are in the columns' own units.

    Attributes:
        names: names of the K columns.
        mean: mean of every column, as a rule over the training samples.
        deviation: standard deviation of every column, above 0.
        metric: R², mean absolute error or root mean squared error, over the columns' own units.

    Raises:
        InputError: the metric is another one, or names, means and deviations do not fit together.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    metric: Metric = metrics.R_SQUARED
    kind: ClassVar[str] = "regression"

    def __post_init__(self) -> None:
        for field in ("names", "mean", "deviation"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not (len(self.names) == len(self.mean) == len(self.deviation)):
            raise InputError("a regression needs a mean and a deviation for every column")
        if self.metric not in MEASURES:
            known = ", ".join(metric.name for metric in MEASURES)
            raise InputError(f"the metric of a regression is one of: {known}; not {self.metric.name}")

    @classmethod
    def of(cls, targets: Tensor, names: Sequence[str] | None = None, metric: Metric = metrics.R_SQUARED) -> Regression:
        """Make the objective of training targets float64 ``(N, K)``, standardised by their mean and deviation.

        Args:
            targets: the training targets.
            names: names of the columns; their numbers from 0 if left out.
            metric: the metric.

        Raises:
            InputError: a column does not vary.
        """
        names = tuple(str(column) for column in range(targets.shape[1])) if names is None else tuple(names)
        y = targets.double()
        low, high = y.amin(0), y.amax(0)
        for column, name in enumerate(names):
            if low[column] == high[column]:
                raise InputError(
                    f"column {name!r} is {float(low[column]):g} in all training samples; there is nothing to learn"
                )
        return cls(names, tuple(y.mean(0).tolist()), tuple(y.std(0, correction=0).tolist()), metric)

    def check(self, targets: Tensor, part: str) -> None:
        """Check that targets are columns of numbers, as many as there are names."""
        if targets.dtype != torch.float64 or targets.shape[1:] != (self.outputs,):
            raise InputError(f"{part} targets must be float64 (N, {self.outputs})")

    def standardised(self, targets: Tensor) -> Tensor:
        """Return targets in deviations from the mean, float64 ``(N, K)``."""
        return (targets - targets.new_tensor(self.mean)) / targets.new_tensor(self.deviation)

    def values(self, outputs: Tensor) -> Tensor:
        """Return outputs ``(N, K)`` in the columns' own units, float64."""
        wide = outputs.double()
        return wide * wide.new_tensor(self.deviation) + wide.new_tensor(self.mean)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of standardised outputs, over samples and columns."""
        wide = torch.promote_types(outputs.dtype, torch.float32)
        return F.mse_loss(outputs.to(wide), self.standardised(targets).to(wide))

    def measure(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the metric, in the columns' own units."""
        return MEASURES[self.metric](self.values(outputs), targets)

    def unmeasured(self, targets: Tensor) -> str:
        """Say which columns do not vary, of which R² tells nothing."""
        same = (targets == targets[:1]).all(0).tolist()
        constant = [name for name, is_same in zip(self.names, same, strict=True) if is_same]
        if not constant or self.metric != metrics.R_SQUARED:
            return ""
        column = "the number to predict" if self.outputs == 1 else f"column {listed(constant)}"
        remedy = "measure mae or rmse (`metric=mae`)"
        return f"{column} does not vary, so that its R² is 1 where all is exact and 0 else; {remedy}"

    def drawn(self, outputs: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw from normal distributions around the outputs, of variance K/2: their −log density is the loss."""
        noise = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
        return self.values(outputs + noise * (self.outputs / 2) ** 0.5)

    def guesses(self, targets: Tensor) -> Tensor:
        """Return the mean of every column, standardised: the best constant."""
        return self.standardised(targets).mean(0).float()

    def guessed(self, guesses: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return the mean for every sample, of which R² is 0 but for chance."""
        return guesses.expand(count, -1).clone()

    def packed(self, targets: Tensor) -> Tensor:
        """Return the targets, which are packed already."""
        return targets

    def unpacked(self, packed: Tensor) -> Tensor:
        """Return the first K columns."""
        return packed[:, : self.outputs]

    def weighted(self, weights: Sequence[float]) -> Regression:
        """Refuse: there are no classes."""
        raise InputError("class_weights are for classes and labels; this task predicts numbers")

    def balance(self, targets: Tensor) -> tuple[float, ...]:
        """Refuse: there are no classes."""
        raise InputError("class_weights are for classes and labels; this task predicts numbers")

    def say(self, outputs: Tensor) -> list[str]:
        """Return the numbers with the names of their columns; a single number alone."""
        rows = self.values(outputs).tolist()
        if self.outputs == 1:
            return [f"{row[0]:.6g}" for row in rows]
        return [", ".join(f"{name} {value:.6g}" for name, value in zip(self.names, row, strict=True)) for row in rows]

    def to_json(self) -> dict[str, Any]:
        """Return columns, means, deviations and metric."""
        return {
            "kind": self.kind,
            "names": list(self.names),
            "mean": list(self.mean),
            "deviation": list(self.deviation),
            "metric": self.metric.to_json(),
        }
