"""Choosing rows of a labelled set: a stratified validation split, and a class-balanced part."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch

from hatrack.data.arrays import rows_by_class
from hatrack.errors import InputError
from hatrack.objectives import ClassWeights

__all__ = ["EvaluationPart", "StreamOptions", "balanced_rows", "stratified_split"]


class EvaluationPart(enum.Enum):
    """Choice of the samples that tasks are tested on."""

    TEST = "test"
    """The test samples."""

    VALIDATION = "validation"
    """The validation samples, so that settings can be chosen without a look at the test samples."""


@dataclass(frozen=True)
class StreamOptions:
    """Choice of samples that every stream can be given, whichever tasks it makes of them.

    Attributes:
        seed: determines all that is drawn: order, permutations, and which samples are held out and kept.
        validation: share of a task's training samples to hold out, stratified by class, at least 0 and below 1; with
            0 the training samples serve as validation samples too.
        limit: training samples per task, balanced over its classes, before any are held out; None keeps all. The
            test samples are always complete.
        class_weights: weights of the classes or labels of every task in the loss; None for equal ones.
        tested_on: which samples stand for the test samples; the validation samples go with a ``validation`` above 0.
    """

    seed: int
    validation: float = 0.0
    limit: int | None = None
    class_weights: ClassWeights | None = None
    tested_on: EvaluationPart = EvaluationPart.TEST


def stratified_split(
    labels: torch.Tensor, fraction: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide the rows of a labelled set into training and validation, class by class.

    Of a class with n rows, the number held out is within one of ``fraction * n``. A class of two rows or more has at
    least one row on each side; a single row stays in training.

    Args:
        labels: int64 ``(N,)``.
        fraction: share to hold out for validation, above 0 and below 1.
        generator: draws which rows are held out.

    Returns:
        Training rows and validation rows, int64, each ascending; disjoint, and together all of 0..N-1.

    Raises:
        InputError: ``fraction`` is not between 0 and 1, or the set is too small to hold out anything.
    """
    if not 0 < fraction < 1:
        raise InputError(f"the validation share must be at least 0 and below 1, not {fraction}")
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for rows in rows_by_class(labels):
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held_out[_draw(rows, count, generator)] = True
    if not held_out.any():
        raise InputError(
            f"{len(labels)} samples, one of each class, are too few for a validation split; use more, or a share of 0 "
            "(`validation=0`), with which the training samples serve for validation, too"
        )
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def balanced_rows(labels: torch.Tensor, limit: int, generator: torch.Generator) -> torch.Tensor:
    """Choose about ``limit`` rows, as evenly over the classes as their sizes allow.

    Args:
        labels: int64 ``(N,)``.
        limit: number of rows to keep, at least 1. All rows are kept where there are no more; and one row of every
            class is kept even if the classes are more than ``limit``.
        generator: draws which rows are kept.

    Returns:
        The rows, int64, ascending. Classes that are not kept whole differ by at most one row.

    Raises:
        InputError: ``limit`` is below 1.
    """
    if limit < 1:
        raise InputError(f"the limit of training samples per task must be at least 1, not {limit}")
    by_size = sorted(rows_by_class(labels), key=len)
    remaining = max(limit, len(by_size))
    kept = []
    # Smallest class first: what a small class cannot fill is shared out among the larger ones after it.
    for position, rows in enumerate(by_size):
        count = min(len(rows), remaining // (len(by_size) - position))
        kept.append(_draw(rows, count, generator))
        remaining -= count
    return torch.cat(kept).sort().values


def _draw(rows: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw ``count`` of ``rows`` without replacement."""
    return rows[torch.randperm(len(rows), generator=generator)[:count]]
