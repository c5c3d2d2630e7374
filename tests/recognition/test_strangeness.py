"""Strangeness of batches: against a loop, near 1 for samples of the task, large for others, whatever their scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.recognition import ClassSums, strangeness


def features(count: int, shift: float = 0.0, seed: int = 0, size: int = 6) -> tuple[Tensor, Tensor]:
    """Samples of two classes that lie apart in the first feature; a shift moves the second one."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=draw)
    x = torch.randn(count, size, generator=draw, dtype=torch.float64)
    x[:, 0] += 3.0 * labels
    x[:, 1] += shift
    return F.pad(x, (1, 0), value=1.0), labels


SUMS = ClassSums.of([features(400)], 2)


def test_sums_of_parts_add_up() -> None:
    h, y = features(50)
    parts = ClassSums.of([(h[:20], y[:20]), (h[20:], y[20:])], 2)
    whole = ClassSums.of([(h[:30], y[:30])], 2).plus(ClassSums.of([(h[30:], y[30:])], 2))
    torch.testing.assert_close(parts.gram, h.T @ h)
    torch.testing.assert_close(parts.targets, h.T @ F.one_hot(y, 2).double())
    torch.testing.assert_close(whole.gram, parts.gram)
    torch.testing.assert_close(whole.targets, parts.targets)


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_it_is_that_of_a_loop_over_samples(shift: float) -> None:
    h, y = features(400)
    batch, labels = features(30, shift, seed=1)
    drawn = np.random.RandomState(2).standard_normal((7, 6)) / 7**0.5
    deviation = np.array(
        [np.sqrt(np.mean([(h[i, j] - h[y == y[i], j].mean()) ** 2 for i in range(400)])) for j in range(7)]
    )
    directions = drawn[1:] / deviation[1:, None]
    placed, there = h[:, 1:].numpy() @ directions, batch[:, 1:].numpy() @ directions
    means = [placed[y.numpy() == label].mean(0) for label in (0, 1)]
    within = sum(np.outer(row - means[label], row - means[label]) for row, label in zip(placed, y, strict=True)) / 400
    share = 6 / 406
    inverse = np.linalg.inv((1 - share) * within + share * np.eye(6) * within.trace() / 6)
    found = []
    for label in (0, 1):
        of, own = there[labels.numpy() == label], int((y == label).sum())
        away = of.mean(0) - means[label]
        found.append(away @ inverse @ away / (6 * (1 / len(of) + 1 / own)))
    assert strangeness(SUMS, batch, labels) == pytest.approx(float(np.mean(found)), rel=1e-4)


def test_samples_of_the_task_are_near_one_and_others_far_away() -> None:
    own = [strangeness(SUMS, *features(32, seed=seed)) for seed in range(1, 60)]
    assert 0.85 < sum(own) / len(own) < 1.15
    assert max(own) < 3
    assert min(strangeness(SUMS, *features(32, shift=2.0, seed=seed)) for seed in range(1, 60)) > 2 * max(own)
    h, y = features(32, seed=5)
    assert strangeness(SUMS, h, 1 - y) > 10, "labels count"


def test_few_samples_of_the_task_are_no_reason_for_surprise() -> None:
    found = [
        strangeness(ClassSums.of([features(count, seed=count)], 2), *features(count, seed=99)) for count in (8, 16, 32)
    ]
    assert all(0.1 < value < 4 for value in found)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_scale_of_a_feature_does_not_matter(scale: float) -> None:
    h, y = features(200)
    batch, labels = features(30, seed=3)
    factors = torch.ones(7, dtype=torch.float64)
    factors[2] = scale
    plain = strangeness(ClassSums.of([(h, y)], 2), batch, labels)
    assert strangeness(ClassSums.of([(h * factors, y)], 2), batch * factors, labels) == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_feature_that_never_changed_is_strange_once_it_does(value: float) -> None:
    h, y = features(200)
    batch, labels = features(30, seed=3)
    h[:, 3] = batch[:, 3] = value
    sums = ClassSums.of([(h, y)], 2)
    assert strangeness(sums, batch, labels) < 3
    batch[:, 3] = value + 1
    assert strangeness(sums, batch, labels) > 10


def test_a_class_without_samples_is_compared_with_all() -> None:
    h, y = features(200)
    of_one = ClassSums.of([(h[y == 0], y[y == 0])], 2)
    batch, labels = features(30, seed=3)
    assert np.isfinite(strangeness(of_one, batch[:1], labels[:1]))
    assert np.isfinite(strangeness(of_one, batch[labels == 1], labels[labels == 1]))
