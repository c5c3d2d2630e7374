"""Calibration of a task: a few numbers of its training data, and no samples, to tell it from other tasks."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hatrack.errors import InputError

__all__ = ["OWN_SCORERS", "Calibration", "Scorer", "fit_calibration", "raw_score"]


class Scorer(enum.Enum):
    """Score by which a sample's task is inferred; larger is likelier."""

    MAX_LOGIT = "max-logit"
    """Largest logit (Hendrycks et al., ICML 2022)."""

    ENERGY = "energy"
    """Logarithm of the sum of exponentials of logits: the negative free energy (Liu et al., NeurIPS 2020)."""

    DISTANCE = "distance"
    """Closeness to the nearest class in the space of the task's features: the negative root mean square of differences
    from the class's mean, in units of the features' spread within classes. After Lee et al., NeurIPS 2018, with a
    diagonal covariance."""

    SUMS = "sums"
    """Logarithm of the task's probability by a regression on the classes of all tasks, on features of the input that
    all tasks share and from sums that they keep: :class:`hatrack.recognition.RidgeRecogniser`."""


OWN_SCORERS = (Scorer.MAX_LOGIT, Scorer.ENERGY, Scorer.DISTANCE)
"""Scores that a task gives by itself, and that are therefore calibrated; the order is that of calibrations in files."""

_BUFFERS = ("location", "spread", "centers", "precision")


class Calibration(nn.Module):
    """Calibration of the scores of a task.

    Attributes:
        location: mean of each scorer's scores on training samples, in the order of ``OWN_SCORERS``, ``(3,)``.
        spread: standard deviation of the same scores, ``(3,)``.
        centers: mean features of each class, ``(C, F)``, of the features that the task uses.
        precision: one over the variance of each feature within classes, ``(F,)``.
    """

    location: Tensor
    spread: Tensor
    centers: Tensor
    precision: Tensor

    def __init__(self, location: Tensor, spread: Tensor, centers: Tensor, precision: Tensor) -> None:
        super().__init__()
        for name, value in zip(_BUFFERS, (location, spread, centers, precision), strict=True):
            self.register_buffer(name, value)

    @classmethod
    def like(cls, saved: Mapping[str, Tensor]) -> Calibration:
        """Make a calibration of zeros, of the shapes of saved tensors by the attributes' names."""
        return cls(*(torch.zeros_like(saved[name]) for name in _BUFFERS))

    def normalised(self, score: Tensor, scorer: Scorer) -> Tensor:
        """Normalise a score by the mean and standard deviation of the task's training samples.

        Args:
            score: scores of samples, ``(N,)``.
            scorer: kind of the scores, one that a task gives by itself.
        """
        index = OWN_SCORERS.index(scorer)
        return (score - self.location[index]) / self.spread[index]

    def widened(self, indices: Tensor, features: int) -> Calibration:
        """Copy the calibration for more features, which the task does not use; distances stay as they are.

        Args:
            indices: new index of every old feature, int64 ``(F,)``.
            features: new number of features.
        """
        centers = self.centers.new_zeros(len(self.centers), features)
        precision = self.precision.new_zeros(features)
        centers[:, indices] = self.centers
        precision[indices] = self.precision * (features / len(indices))  # distances are means over all features
        return Calibration(self.location, self.spread, centers, precision)


def raw_score(scorer: Scorer, features: Tensor, logits: Tensor, calibration: Calibration | None) -> Tensor:
    """Score how much samples look like those of a task, without normalisation, ``(N,)``.

    Args:
        scorer: the kind of score, one that a task gives by itself.
        features: the features that the task uses, ``(N, F)``.
        logits: its logits, ``(N, C)``.
        calibration: the task's calibration, for distances; None for other scores.

    Raises:
        InputError: the score takes all tasks together.
    """
    match scorer:
        case Scorer.MAX_LOGIT:
            return logits.amax(1)
        case Scorer.ENERGY:
            return logits.logsumexp(1)
        case Scorer.DISTANCE:
            assert calibration is not None
            scale = calibration.precision.sqrt() / max(1, features.shape[1]) ** 0.5
            wide = torch.promote_types(features.dtype, torch.float32)  # there is no distance of half precision
            return -torch.cdist((features * scale).to(wide), (calibration.centers * scale).to(wide)).amin(1)
        case Scorer.SUMS:
            raise InputError("sums tell tasks by all of them together: solve_ridge in hatrack.recognition")


@torch.no_grad()
def fit_calibration(features: Tensor, logits: Tensor, labels: Tensor) -> Calibration:
    """Measure the calibration of a task on its training samples.

    Args:
        features: the features that the task uses, ``(N, F)``.
        logits: its logits, ``(N, C)``.
        labels: classes, int64 ``(N,)``; a class without samples gets a center that is far from all samples.
    """
    classes = logits.shape[1]
    members = torch.nn.functional.one_hot(labels, classes).to(features.dtype)
    counts = members.sum(0)
    centers = members.T @ features / counts.clamp_min(1).unsqueeze(1)
    within = (features - centers[labels]).square().mean(0)
    precision = 1 / (within + 1e-3 * within.mean() + torch.finfo(features.dtype).tiny ** 0.5)
    centers[counts == 0] = torch.finfo(features.dtype).max ** 0.25
    calibration = Calibration(features.new_zeros(3), features.new_ones(3), centers, precision)
    scores = torch.stack([raw_score(scorer, features, logits, calibration) for scorer in OWN_SCORERS])
    spread = scores.std(1, unbiased=False).clamp_min(torch.finfo(scores.dtype).eps)
    return Calibration(scores.mean(1), spread, centers, precision)
