"""Metrics against hand-worked numbers, slow oracles, and their laws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hatrack.objectives import METRICS, Classification, Metric, common_metric
from hatrack.objectives.metrics import (
    ACCURACY,
    BALANCED_ACCURACY,
    F1,
    MEAN_ABSOLUTE_ERROR,
    R_SQUARED,
    accuracy,
    average_precision,
    balanced_accuracy,
    exact_match,
    f1,
    f1_of_classes,
    mean_absolute_error,
    mean_average_precision,
    r_squared,
    readable,
    root_mean_squared_error,
)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def test_regression_by_hand() -> None:
    targets, values = column(1, 2, 3, 6), column(2, 2, 2, 8)
    # errors 1, 0, −1, 2; the mean is 3, deviations from it −2, −1, 0, 3
    assert r_squared(values, targets) == pytest.approx(1 - 6 / 14)
    assert mean_absolute_error(values, targets) == pytest.approx(1.0)
    assert root_mean_squared_error(values, targets) == pytest.approx(math.sqrt(6 / 4))
    both = torch.cat([targets, 10 * targets], 1), torch.cat([values, 10 * targets], 1)
    assert r_squared(both[1], both[0]) == pytest.approx((1 - 6 / 14 + 1) / 2)  # the mean over columns


def test_the_mean_has_an_r_squared_of_0_and_a_constant_column_is_all_or_nothing() -> None:
    targets = column(1, 2, 6)
    assert r_squared(column(3, 3, 3), targets) == pytest.approx(0.0)
    assert r_squared(column(5, 5), column(5, 5)) == 1.0
    assert r_squared(column(5, 5.1), column(5, 5)) == 0.0


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=3, max_size=30), st.floats(0.5, 9))
def test_r_squared_does_not_depend_on_units(pairs: list[tuple[float, float]], factor: float) -> None:
    values, targets = (torch.tensor(each, dtype=torch.float64).unsqueeze(1) for each in zip(*pairs, strict=True))
    if float(targets.std()) < 1e-2:
        return
    there = r_squared(values, targets)
    assert r_squared(factor * values + 7, factor * targets + 7) == pytest.approx(there, rel=1e-6, abs=1e-6)


def slow_average_precision(scores: list[float], targets: list[bool]) -> float:
    """Go through all thresholds from the highest score down, one at a time."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        passed = [there for score, there in zip(scores, targets, strict=True) if score >= threshold]
        recall = sum(passed) / sum(targets)
        total += (recall - before) * sum(passed) / len(passed)
        before = recall
    return total


def test_average_precision_by_hand() -> None:
    scores, targets = torch.tensor([0.9, 0.8, 0.7, 0.1]), torch.tensor([True, False, True, False])
    assert average_precision(scores, targets) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision(torch.zeros(4), targets) == pytest.approx(0.5)  # all pass together: the frequency


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=25))
def test_average_precision_is_that_of_the_slow_way(pairs: list[tuple[int, bool]]) -> None:
    scores, targets = [float(score) for score, _ in pairs], [there for _, there in pairs]
    if any(targets):
        found = average_precision(torch.tensor(scores), torch.tensor(targets))
        assert found == pytest.approx(slow_average_precision(scores, targets))


def test_labels_by_hand() -> None:
    targets = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]]).bool()
    predicted = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]]).bool()
    # TP 1, FN 1: 2/3; TP 2, FP 1: 4/5; the last label is on no sample and was not given
    assert f1(predicted, targets) == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert exact_match(predicted, targets) == 0.5
    assert f1(predicted[:, 2:], targets[:, 2:]) == 1.0
    assert mean_average_precision(targets.float(), targets) == 1.0
    assert mean_average_precision(targets.float()[:, 2:], targets[:, 2:]) == 0.0


def slow_counts(predicted: list[int], targets: list[int]) -> dict[int, tuple[int, int, int]]:
    """Count true positives, false positives and false negatives of every class, sample by sample."""
    counts = {}
    for each in {*predicted, *targets} - {-1}:
        pairs = list(zip(predicted, targets, strict=True))
        hits = sum(1 for said, there in pairs if said == there == each)
        counts[each] = (
            hits,
            sum(1 for said, there in pairs if said == each != there),
            sum(1 for said, there in pairs if said != each == there),
        )
    return counts


