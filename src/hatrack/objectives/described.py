"""Objectives as JSON values, and as they are told by targets."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from hatrack.errors import InputError
from hatrack.objectives.base import Objective
from hatrack.objectives.classification import Classification
from hatrack.objectives.metrics import (
    ACCURACY,
    BALANCED_ACCURACY,
    EXACT_MATCH,
    F1,
    MEAN_ABSOLUTE_ERROR,
    MEAN_AVERAGE_PRECISION,
    R_SQUARED,
    ROOT_MEAN_SQUARED_ERROR,
    Metric,
)
from hatrack.objectives.multi_label import MultiLabel
from hatrack.objectives.regression import Regression

__all__ = ["MetricName", "TargetKind", "as_targets", "kind_of", "member_named", "objective_from_json", "objective_of"]


class TargetKind(enum.Enum):
    """Kind of what a task predicts."""

    CLASSES = "classes"
    """One class for every sample."""

    NUMBERS = "numbers"
    """One number or several for every sample."""

    LABELS = "labels"
    """Any number of labels for every sample."""


class MetricName(enum.Enum):
    """Short names of the metrics to choose from."""

    ACCURACY = "accuracy"
    BALANCED_ACCURACY = "balanced_accuracy"
    R2 = "r2"
    MAE = "mae"
    RMSE = "rmse"
    MAP = "map"
    F1 = "f1"
    EXACT = "exact"

    @property
    def metric(self) -> Metric:
        """Metric of that name."""
        return _METRICS[self.value]


_METRICS = {
    "accuracy": ACCURACY,
    "balanced_accuracy": BALANCED_ACCURACY,
    "r2": R_SQUARED,
    "mae": MEAN_ABSOLUTE_ERROR,
    "rmse": ROOT_MEAN_SQUARED_ERROR,
    "map": MEAN_AVERAGE_PRECISION,
    "f1": F1,
    "exact": EXACT_MATCH,
}


def objective_from_json(content: Any, names: Sequence[str] | None = None) -> Objective:
    """Make an objective of what its ``to_json`` gave.

    Args:
        content: the description.
        names: names of the classes, which a description leaves out; their numbers if left out.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    kind = content["kind"]
    weights = None if content.get("weights") is None else tuple(map(float, content["weights"]))
    if kind == Classification.kind:
        chosen = Metric.from_json(content["metric"]) if "metric" in content else ACCURACY
        return Classification(tuple(names or map(str, range(int(content["outputs"])))), weights, chosen)
    given, metric = tuple(map(str, content["names"])), Metric.from_json(content["metric"])
    if kind == Regression.kind:
        mean, deviation = (tuple(map(float, content[key])) for key in ("mean", "deviation"))
        return Regression(given, mean, deviation, metric)
    if kind == MultiLabel.kind:
        return MultiLabel(given, weights, metric)
    raise ValueError(f"there is no kind of task {kind!r}")


MemberT = TypeVar("MemberT", bound=enum.Enum)


def member_named(kind: type[MemberT], said: MemberT | str | None, what: str) -> MemberT | None:
    """Return the member of an enumeration that a person says by its name, or that is one already; None stays None.

    Args:
        kind: the enumeration.
        said: the member, or its name.
        what: the argument, for the message.

    Raises:
        InputError: there is no such member.
    """
    for member in kind:
        if said is None or said in (member, member.value):
            return None if said is None else member
    raise InputError(f"{what} must be one of {', '.join(str(member.value) for member in kind)}, not {said!r}")


