"""Metrics of a task's outputs over a whole split, and what is known of each: its name and its direction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "ACCURACY",
    "BALANCED_ACCURACY",
    "EXACT_MATCH",
    "F1",
    "MEAN_ABSOLUTE_ERROR",
    "MEAN_AVERAGE_PRECISION",
    "METRICS",
    "ROOT_MEAN_SQUARED_ERROR",
    "R_SQUARED",
    "Metric",
    "accuracy",
    "average_precision",
    "balanced_accuracy",
    "common_metric",
    "evenly",
    "exact_match",
    "f1",
    "f1_of_classes",
    "mean_absolute_error",
    "mean_average_precision",
    "r_squared",
    "readable",
    "root_mean_squared_error",
]


def readable(value: float) -> str:
    """Return a number as people read it: four digits, or all before the point."""
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-4:
        return f"{value:.3e}"
    return f"{value + 0.0:.0f}" if size >= 1000 else f"{value + 0.0:.4g}"


def evenly(*values: float) -> tuple[str, ...]:
    """Return numbers that stand beside each other, such as a mean and its deviation, with equally many decimals.

    They are so many that the largest has four digits, or all of those before the point. Very large and very small
    numbers are written as :func:`readable` does.

    Args:
        values: at least one number.
    """
    size = max(map(abs, values))
    if size >= 1e7 or 0 < size < 1e-4:
        return tuple(map(readable, values))
    decimals = 0 if size >= 1000 else 3 if not size else 3 - math.floor(math.log10(size))
    return tuple(f"{round(value, decimals) + 0.0:.{decimals}f}" for value in values)


@dataclass(frozen=True)
class Metric:
    """Meaning of a score of a task.

    Attributes:
        name: its name.
        larger_is_better: whether a larger score is the better one.
        is_share: whether scores are shares in [0, 1], which people read in percent.
    """

    name: str
    larger_is_better: bool
    is_share: bool = False

    @property
    def direction(self) -> str:
        """Direction in words."""
        return "higher is better" if self.larger_is_better else "lower is better"

    def gain(self, now: float, before: float) -> float:
        """Return by how much a score is better than one before; negative if it is worse."""
        return now - before if self.larger_is_better else before - now

    def rank(self, value: float) -> float:
        """Return the sorting key of a score: the better score has the lower one."""
        return -value if self.larger_is_better else value

    def say(self, value: float, digits: int = 1) -> str:
        """Return a score as people read it: in percent, or as a number.

        Args:
            value: the score.
            digits: decimals of a percentage.
        """
        return f"{value:.{digits}%}" if self.is_share else readable(value)

    def to_json(self) -> dict[str, Any]:
        """Return name and direction, as ``run.json`` has them."""
        return {"name": self.name, "larger_is_better": self.larger_is_better}

    @classmethod
    def from_json(cls, content: Any) -> Metric:
        """Return the metric of a name and a direction; one that is not known here counts as a plain number.

        Raises:
            KeyError, TypeError: the content is something else.
        """
        name, larger = content["name"], content["larger_is_better"]
        if not isinstance(name, str) or not isinstance(larger, bool):
            raise TypeError(f"a metric has a name and a direction, not {content!r}")
        known = METRICS.get(name)
        return known if known is not None and known.larger_is_better == larger else cls(name, larger)


ACCURACY = Metric("accuracy", larger_is_better=True, is_share=True)
"""Metric of classes: the share of right answers."""
BALANCED_ACCURACY = Metric("balanced accuracy", larger_is_better=True, is_share=True)
"""Metric of classes: the mean over classes of the share of right answers, so that rare classes count as much."""

R_SQUARED = Metric("R²", larger_is_better=True)
MEAN_ABSOLUTE_ERROR = Metric("mean absolute error", larger_is_better=False)
ROOT_MEAN_SQUARED_ERROR = Metric("root mean squared error", larger_is_better=False)
MEAN_AVERAGE_PRECISION = Metric("mAP", larger_is_better=True, is_share=True)
F1 = Metric("F1", larger_is_better=True, is_share=True)
"""Metric of labels or of classes: the mean over them of the F1 of each ("macro")."""
EXACT_MATCH = Metric("exact match", larger_is_better=True, is_share=True)

METRICS = {
    metric.name: metric
    for metric in (
        *(ACCURACY, BALANCED_ACCURACY, R_SQUARED, MEAN_ABSOLUTE_ERROR, ROOT_MEAN_SQUARED_ERROR),
        *(MEAN_AVERAGE_PRECISION, F1, EXACT_MATCH),
    )
}
"""Every metric by its name."""


def common_metric(metrics: tuple[Metric, ...]) -> Metric | None:
    """Return the metric that all have in common; None if there are several, or none."""
    different = set(metrics)
    return different.pop() if len(different) == 1 else None


def accuracy(predicted: Tensor, targets: Tensor) -> float:
    """Compute the share of samples whose class is right, both int64 ``(N,)``."""
    return int((predicted == targets).sum()) / len(targets)


def balanced_accuracy(predicted: Tensor, targets: Tensor) -> float:
    """Compute the mean over classes of the recall ``TP / (TP + FN)``; classes that no sample is of are left out.

    Args:
        predicted: classes int64 ``(N,)``, negative where a sample was taken for none of them.
        targets: classes int64 ``(N,)``, at least one.
    """
    counts = torch.bincount(targets)
    right = torch.bincount(targets[predicted == targets], minlength=len(counts))
    known = counts > 0
    return float((right[known].double() / counts[known]).mean())


def f1_of_classes(predicted: Tensor, targets: Tensor) -> float:
    """Compute the mean over classes of ``F1 = 2 TP / (2 TP + FP + FN)`` ("macro").

    Classes that no sample is of and none was taken for are left out.

    Args:
        predicted: classes int64 ``(N,)``, negative where a sample was taken for none of them.
        targets: classes int64 ``(N,)``, at least one.
    """
    size = int(max(predicted.max(), targets.max())) + 1
    found = torch.bincount(predicted[predicted >= 0], minlength=size)
    right = torch.bincount(targets[predicted == targets], minlength=size)
    total = found + torch.bincount(targets, minlength=size)
    known = total > 0
    return float((2 * right[known].double() / total[known]).mean())


def r_squared(values: Tensor, targets: Tensor) -> float:
    """Compute the coefficient of determination ``R² = 1 − Σ (y − ŷ)² / Σ (y − ȳ)²``, the mean over columns.

    1 is perfect, 0 as good as the mean of these very targets, less is worse. Where a column of the targets does not
    vary, it is 1 if all of it was predicted exactly, and 0 if not.

    Args:
        values: predictions ŷ, ``(N, K)``.
        targets: y, ``(N, K)``.
    """
    y = targets.double()
    residual = (y - values.double()).square().sum(0)
    total = (y - y.mean(0)).square().sum(0)
    constant = (y == y[:1]).all(0) | (total == 0)
    known = 1.0 - residual / torch.where(constant, 1.0, total)
    return float(torch.where(constant, (residual == 0).double(), known).mean())


def mean_absolute_error(values: Tensor, targets: Tensor) -> float:
    """Compute the mean of ``|y − ŷ|`` over samples and columns, both ``(N, K)``."""
    return float((targets.double() - values.double()).abs().mean())


def root_mean_squared_error(values: Tensor, targets: Tensor) -> float:
    """Compute the root of the mean of ``(y − ŷ)²`` over samples, the mean over columns; both are ``(N, K)``."""
    return float((targets.double() - values.double()).square().mean(0).sqrt().mean())


def average_precision(scores: Tensor, targets: Tensor) -> float:
    """Compute ``Σ (R_n − R_{n−1}) P_n`` over all thresholds, R and P being recall and precision at the n-th.

    Samples with equal scores pass the threshold together.

    Args:
        scores: the larger, the likelier, ``(N,)``.
        targets: bool ``(N,)``, at least one of them true.
    """
    order = scores.double().argsort(descending=True, stable=True)
    ranked, hits = scores.double()[order], targets[order].double()
    found, passed = hits.cumsum(0), torch.arange(1, len(hits) + 1, dtype=torch.float64)
    last = torch.ones(len(hits), dtype=torch.bool)
    last[:-1] = ranked[1:] != ranked[:-1]
    found, passed = found[last], passed[last]
    recall = found / hits.sum()
    gained = torch.diff(recall, prepend=recall.new_zeros(1))
    return float((gained * found / passed).sum())


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Compute the mean over labels of :func:`average_precision`; labels that no sample has are left out.

    Args:
        scores: ``(N, L)``.
        targets: bool ``(N, L)``.

    Returns:
        A share; 0 where no sample has any label.
    """
    each = [average_precision(scores[:, i], targets[:, i]) for i in range(targets.shape[1]) if targets[:, i].any()]
    return sum(each) / len(each) if each else 0.0


def f1(predicted: Tensor, targets: Tensor) -> float:
    """Compute the mean over labels of ``F1 = 2 TP / (2 TP + FP + FN)``.

    Labels that no sample has and none was given are left out.

    Args:
        predicted: bool ``(N, L)``.
        targets: bool ``(N, L)``.

    Returns:
        A share; 1 where all labels are left out, since nothing is wrong then.
    """
    right = (predicted & targets).sum(0).double()
    total = predicted.sum(0).double() + targets.sum(0).double()
    known = total > 0
    return float((2 * right[known] / total[known]).mean()) if known.any() else 1.0


def exact_match(predicted: Tensor, targets: Tensor) -> float:
    """Compute the share of samples whose labels are all right, both bool ``(N, L)``."""
    return float((predicted == targets).all(1).double().mean())
