"""Recognition by sums: a ridge regression on the classes of all tasks, solved from the tasks' sums alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.masks.sums import TaskSums
from hatrack.recognition.feature_maps import FeatureMap, feature_map_from

__all__ = [
    "LEAST_SPREAD",
    "RecogniserCache",
    "RidgeRecogniser",
    "finite_features",
    "gather_sums",
    "require_same_map",
    "solve_ridge",
]


@torch.no_grad()
def gather_sums(feature_map: FeatureMap, parts: Iterable[tuple[Tensor, Tensor]], classes: int) -> TaskSums:
    """Add up the sums of a task.

    Args:
        feature_map: the features.
        parts: samples ``(n, ...)`` with their classes, int64 ``(n,)``, part by part; at least one.
        classes: number of the task's classes, C.

    Raises:
        InputError: samples do not suit the features, are of several shapes, or hold values that are not finite.
    """
    gram = targets = None
    shapes: set[tuple[int, ...]] = set()
    for x, y in parts:
        shapes.add(tuple(x.shape[1:]))
        features = finite_features(feature_map, x)
        if gram is None or targets is None:
            gram = features.new_zeros(features.shape[1], features.shape[1])
            targets = features.new_zeros(features.shape[1], classes)
        _add_products(gram, features)
        targets.addmm_(features.T, F.one_hot(y.cpu(), classes).to(features))
    if gram is None or targets is None:
        raise InputError("there are no samples to add up")
    if len(shapes) > 1:
        raise InputError(f"samples are of several shapes, {', '.join(map(str, sorted(shapes)))}: bring them to one")
    return TaskSums.of(feature_map.describe(), gram, targets, shapes.pop())


def _add_products(gram: Tensor, features: Tensor) -> None:
    """Add HᵀH to its upper triangle; of the blocks below it, those beside the diagonal are computed with it."""
    edges = [len(gram) * index // _BLOCKS for index in range(_BLOCKS + 1)]
    for first, behind in pairwise(edges):
        gram[first:behind, first:].addmm_(features[:, first:behind].T, features[:, first:])


def finite_features(feature_map: FeatureMap, x: Tensor) -> Tensor:
    """Return features of samples on the CPU, float64 ``(N, D)``.

    Raises:
        InputError: samples do not suit the features, or hold values that are not finite.
    """
    features = feature_map.features(x).to("cpu", torch.float64)
    wrong = (~features.isfinite().all(1)).nonzero().flatten().tolist()
    if wrong:
        some = ", ".join(map(str, wrong[:5])) + (", …" if len(wrong) > 5 else "")
        raise InputError(
            f"{len(wrong)} of {len(features)} samples (row {some} of this batch) hold values that are infinite or not "
            "a number, or too large, and no task can be told from these; leave them out or clean them"
        )
    return features


@dataclass(frozen=True, eq=False)
class TaskDensities:
    """Normal densities of all classes' features in a random subspace, with a covariance for every task.

    As quadratic discriminant analysis with shared covariances (Friedman, JASA 1989), within tasks instead of classes:
    that is what the sums tell. In all D dimensions, one covariance per task would take as much memory as the sums.

    Attributes:
        projection: from features to the subspace, float64 ``(D, K)``.
        means: mean of every class there, ``(C, K)``.
        factors: lower Cholesky factor of every task's covariance, ``(T, K, K)``.
        task_of: index of the task of every class, int64 ``(C,)``.
    """

    projection: Tensor
    means: Tensor
    factors: Tensor
    task_of: Tensor

    def log_densities(self, features: Tensor) -> Tensor:
        """Return log-densities, tempered since features depend on each other, ``(N, C)``.

        Args:
            features: features of samples, float64 ``(N, D)``.
        """
        placed = features @ self.projection
        found = placed.new_empty(len(placed), len(self.means))
        for index, factor in enumerate(self.factors):
            own = (self.task_of == index).nonzero().flatten()
            size = factor.diagonal().log().sum()
            whitened = torch.linalg.solve_triangular(factor, placed.T, upper=False).T
            centers = torch.linalg.solve_triangular(factor, self.means[own].T, upper=False).T
            found[:, own] = -size - torch.cdist(whitened, centers).square() / 2
        return found * (_CONFIDENCE / (_CONFIDENCE + self.projection.shape[1]))


@dataclass(frozen=True, eq=False)
class RidgeRecogniser:
    """Ridge regression of all tasks' classes on shared features, and the tasks' probabilities that follow.

    Outputs are estimates of one-hot classes. A class is the likelier, the nearer the outputs are to its point, as if
    they were spread around it by a Cauchy distribution in C dimensions: most samples lie near, and a few far away, for
    which a normal distribution would be far too sure. Since the regression is linear in the features, a second opinion
    is how dense the classes' features are there: see :class:`TaskDensities`.

    Attributes:
        feature_map: the features.
        tasks: names of the tasks, in alphabetical order.
        task_of: index of the task of every class, int64 ``(C,)``; classes without samples are left out.
        weights: weights of the regression, float64 ``(D, C)``; the first row is the offset.
        points: point of every class among the outputs, float64 ``(C, C)``, class by class.
        variance: mean square of an output's error on new samples, above 0.
        strength: strength of the ridge, in parts of the features' variances.
        densities: densities of the classes' features.
        sample_shape: shape of a sample.
    """

    feature_map: FeatureMap
    tasks: tuple[str, ...]
    task_of: Tensor
    weights: Tensor
    points: Tensor
    variance: float
    strength: float
    densities: TaskDensities
    sample_shape: tuple[int, ...]

    @torch.no_grad()
    def log_probabilities(self, x: Tensor) -> Tensor:
        """Return the logarithm of every task's probability, float64 ``(N, T)``, tasks in the order of :attr:`tasks`.

        Args:
            x: samples ``(N, ...)``, on any device; the result is on the CPU.

        Raises:
            InputError: samples do not suit the features, or hold values that are not finite.
        """
        if tuple(x.shape[1:]) != self.sample_shape:
            raise InputError(
                f"samples are of shape {tuple(x.shape[1:])}, and tasks were calibrated on {self.sample_shape}: bring "
                "them to that shape, or name the task, or choose another score (scorer=Scorer.DISTANCE)"
            )
        features = finite_features(self.feature_map, x)
        return self.log_probabilities_of(features)

    def log_probabilities_of(self, features: Tensor) -> Tensor:
        """Return the logarithm of every task's probability, float64 ``(N, T)``.

        Args:
            features: features of samples, float64 ``(N, D)``.
        """
        count = len(self.points)
        distances = (features @ self.weights).unsqueeze(1).sub(self.points).square().sum(2)
        nearness = -(1 + count) / 2 * torch.log1p(distances / (count * self.variance))
        # The mean of both, since they judge by the same features and err together.
        classes = torch.log_softmax((nearness + self.densities.log_densities(features)) / 2, 1)
        tasks = [classes[:, self.task_of == index].logsumexp(1) for index in range(len(self.tasks))]
        return torch.stack(tasks, 1)


class RecogniserCache:
    """Cache of the last solution, which is solved anew for other sums."""

    def __init__(self) -> None:
        self._solved: tuple[dict[str, TaskSums], RidgeRecogniser] | None = None

    def of(self, sums: Mapping[str, TaskSums]) -> RidgeRecogniser:
        """Return the solution of sums, which are compared by identity: nothing writes into them.

        Args:
            sums: sums by task; at least one task.

        Raises:
            InputError: tasks' sums are of different features.
        """
        solved = self._solved
        if solved is None or solved[0].keys() != sums.keys() or any(solved[0][n] is not sums[n] for n in sums):
            solved = dict(sums), solve_ridge(sums)
            self._solved = solved
        return solved[1]

    def drop(self) -> None:
        """Drop the solution, and with it the sums that it was made of."""
        self._solved = None


def require_same_map(sums: Mapping[str, TaskSums]) -> None:
    """Check that sums of several tasks are of the same features.

    Raises:
        InputError: they are not.
    """
    kinds: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name in sorted(sums):
        kinds.setdefault((sums[name].feature_map, sums[name].sample_shape), []).append(name)
    if len(kinds) > 1:
        said = "; ".join(f"{', '.join(names)}: {kind} of {shape}" for (kind, shape), names in kinds.items())
        raise InputError(
            f"sums of different features do not add up ({said}): calibrate all tasks with one feature_map, on samples "
            "of one shape"
        )


@torch.no_grad()
@torch.inference_mode(False)
def solve_ridge(sums: Mapping[str, TaskSums]) -> RidgeRecogniser:
    """Solve the regression of the tasks' sums, which are added in the alphabetical order of names.

    Classes count alike, however many samples tasks have: else outputs of small tasks would be small. The strength of
    the ridge minimises generalized cross-validation, n · RSS / (n − df)², which needs nothing but the sums, and
    estimates the squared error on new samples (Golub, Heath and Wahba, Technometrics 1979).

    Args:
        sums: sums by task; at least one task.

    Raises:
        InputError: tasks' sums are of different features.
    """
    require_same_map(sums)
    names = sorted(sums)
    parts = [sums[name] for name in names]
    # The first feature is always 1, so that its products with others are sums, and those with classes counts.
    samples = torch.stack([part.gram[0] for part in parts])
    seen = torch.stack([(part.targets[0] > 0).sum() for part in parts])
    shares = seen / samples * (samples.sum() / seen.sum())  # weight of every sample of a task
    triangle = parts[0].gram * shares[0]
    for part, share in zip(parts[1:], shares[1:], strict=True):
        triangle.add_(part.gram * share)
    targets = torch.cat([part.targets * share for part, share in zip(parts, shares, strict=True)], 1)
    task_of = torch.cat([torch.full((part.targets.shape[1],), index) for index, part in enumerate(parts)])
    has_samples = targets[0] > 0
    targets, task_of = targets[:, has_samples], task_of[has_samples]
    weights, points, variance, strength, scales = _solve(replace(parts[0], gram=triangle).square(), targets)
    densities = _densities(parts, task_of, scales)
    feature_map, shape = feature_map_from(parts[0].feature_map), parts[0].sample_shape
    return RidgeRecogniser(feature_map, tuple(names), task_of, weights, points, variance, strength, densities, shape)


def _densities(parts: Sequence[TaskSums], task_of: Tensor, scales: Tensor) -> TaskDensities:
    """Estimate the densities of classes in a random subspace.

    Args:
        parts: the tasks' sums.
        task_of: index of the task of every class that has samples, int64 ``(C,)``.
        scales: factors by which features are brought to one scale, 0 for those that never change, ``(D,)``.
    """
    size = min(_DIMENSIONS, len(scales))
    drawn = np.random.RandomState(1).standard_normal((len(scales), size)) / size**0.5
    projection = scales.unsqueeze(1) * torch.from_numpy(drawn)
    means, covariances, counts, reaches = [], [], [], []
    for part in parts:
        seen = part.targets[:, part.targets[0] > 0]
        own = (seen / seen[0]).T @ projection
        around_zero = projection.T @ part.square() @ projection
        means.append(own)
        covariances.append((around_zero - (own * seen[0].unsqueeze(1)).T @ own) / seen[0].sum())
        reaches.append(around_zero.diagonal().sum() / seen[0].sum())
        counts.append(seen[0].sum())
    samples = torch.stack(counts)
    pooled = torch.stack(covariances).mul(samples.view(-1, 1, 1)).sum(0) / samples.sum()
    usual = pooled.diagonal().mean() if size else pooled.sum()
    # Where no class varies within, a covariance is nothing but rounding, which has either sign.
    usual = usual.clamp_min(LEAST_SPREAD * torch.stack(reaches).mean() / max(size, 1))
    identity = torch.eye(size, dtype=pooled.dtype) * (usual + torch.finfo(pooled.dtype).tiny ** 0.5)
    pooled = torch.lerp(pooled, identity, max(_LEAST_ROUND, size / (size + float(samples.sum()))))
    factors = []
    for own, count in zip(covariances, samples.tolist(), strict=True):
        shrunk = torch.lerp(own, pooled, max(_LEAST_POOLED, size / (size + count)))
        factors.append(torch.linalg.cholesky(shrunk))
    return TaskDensities(projection, torch.cat(means), torch.stack(factors), task_of)


def _solve(gram: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float, float, Tensor]:
    """Solve a regression with a free offset, features in units of their deviations.

    Args:
        gram: HᵀH, ``(D, D)``, of which the first feature is 1; it is overwritten.
        targets: HᵀY, ``(D, C)``.

    Returns:
        Weights ``(D, C)``, points of the classes ``(C, C)``, the variance of errors on new samples, the strength, and
        factors that bring features to deviations of 1, ``(D,)``; 0 for those that never change.
    """
    total, counts = gram[0, 0].clone(), targets[0]
    means, shares = gram[0, 1:] / total, counts / total
    raw = gram.diagonal()[1:].clone()
    inside = gram[1:, 1:].sub_(torch.outer(means, means * total))
    products = targets[1:] - torch.outer(means, counts)
    squares = inside.diagonal().clone()
    # A feature that never changes has a square that is nothing but rounding; its weight is 0.
    varies = squares > _ROUNDING * raw
    scales = torch.where(varies, squares.clamp_min(torch.finfo(squares.dtype).tiny).rsqrt(), 0.0)
    inside.mul_(scales.unsqueeze(1)).mul_(scales)
    products = products * scales.unsqueeze(1)
    spread = counts - counts.square() / total

    def fit(strength: float) -> tuple[Tensor, float]:
        """Return weights in units of deviations, and the estimate of the squared error of an output."""
        regular = inside.clone()
        regular.diagonal().add_(strength)
        factor = torch.linalg.cholesky(regular)
        solved = torch.cholesky_solve(products, factor)
        residual = spread.sum() - 2 * (solved * products).sum() + (solved * (inside @ solved)).sum()
        probes = _probes(len(inside))
        trace = (probes * torch.cholesky_solve(probes, factor)).sum() * (len(inside) / probes.square().sum())
        degrees = 1 + float(varies.sum()) - strength * (float(trace) - float((~varies).sum()) / strength)
        left = max(float(total) - degrees, 1e-6 * float(total))
        return solved, max(float(total * residual), 0.0) / left**2 / len(counts)

    tried = {exponent: fit(10.0**exponent) for exponent in _EXPONENTS}
    best = min(tried, key=lambda exponent: (tried[exponent][1], exponent))
    tried |= {exponent: fit(10.0**exponent) for exponent in (best - 0.5, best + 0.5)}
    best = min(tried, key=lambda exponent: (tried[exponent][1], exponent))
    solved, variance = tried[best]
    inner = solved * scales.unsqueeze(1)
    weights = torch.cat([(shares - means @ inner).unsqueeze(0), inner])
    reached = (solved.T @ products / counts).T + shares  # mean outputs on the training samples of every class
    # Halfway between the one-hot class, at which outputs aim, and what they reach on the mean: nearest means alone are
    # less accurate where classes are equally frequent, one-hot classes alone where they are not.
    points = (reached + torch.eye(len(counts), dtype=reached.dtype)) / 2
    deviations = torch.cat([scales.new_zeros(1), scales * total.sqrt()])
    return weights, points, max(variance, _LEAST_VARIANCE), 10.0**best, deviations


_BLOCKS = 4
"""Number of stripes that a symmetric product is computed in, which spares three eighths of it."""

_EXPONENTS = (-5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0)
"""Powers of ten of the ridge's strength that are compared; half steps beside the best one follow. Few
samples of many features take more."""

_ROUNDING = 1e-12
"""Share of a sum of squares below which its differences from the mean are nothing but rounding."""

_LEAST_VARIANCE = 1e-6
"""Lower bound of the variance of errors, where training samples are fitted exactly."""

LEAST_SPREAD = 1e-7
"""Smallest variance within classes, as a share of the mean square: far above rounding, far below what features have."""

_DIMENSIONS = 400
"""Largest number of dimensions in which densities are estimated."""

_CONFIDENCE = 10.0
"""Largest number of independent features that a density counts as, whatever the number of dimensions."""

_LEAST_POOLED = 0.1
"""Smallest share of all tasks' covariance in that of a task; tasks of few samples take more."""

_LEAST_ROUND = 1e-3
"""Smallest share of a covariance that is the same in all directions in that of all tasks."""

_PROBES = 64
"""Number of random vectors by which a trace is estimated (Hutchinson, 1990), instead of inverting a matrix."""


def _probes(size: int) -> Tensor:
    """Return vectors of signs ``(size, probes)``, the same for all calls; unit vectors where these are no more."""
    if size <= _PROBES:
        return torch.eye(size, dtype=torch.float64)
    signs = np.random.RandomState(0).randint(0, 2, (size, _PROBES))
    return torch.from_numpy(2.0 * signs - 1.0)