def as_targets(targets: Tensor, kind: TargetKind | None, what: str) -> Tensor:
    """Return a person's targets as those of an objective, on the CPU: int64, float64 or bool.

    Args:
        targets: integers ``(N,)`` for classes, floats ``(N,)`` or ``(N, K)`` for numbers, truth values or zeros and
            ones ``(N, L)`` for labels.
        kind: what they are; None tells it by their type and shape. Classes may be ``(N, 1)``, too, or one-hot,
            ``(N, C)`` with a single 1 in every row, where it is said that they are classes.
        what: the targets, for messages.

    Raises:
        InputError: they are none of these.
    """
    targets = targets.detach().cpu()
    shape = tuple(targets.shape)
    if targets.is_complex() or targets.dim() not in (1, 2) or not targets.numel():
        raise InputError(f"{what} must be (N,) or (N, K), real and not empty, not {targets.dtype} {shape}")
    if not targets.isfinite().all():
        raise InputError(f"{what} hold infinite values or NaN; clean them first")
    if kind is None:
        kind = _kind_told_by(targets, what)
    if kind is TargetKind.NUMBERS:
        return targets.reshape(len(targets), -1).double()
    if kind is TargetKind.LABELS:
        if targets.dim() != 2 or not ((targets == 0) | (targets == 1)).all():
            raise InputError(f"{what} of several labels must be truth values, or zeros and ones, (N, L), not {shape}")
        return targets.bool()
    if targets.dim() == 2:
        if targets.shape[1] > 1 and not _is_one_hot(targets):
            raise InputError(f"{what} must be one class for every sample, (N,), or a 1 in every row alone, not {shape}")
        targets = targets[:, 0] if targets.shape[1] == 1 else targets.int().argmax(1)
    if targets.dtype == torch.bool:
        raise InputError(f"{what} must be integers, not torch.bool {shape}: give y.long()")
    if targets.is_floating_point() and not bool((targets == targets.round()).all()):
        raise InputError(f"{what} must be integers, not {targets.dtype} {shape}, or say target='numbers'")
    if targets.min() < 0:
        raise InputError(f"{what} must be integers 0..C-1, not negative, or say target='numbers'")
    return targets.long()


def _kind_told_by(targets: Tensor, what: str) -> TargetKind:
    """Return the kind of targets by their type and shape.

    Raises:
        InputError: they may be of more than one kind.
    """
    one_by_chance = len(targets) == 1 and (targets.is_floating_point() or targets.dtype == torch.bool)
    if not one_by_chance and targets.dim() == 2 and targets.shape[1] > 1 and _is_one_hot(targets):
        raise InputError(
            f"every row of {what} has a single 1: give y.argmax(1) for classes, or say target='labels' for labels"
        )
    if targets.is_floating_point():
        return TargetKind.NUMBERS
    if targets.dim() == 1:
        return TargetKind.CLASSES
    if targets.dtype != torch.bool and targets.shape[1] == 1:
        raise InputError(
            f"{what} are whole numbers in one column, {tuple(targets.shape)}: give y[:, 0] for classes, or say "
            "target='labels' for one label that is there or not"
        )
    return TargetKind.LABELS


def _is_one_hot(targets: Tensor) -> bool:
    """Return whether every row ``(N, K)`` has a single 1, and zeros besides."""
    return bool((targets == 0).logical_or(targets == 1).all() and (targets.sum(1) == 1).all())


def kind_of(targets: Tensor) -> TargetKind:
    """Return the kind of targets that :func:`as_targets` gave."""
    if targets.dtype == torch.int64:
        return TargetKind.CLASSES
    return TargetKind.LABELS if targets.dtype == torch.bool else TargetKind.NUMBERS


def objective_of(targets: Tensor, names: Sequence[str] | None = None, metric: Metric | None = None) -> Objective:
    """Make the objective of training targets that :func:`as_targets` gave.

    Args:
        targets: the training targets.
        names: names of classes, labels or columns; their numbers if left out, and then every class must occur.
        metric: the metric; the usual one of its kind if left out.

    Raises:
        InputError: there are too few names, a class does not occur, a column does not vary, or the metric is one of
            another kind of task.
    """
    if targets.dtype == torch.int64:
        if names is None:
            found = sorted(set(targets.tolist()))
            if found != list(range(len(found))):
                raise InputError(
                    "training labels must be 0..C-1, each occurring; renumber or name the classes, or say "
                    "target='numbers' for numbers to predict"
                )
            names = [str(label) for label in found]
        return Classification(tuple(names)) if metric is None else Classification(tuple(names), metric=metric)
    if names is not None and len(names) != targets.shape[1]:
        raise InputError(f"{len(names)} names do not fit targets of {targets.shape[1]} columns")
    if targets.dtype == torch.bool:
        names = tuple(map(str, range(targets.shape[1]))) if names is None else tuple(names)
        return MultiLabel(names) if metric is None else MultiLabel(names, metric=metric)
    return Regression.of(targets, names) if metric is None else Regression.of(targets, names, metric)