@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 3)), min_size=1, max_size=25))
def test_metrics_of_classes_are_those_of_the_slow_way(pairs: list[tuple[int, int]]) -> None:
    """A class -1 was predicted where a sample was taken for none of the task's classes."""
    said, there = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    counts, tensors = slow_counts(said, there), (torch.tensor(said), torch.tensor(there))
    recalls = [hits / (hits + missed) for hits, _, missed in counts.values() if hits + missed]
    assert balanced_accuracy(*tensors) == pytest.approx(sum(recalls) / len(recalls))
    each = [2 * hits / (2 * hits + wrong + missed) for hits, wrong, missed in counts.values()]
    assert f1_of_classes(*tensors) == pytest.approx(sum(each) / len(each))
    as_labels = [torch.stack([tensor == label for label in range(5)], 1) for tensor in tensors]
    assert f1_of_classes(*tensors) == pytest.approx(f1(*as_labels)), "classes are labels of which a sample has one"
    assert accuracy(*tensors) == pytest.approx(sum(1 for one, other in pairs if one == other) / len(pairs))


@given(st.lists(st.integers(0, 2), min_size=3, max_size=12).filter(lambda y: {*y} == {0, 1, 2}), st.integers(2, 9))
def test_how_often_a_class_comes_does_not_count_where_classes_count_alike(labels: list[int], times: int) -> None:
    """Samples of one class that come several times, with their answers, leave the mean of recalls as it is."""
    y = torch.tensor(labels)
    outputs = torch.randn(len(y), 3, generator=torch.Generator().manual_seed(len(labels)))
    rows = torch.cat([torch.arange(len(y)), *[(y == 1).nonzero().flatten()] * (times - 1)])
    balanced = Classification(("a", "b", "c"), metric=BALANCED_ACCURACY)
    assert balanced.measure(outputs[rows], y[rows]) == pytest.approx(balanced.measure(outputs, y))


def test_guessing_the_frequent_class_has_a_high_accuracy_alone() -> None:
    y = torch.tensor([0] * 95 + [1] * 5)
    outputs = torch.tensor([[1.0, 0.0]]).expand(100, 2)
    scores = [Classification(("a", "b"), metric=each).measure(outputs, y) for each in (ACCURACY, BALANCED_ACCURACY, F1)]
    assert scores == pytest.approx([0.95, 0.5, 95 / (95 + 5 / 2) / 2])


def test_a_metric_knows_its_direction_and_how_it_is_read() -> None:
    assert (ACCURACY.gain(0.9, 0.8), MEAN_ABSOLUTE_ERROR.gain(0.8, 0.9)) == pytest.approx((0.1, 0.1))
    assert sorted([3.0, 1.0, 2.0], key=MEAN_ABSOLUTE_ERROR.rank)[0] == 1.0
    assert sorted([3.0, 1.0, 2.0], key=R_SQUARED.rank)[0] == 3.0
    assert (ACCURACY.say(0.5), R_SQUARED.say(0.12345678)) == ("50.0%", "0.1235")
    assert MEAN_ABSOLUTE_ERROR.direction == "lower is better"
    assert common_metric((ACCURACY, ACCURACY)) == ACCURACY
    assert common_metric((ACCURACY, R_SQUARED)) is common_metric(()) is None


@pytest.mark.parametrize("name", METRICS)
def test_metrics_come_back_from_json(name: str) -> None:
    assert Metric.from_json(METRICS[name].to_json()) == METRICS[name]


def test_an_unknown_metric_is_a_number_with_a_direction() -> None:
    assert Metric.from_json({"name": "kappa", "larger_is_better": True}) == Metric("kappa", larger_is_better=True)
    for broken in ({"name": "kappa"}, {"name": 1, "larger_is_better": True}, "kappa"):
        with pytest.raises((KeyError, TypeError)):
            Metric.from_json(broken)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.99641, "0.9964"), (15867.67, "15868"), (831.64, "831.6"), (0.0, "0"), (-0.5, "-0.5"), (3e8, "3.000e+08")],
)
def test_numbers_are_readable(value: float, text: str) -> None:
    assert readable(value) == text
