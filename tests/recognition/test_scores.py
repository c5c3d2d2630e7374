"""Scores of single tasks against loops over samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hatrack.recognition.scores import (
    compose,
    fit_gaussians,
    fit_principal_space,
    mahalanobis,
    relative_mahalanobis,
    virtual_logit,
)


def samples(count: int, size: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    x = torch.randn(count, size, generator=draw, dtype=torch.float64) @ mixing
    x[:, 0] += 4.0 * labels
    return x, labels


def shrunk(rows: list[Tensor]) -> Tensor:
    """The covariance of Ledoit and Wolf, sample by sample."""
    size, count = len(rows[0]), len(rows)
    covariance = sum((torch.outer(row, row) for row in rows), torch.zeros(size, size, dtype=torch.float64)) / count
    usual = covariance.trace() / size
    distance = float((covariance - usual * torch.eye(size)).square().sum())
    spread = sum(float((torch.outer(row, row) - covariance).square().sum()) for row in rows) / count**2
    share = min(1.0, spread / distance)
    return (1 - share) * covariance + share * usual * torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize(("count", "others"), [(9, None), (60, None), (60, 30)])
def test_distances_are_those_of_a_loop(count: int, others: int | None) -> None:
    x, labels = samples(count)
    around = x if others is None else 2 * samples(others, seed=5)[0] - 1
    known = fit_gaussians(x, labels, None if others is None else around)
    centers = [x[labels == label].mean(0) for label in range(3)]
    within = torch.linalg.inv(shrunk([row - centers[label] for row, label in zip(x, labels.tolist(), strict=True)]))
    whole = torch.linalg.inv(shrunk([row - around.mean(0) for row in around]))
    new, _ = samples(7, seed=1)
    for row, score, relative in zip(new, mahalanobis(new, known), relative_mahalanobis(new, known), strict=True):
        nearest = min(float((row - center) @ within @ (row - center)) for center in centers)
        background = float((row - around.mean(0)) @ whole @ (row - around.mean(0)))
        assert float(score) == pytest.approx(-nearest, rel=1e-8)
        assert float(relative) == pytest.approx(background - nearest, rel=1e-7, abs=1e-7)


def test_a_class_without_samples_and_features_that_never_vary_do_no_harm() -> None:
    x, labels = samples(40)
    x[:, 2] = 1.5
    known = fit_gaussians(x, labels * 2)  # classes 1 and 3 have no samples
    assert known.centers.shape == (3, 5)
    assert mahalanobis(x, known).isfinite().all()
    assert (mahalanobis(x[:1], known) > mahalanobis(x[:1] + torch.tensor([0, 0, 9.0, 0, 0]), known)).all()


def test_virtual_logits_are_those_of_a_loop() -> None:
    x, _ = samples(50)
    draw = torch.Generator().manual_seed(3)
    head = nn.Linear(5, 3).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
        logits = head(x)
        known = fit_principal_space(x, logits, head.weight, head.bias, 3)
        torch.testing.assert_close(head.weight @ known.origin, -head.bias)
        new, _ = samples(6, seed=2)
        found = virtual_logit(new, head(new), known)
    values, vectors = torch.linalg.eigh(sum(torch.outer(r, r) for r in x - known.origin) / 50)  # type: ignore[arg-type]
    least = [vectors[:, index] for index in values.argsort()[:2].tolist()]

    def rest(row: Tensor) -> float:
        return math.sqrt(sum(float((row - known.origin) @ direction) ** 2 for direction in least))

    scale = sum(float(row.max()) for row in logits) / sum(rest(row) for row in x)
    for row, score in zip(new, found, strict=True):
        answers = [float(answer) for answer in head(row).detach()]
        energy = math.log(sum(math.exp(answer) for answer in answers))
        assert float(score) == pytest.approx(energy - scale * rest(row), rel=1e-7)


def test_no_direction_left_leaves_the_energy() -> None:
    x, _ = samples(50)
    logits = x[:, :3]
    known = fit_principal_space(x, logits, torch.eye(3, 5), torch.zeros(3), 5)
    assert known.scale == 0.0
    torch.testing.assert_close(virtual_logit(x, logits, known), logits.logsumexp(1))


def test_a_composition_is_a_soft_maximum() -> None:
    first, second = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    found = compose(first, second, (2.0, 0.5))
    for index in range(2):
        expected = math.log(math.exp(2.0 * first[index]) + math.exp(0.5 * second[index]))
        assert float(found[index]) == pytest.approx(expected)
        assert float(found[index]) >= max(2.0 * float(first[index]), 0.5 * float(second[index]))
