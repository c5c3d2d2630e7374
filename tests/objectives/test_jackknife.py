"""The error of a metric by the choice of its samples is the spread that many test sets show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hatrack.objectives import Classification, Metric, MultiLabel, Objective, Regression
from hatrack.objectives.jackknife import GROUPS, error_by_samples
from hatrack.objectives.metrics import (
    BALANCED_ACCURACY,
    F1,
    MEAN_ABSOLUTE_ERROR,
    R_SQUARED,
    ROOT_MEAN_SQUARED_ERROR,
)


def column(metric: Metric = R_SQUARED) -> Regression:
    return Regression(("y",), (0.0,), (1.0,), metric=metric)


def numbers(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    targets = torch.randn(count, 1, generator=generator)
    return targets + 0.5 * torch.randn(count, 1, generator=generator), targets


def classes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, 3, (count,), generator=generator)
    logits = torch.nn.functional.one_hot(labels, 3) + torch.randn(count, 3, generator=generator)
    return logits.float(), labels


CASES: dict[str, tuple[Objective, Callable[[int, torch.Generator], tuple[Tensor, Tensor]]]] = {
    "R²": (column(), numbers),
    "MAE": (column(MEAN_ABSOLUTE_ERROR), numbers),
    "RMSE": (column(ROOT_MEAN_SQUARED_ERROR), numbers),
    "F1": (Classification(("a", "b", "c"), metric=F1), classes),
    "balanced accuracy": (Classification(("a", "b", "c"), metric=BALANCED_ACCURACY), classes),
    "accuracy": (Classification(("a", "b", "c")), classes),
}


@pytest.mark.parametrize("name", CASES)
def test_the_error_is_the_spread_over_test_sets(name: str) -> None:
    objective, draw = CASES[name]
    generator = torch.Generator().manual_seed(0)
    sets = [draw(400, generator) for _ in range(120)]
    spread = statistics.stdev(objective.measure(*each) for each in sets)
    errors = [error_by_samples(objective, *each) for each in sets[:20]]
    assert all(errors)
    assert statistics.fmean(error for error in errors if error is not None) == pytest.approx(spread, rel=0.15)


def test_a_mean_of_samples_has_the_error_of_a_mean() -> None:
    """With as many groups as samples, the jackknife's error of a mean is the textbook's."""
    generator = torch.Generator().manual_seed(1)
    outputs, targets = numbers(GROUPS, generator)
    error = error_by_samples(column(MEAN_ABSOLUTE_ERROR), outputs, targets)
    each = (outputs - targets).abs().flatten().tolist()
    assert error == pytest.approx(statistics.stdev(each) / math.sqrt(GROUPS), rel=1e-5)


def test_it_is_the_same_every_time_whatever_else_is_drawn() -> None:
    outputs, targets = numbers(100, torch.Generator().manual_seed(2))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = error_by_samples(column(), outputs, targets)
    assert torch.equal(torch.get_rng_state(), before)
    assert error_by_samples(column(), outputs, targets) == first


def test_labels_that_are_ordered_by_period_are_in_all_groups() -> None:
    labels = torch.arange(200) % GROUPS
    logits = torch.nn.functional.one_hot(labels, GROUPS).float()
    logits[::7] = logits[::7].flip(1)
    objective = Classification(tuple(map(str, range(GROUPS))), metric=F1)
    error = error_by_samples(objective, logits, labels)
    assert error is not None
    assert 0.005 < error < 0.1  # a class to a group would leave out whole classes


def test_nothing_is_said_of_few_samples_or_where_none_makes_a_difference() -> None:
    generator = torch.Generator().manual_seed(3)
    assert error_by_samples(column(), *numbers(GROUPS - 1, generator)) is None
    outputs, _ = numbers(50, generator)
    assert error_by_samples(column(), outputs, outputs) is None
    assert error_by_samples(column(), outputs, torch.zeros_like(outputs)) is None  # R² of equal targets


def test_labels_of_several_kinds_are_measured() -> None:
    generator = torch.Generator().manual_seed(4)
    targets = (torch.rand(200, 3, generator=generator) < 0.4).float()
    logits = 2 * targets - 1 + torch.randn(200, 3, generator=generator)
    error = error_by_samples(MultiLabel(("a", "b", "c")), logits, targets)
    assert error is not None
    assert 0.0 < error < 0.1
