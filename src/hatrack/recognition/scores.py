"""Scores of a task's own features and logits by which its samples are told from others; one function per score.

``features`` are those of one task, under its mask; ``logits`` are that task's. Larger scores are likelier. What a score
knows of the task is fitted to its training samples: a few matrices, and no sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "ClassGaussians",
    "PrincipalSpace",
    "compose",
    "fit_gaussians",
    "fit_principal_space",
    "mahalanobis",
    "relative_mahalanobis",
    "virtual_logit",
]


@dataclass(frozen=True, eq=False)
class ClassGaussians:
    """Normal distributions of the classes of a task, with one covariance, and of a background.

    Attributes:
        centers: mean of every class that has samples, float64 ``(C, F)``.
        factor: lower Cholesky factor of the covariance within classes, ``(F, F)``.
        mean: mean of the background, ``(F,)``.
        background: lower Cholesky factor of the background's covariance, ``(F, F)``.
    """

    centers: Tensor
    factor: Tensor
    mean: Tensor
    background: Tensor


@torch.no_grad()
def fit_gaussians(features: Tensor, labels: Tensor, background: Tensor | None = None) -> ClassGaussians:
    """Fit normal distributions, their covariances shrunk to a multiple of the identity as Ledoit and Wolf (2004) say.

    Args:
        features: features of training samples, ``(N, F)``, two samples at least.
        labels: their classes, int64 ``(N,)``.
        background: features of samples of all kinds under the task's mask, ``(M, F)``; None takes the task's own, of
            which relative distances learn nothing about samples of other tasks.
    """
    features = features.double()
    members = F.one_hot(labels).double()
    members = members[:, members.sum(0) > 0]
    centers = members.T @ features / members.sum(0).unsqueeze(1)
    around = features if background is None else background.double()
    mean = around.mean(0)
    factor, whole = (_shrunk_factor(each) for each in (features - members @ centers, around - mean))
    return ClassGaussians(centers, factor, mean, whole)


def mahalanobis(features: Tensor, known: ClassGaussians) -> Tensor:
    """Return the negative squared Mahalanobis distance to the nearest class (Lee et al., NeurIPS 2018), ``(N,)``."""
    return -_distances(features, known.centers, known.factor).amin(1)


def relative_mahalanobis(features: Tensor, known: ClassGaussians) -> Tensor:
    """Return by how much the nearest class is nearer than the background (Ren et al., 2021), ``(N,)``.

    That is the squared distance from the background's mean by its covariance, less that to the nearest class by the
    covariance within classes: what all samples vary in counts for nothing.
    """
    whole = _distances(features, known.mean.unsqueeze(0), known.background).squeeze(1)
    return whole + mahalanobis(features, known)


@dataclass(frozen=True, eq=False)
class PrincipalSpace:
    """Space of the directions in which a task's features vary little, for virtual logits.

    Attributes:
        origin: point at which all logits are 0, as near as can be, float64 ``(F,)``.
        residual: orthonormal directions of least variance, ``(F, R)``.
        scale: factor that brings distances in these to the size of the largest logit.
    """

    origin: Tensor
    residual: Tensor
    scale: float


@torch.no_grad()
def fit_principal_space(
    features: Tensor, logits: Tensor, weight: Tensor, bias: Tensor, dimensions: int
) -> PrincipalSpace:
    """Fit the space of a task.

    Args:
        features: features of training samples, ``(N, F)``.
        logits: their logits, ``(N, C)``.
        weight: weight of the task's linear head, ``(C, F)``.
        bias: its bias, ``(C,)``.
        dimensions: number of directions of most variance, which are left out, from 0 to F.
    """
    features = features.double()
    origin = -torch.linalg.pinv(weight.double()) @ bias.double()
    centred = features - origin
    _, directions = torch.linalg.eigh(centred.T @ centred / len(features))  # from the least variance to the most
    residual = directions[:, : features.shape[1] - dimensions]
    size = float((centred @ residual).norm(dim=1).mean())
    return PrincipalSpace(origin, residual, float(logits.double().amax(1).mean()) / size if size > 0 else 0.0)


def virtual_logit(features: Tensor, logits: Tensor, known: PrincipalSpace) -> Tensor:
    """Return the log-sum-exp of the logits less the virtual logit (ViM; Wang et al., CVPR 2022), ``(N,)``.

    The virtual logit is the norm of what of the features lies in directions of little variance, scaled. The score
    orders samples as the softmax share of the virtual logit does, the other way round.
    """
    residual = (features.double() - known.origin) @ known.residual
    distances: Tensor = torch.linalg.vector_norm(residual, dim=1)
    return logits.double().logsumexp(1) - known.scale * distances


def compose(first: Tensor, second: Tensor, scales: tuple[float, float]) -> Tensor:
    """Return a soft maximum of two scores, ``log(exp(β₁ s₁) + exp(β₂ s₂))``, ``(N,)``.

    As TPL writes it (Lin et al., ICLR 2024): its public code computes a soft minimum.

    Args:
        first: scores of one kind, ``(N,)``.
        second: scores of another, ``(N,)``.
        scales: β₁ and β₂, above 0; the paper takes one over the mean of each score on training samples.
    """
    return torch.logaddexp(scales[0] * first, scales[1] * second)


def _distances(features: Tensor, centers: Tensor, factor: Tensor) -> Tensor:
    """Return squared Mahalanobis distances, ``(N, C)``."""
    whitened, places = (
        torch.linalg.solve_triangular(factor, each.double().T, upper=False).T for each in (features, centers)
    )
    return torch.cdist(whitened, places, compute_mode="donot_use_mm_for_euclid_dist").square()


def _shrunk_factor(centred: Tensor) -> Tensor:
    """Return the lower Cholesky factor of a shrunk covariance of centred samples ``(N, F)``.

    Ledoit and Wolf (Journal of Multivariate Analysis 2004): the share of the identity is the variance of the entries of
    the covariance over their distance from the identity.
    """
    count, size = centred.shape
    covariance = centred.T @ centred / count
    usual = covariance.diagonal().mean()
    identity = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    distance = (covariance - usual * identity).square().sum()
    # The sum over samples of |x xᵀ − S|² is that of |x|⁴, less N |S|².
    spread = (centred.square().sum(1).square().sum() / count - covariance.square().sum()) / count
    share = float(spread.clamp_min(0) / distance) if distance > 0 else 1.0
    share = min(1.0, max(share, _LEAST_ROUND))
    tiny = math.sqrt(torch.finfo(covariance.dtype).tiny)
    factor: Tensor = torch.linalg.cholesky(torch.lerp(covariance, (usual + tiny) * identity, share))
    return factor


_LEAST_ROUND = 1e-6
"""Smallest share of the identity, so that features which never vary do no harm."""
