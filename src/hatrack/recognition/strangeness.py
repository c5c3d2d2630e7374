"""Strangeness of batches: how far samples of one task lie from what sums say of its classes, or another's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.recognition.sums import LEAST_SPREAD

__all__ = ["ClassSums", "strangeness"]


@dataclass(frozen=True, eq=False)
class ClassSums:
    """Sums of features over a task's samples so far, from which its classes' means and its covariance follow.

    Attributes:
        gram: HᵀH of the features H ``(N, D)``, of which the first is 1, float64 ``(D, D)``.
        targets: HᵀY of the one-hot classes Y ``(N, C)``, float64 ``(D, C)``.
    """

    gram: Tensor
    targets: Tensor

    @classmethod
    def of(cls, parts: Iterable[tuple[Tensor, Tensor]], classes: int) -> ClassSums:
        """Add up batches, at least one.

        Args:
            parts: features, float64 ``(n, D)``, with their classes, int64 ``(n,)``, batch by batch.
            classes: number of classes, C.
        """
        grams, targets = zip(
            *((features.T @ features, features.T @ F.one_hot(y, classes).to(features)) for features, y in parts),
            strict=True,
        )
        return cls(sum(grams[1:], grams[0]), sum(targets[1:], targets[0]))

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the covariance within classes: samples beyond one of every class that there is."""
        return int(self.gram[0, 0]) - int((self.targets[0] > 0).sum())

    def plus(self, other: ClassSums) -> ClassSums:
        """Return the sums of the samples of both."""
        return ClassSums(self.gram + other.gram, self.targets + other.targets)


@torch.no_grad()
def strangeness(sums: ClassSums, features: Tensor, labels: Tensor) -> float:
    """Return how far the means of a batch's classes lie from those of a task.

    That is Hotelling's T² (Annals of Mathematical Statistics 1931) of every class in the batch, in a random subspace
    and with one covariance within all classes of the task, over what it is expected to be for samples of the task:
    about 1 for a batch of the task, more the farther it lies. A class that the task has no samples of is compared with
    the mean of all. Labels count, so that a task whose classes are exchanged is strange, too.

    Args:
        sums: the task's sums.
        features: features of the batch, float64 ``(n, D)``, the first of them 1.
        labels: its classes, int64 ``(n,)``.
    """
    total, counts = sums.gram[0, 0], sums.targets[0]
    means = torch.where(counts > 0, sums.targets / counts.clamp_min(1), (sums.gram[0] / total).unsqueeze(1)).T
    raw = sums.gram.diagonal() / total
    spread = (raw - (means.T.square() * counts).sum(1) / total).clamp_min(0)
    # A feature that never changed has still a scale, beside which a change is large.
    scales = torch.where(raw > 0, (spread + _ROUNDING * raw).clamp_min(torch.finfo(raw.dtype).tiny).rsqrt(), 1.0)
    projection = scales.unsqueeze(1) * _directions(len(scales))
    size = projection.shape[1]
    placed = means @ projection
    around_zero = projection.T @ sums.gram @ projection
    within = (around_zero - (placed.T * counts) @ placed) / total
    # Where no class varies within, the covariance is nothing but rounding, which has either sign.
    usual = within.diagonal().mean().clamp_min(LEAST_SPREAD * around_zero.diagonal().mean() / total)
    usual = usual + torch.finfo(within.dtype).tiny ** 0.5
    share = max(_LEAST_ROUND, size / (size + float(total)))
    sphere = torch.eye(size, dtype=within.dtype, device=within.device) * usual
    factor = torch.linalg.cholesky(torch.lerp(within, sphere, share))
    here = F.one_hot(labels, len(counts)).to(features)
    samples = here.sum(0)
    present = samples > 0
    shifts = (here.T @ features @ projection)[present] / samples[present].unsqueeze(1) - placed[present]
    distances = torch.linalg.solve_triangular(factor, shifts.T, upper=False).square().sum(0)
    # The task's own means are uncertain, too, as long as it has few samples.
    expected = size * (1 / samples[present] + 1 / counts[present].clamp_min(1))
    return float((distances / expected).mean())


@lru_cache(maxsize=8)
def _directions(features: int) -> Tensor:
    """Return directions of a random subspace, ``(D, K)``, the same for all calls; none along the offset."""
    size = min(_DIMENSIONS, features - 1)
    drawn = np.random.RandomState(2).standard_normal((features, size)) / features**0.5
    drawn[0] = 0.0
    return torch.from_numpy(drawn)


_DIMENSIONS = 50
"""Largest number of dimensions in which a batch is compared: far fewer than a task has samples."""

_LEAST_ROUND = 1e-3
"""Smallest share of a covariance that is the same in all directions; tasks of few samples take more."""

_ROUNDING = 1e-6
"""Share of a feature's mean square that is its variance at least."""
