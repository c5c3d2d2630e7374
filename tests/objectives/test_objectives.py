"""Objectives: losses are torch's, targets come back, and what does not fit is said in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.objectives import (
    Classification,
    ClassWeights,
    MetricName,
    MultiLabel,
    Objective,
    Regression,
    TargetKind,
    as_targets,
    check_targets,
    joined_loss,
    joined_targets,
    kind_of,
    objective_from_json,
    objective_of,
    strata,
)
from hatrack.objectives.metrics import ACCURACY, F1, MEAN_ABSOLUTE_ERROR, R_SQUARED

CLASSES = torch.tensor([0, 2, 1, 2, 2, 0])
NUMBERS = torch.tensor([[1.0, 100.0], [2.0, 300.0], [3.0, 200.0], [6.0, 400.0]], dtype=torch.float64)
LABELS = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1]]).bool()
EACH: dict[str, tuple[Objective, Tensor]] = {
    "classes": (Classification(("a", "b", "c")), CLASSES),
    "weighted classes": (Classification(("a", "b", "c"), (1.0, 2.0, 0.5)), CLASSES),
    "numbers": (Regression.of(NUMBERS, ("size", "price")), NUMBERS),
    "labels": (MultiLabel(("x", "y", "z")), LABELS),
    "weighted labels": (MultiLabel(("x", "y", "z"), (1.0, 3.0, 3.0), F1), LABELS),
    "classes by F1": (Classification(("a", "b", "c"), metric=F1), CLASSES),
}
EVERY = pytest.mark.parametrize(("objective", "targets"), EACH.values(), ids=EACH)


def outputs(objective: Objective, targets: Tensor) -> Tensor:
    return torch.randn(len(targets), objective.outputs, generator=torch.Generator().manual_seed(0))


def test_losses_are_those_of_torch() -> None:
    for name, weight in (("classes", None), ("weighted classes", torch.tensor([1.0, 2.0, 0.5]))):
        objective, y = EACH[name]
        said = outputs(objective, y)
        assert torch.equal(objective.loss(said, y), F.cross_entropy(said, y, weight))
    for name, weight in (("labels", None), ("weighted labels", torch.tensor([1.0, 3.0, 3.0]))):
        objective, y = EACH[name]
        said = outputs(objective, y)
        expected = F.binary_cross_entropy_with_logits(said, y.float(), pos_weight=weight)
        assert torch.equal(objective.loss(said, y), expected)
    objective, y = EACH["numbers"]
    said = outputs(objective, y)
    wanted = (y - y.mean(0)) / y.std(0, correction=0)
    torch.testing.assert_close(objective.loss(said, y), F.mse_loss(said, wanted.float()))


def test_numbers_come_back_in_their_own_units() -> None:
    objective, y = EACH["numbers"]
    assert isinstance(objective, Regression)
    standardised = objective.standardised(y)
    torch.testing.assert_close(standardised.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(objective.values(standardised), y)
    assert objective.measure(standardised, y) == pytest.approx(1.0)
    assert objective.say(standardised)[1] == "size 2, price 300"
    one = Regression.of(y[:, 1:], metric=MEAN_ABSOLUTE_ERROR)
    assert one.say(one.standardised(y[:, 1:]))[3] == "400"
    assert one.measure(torch.zeros(4, 1), y[:, 1:]) == pytest.approx(100.0)  # from the mean, 250, in its own units


def test_what_is_said_of_classes_and_labels() -> None:
    assert EACH["classes"][0].say(torch.tensor([[0.0, 2.0, 1.0]])) == ["b"]
    assert EACH["labels"][0].say(torch.tensor([[1.0, -2.0, 1.0], [-1.0, -1.0, -1.0]])) == ["x, z", ""]


@EVERY
def test_descriptions_come_back(objective: Objective, targets: Tensor) -> None:
    assert objective_from_json(json.loads(json.dumps(objective.to_json())), objective.names) == objective


@EVERY
def test_targets_come_back_from_a_joined_batch(objective: Objective, targets: Tensor) -> None:
    packed = F.pad(objective.packed(targets), (0, 3))
    assert packed.dtype == torch.float64
    assert torch.equal(objective.unpacked(packed), targets)
    assert objective.unpacked(packed).dtype == targets.dtype


@EVERY
def test_drawn_and_guessed_targets_are_of_the_right_kind(objective: Objective, targets: Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = objective.drawn(outputs(objective, targets), generator)
    objective.check(drawn, "drawn")
    check_targets(drawn)
    guessed = objective.guessed(objective.guesses(targets), 4000, generator)
    assert guessed.shape == (4000, objective.outputs)
    if isinstance(objective, Classification):
        assert guessed.argmax(1).bincount(minlength=3) / 4000 == pytest.approx(CLASSES.bincount() / 6, abs=0.03)
    elif isinstance(objective, MultiLabel):
        assert (guessed > 0).float().mean(0) == pytest.approx(LABELS.float().mean(0), abs=0.03)
    else:
        assert guessed.abs().max() < 1e-6  # the mean, standardised


def test_drawn_numbers_are_those_whose_likelihood_the_loss_is() -> None:
    objective, _ = EACH["numbers"]
    assert isinstance(objective, Regression)
    said = torch.zeros(20000, 2)
    drawn = objective.standardised(objective.drawn(said, torch.Generator().manual_seed(0)))
    assert float(drawn.var()) == pytest.approx(2 / 2, abs=0.03)  # K/2: (o − y)² / (2 · K/2) = (o − y)² / K


def test_the_loss_of_several_tasks_is_the_mean_over_their_samples() -> None:
    objectives = [each for each, _ in EACH.values()]
    targets = [each for _, each in EACH.values()]
    said = [outputs(*each) for each in EACH.values()]
    y = joined_targets(objectives, targets)
    widest = max(each.shape[1] for each in said)
    all_said = torch.cat([F.pad(each, (0, widest - each.shape[1]), value=-torch.inf) for each in said])
    task_of = torch.cat([torch.full((len(each),), index) for index, each in enumerate(targets)])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    found = joined_loss(objectives, all_said[order], y[order], task_of[order])
    each = [float(o.loss(s, t)) * len(t) for o, s, t in zip(objectives, said, targets, strict=True)]
    assert float(found) == pytest.approx(sum(each) / len(y))
    few = task_of == 2  # tasks without a sample in a batch do not matter
    assert float(joined_loss(objectives, all_said[few], y[few], task_of[few])) == pytest.approx(each[2] / 4)


def test_classes_of_several_tasks_are_one_cross_entropy_as_ever() -> None:
    plain = Classification(("a", "b", "c"))
    y = joined_targets([plain, plain], [CLASSES, CLASSES])
    assert y.dtype == torch.int64
    said = torch.randn(12, 3)
    task_of = torch.arange(12) // 6
    assert torch.equal(joined_loss([plain, plain], said, y, task_of), F.cross_entropy(said, y))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_balanced_classes_weigh_alike(labels: list[int]) -> None:
    y = torch.tensor([0, 1, 2, 3, *labels])
    weights = torch.tensor(Classification(("a", "b", "c", "d")).balance(y))
    totals = weights * y.bincount(minlength=4)
    torch.testing.assert_close(totals, torch.full((4,), len(y) / 4), rtol=1e-5, atol=1e-5)


def test_balanced_labels_make_both_answers_weigh_alike() -> None:
    objective = ClassWeights().of(EACH["labels"][0], LABELS)
    assert isinstance(objective, MultiLabel)
    assert objective.weights == pytest.approx((1 / 3, 3.0, 3.0))


@pytest.mark.parametrize(
    ("text", "said"), [("balanced", "balanced"), ("Balanced ", "balanced"), ("1,2.5", "1,2.5"), ([1, 2], "1,2")]
)
def test_weights_are_read_and_said(text: Any, said: str) -> None:
    assert str(ClassWeights.read(text)) == said
    assert ClassWeights.read(said) == ClassWeights.read(text)


@pytest.mark.parametrize("text", ["", "even", "1,0", "1,-2", "1,inf", "1,nan", "1,,2"])
def test_weights_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"class_weights=.* does not fit"):
        ClassWeights.read(text)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: Classification(("a", "b"), (1.0,)), "one number per class, 2, not 1"),
        (lambda: MultiLabel(("a", "b"), (1.0, -1.0)), "finite numbers above 0"),
        (lambda: MultiLabel(("a",), metric=R_SQUARED), "metric of several labels is one of: mAP, F1, exact match"),
        (lambda: Regression(("a",), (0.0,), (1.0,), ACCURACY), "metric of a regression is one of: R²"),
        (lambda: Regression(("a",), (0.0,), ()), "a mean and a deviation for every column"),
        (lambda: Regression.of(torch.ones(3, 1).double(), ("price",)), "column 'price' is 1 in all training samples"),
        (lambda: objective_of(CLASSES, metric=R_SQUARED), "classes is one of: accuracy, balanced accuracy, F1; not R²"),
        (lambda: objective_of(CLASSES * 2), "renumber or name the classes"),
        (lambda: objective_of(NUMBERS, ("size",)), "1 names do not fit targets of 2 columns"),
        (lambda: ClassWeights().of(EACH["numbers"][0], NUMBERS), "class_weights are for classes and labels"),
        (lambda: ClassWeights((1.0,)).of(EACH["numbers"][0], NUMBERS), "class_weights are for classes and labels"),
        (lambda: ClassWeights().of(Classification(("a", "b")), torch.zeros(3).long()), "class 'b' has no training"),
        (lambda: ClassWeights().of(MultiLabel(("a",)), torch.ones(3, 1).bool()), "label 'a' is on 3 of 3 training"),
        (lambda: EACH["classes"][0].check(CLASSES + 1, "test"), r"test labels must be integers 0\.\.2"),
        (lambda: EACH["numbers"][0].check(NUMBERS[:, :1], "test"), r"test targets must be float64 \(N, 2\)"),
        (lambda: EACH["labels"][0].check(CLASSES, "test"), r"test targets must be bool \(N, 3\)"),
        (lambda: check_targets(NUMBERS.float()), "must be int64"),
        (lambda: check_targets(NUMBERS / 0), "numbers of a split must be finite"),
        (lambda: check_targets(CLASSES - 1), "must be 0 or more"),
        (lambda: as_targets(torch.zeros(3, 2, 1), None, "y"), r"y must be \(N,\) or \(N, K\)"),
        (lambda: as_targets(torch.tensor([1.0, torch.nan]), None, "y"), "y hold infinite values or NaN"),
        (lambda: as_targets(torch.tensor([[0, 2]]), None, "y"), "y of several labels must be truth values"),
        (lambda: as_targets(torch.tensor([True]), None, "y"), "y must be integers, not torch.bool"),
        (lambda: as_targets(torch.tensor([0.5]), TargetKind.CLASSES, "y"), "y must be integers, not torch.float32"),
        (lambda: as_targets(torch.tensor([-1]), None, "y"), "y must be integers 0..C-1, not negative"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(make: Any, fault: str) -> None:
    with pytest.raises(InputError, match=fault) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given_targets", "target", "kind"),
    [
        (torch.tensor([0, 1]), None, TargetKind.CLASSES),
        (torch.tensor([0, 1], dtype=torch.uint8), None, TargetKind.CLASSES),
        (torch.tensor([0.5, 1]), None, TargetKind.NUMBERS),
        (torch.tensor([[0.5], [1]]), None, TargetKind.NUMBERS),
        (torch.tensor([[True, False]]), None, TargetKind.LABELS),
        (torch.tensor([[1, 0], [1, 1]]), None, TargetKind.LABELS),
        (torch.tensor([3, 900]), TargetKind.NUMBERS, TargetKind.NUMBERS),
        (torch.tensor([0.0, 1.0]), TargetKind.CLASSES, TargetKind.CLASSES),
        (torch.tensor([[0.0, 1.0]]), TargetKind.LABELS, TargetKind.LABELS),
    ],
)
def test_the_kind_is_told_by_type_and_shape_unless_it_is_said(
    given_targets: Tensor, target: TargetKind | None, kind: TargetKind
) -> None:
    targets = as_targets(given_targets, target, "y")
    check_targets(targets)
    assert kind_of(targets) == kind


@pytest.mark.parametrize("name", MetricName)
def test_every_metric_can_be_asked_for(name: MetricName) -> None:
    targets = NUMBERS if name in (MetricName.R2, MetricName.MAE, MetricName.RMSE) else LABELS
    if name in (MetricName.ACCURACY, MetricName.BALANCED_ACCURACY, MetricName.F1):
        classes = objective_of(CLASSES, metric=name.metric)
        assert classes.metric == name.metric
        assert classes.measure(F.one_hot(CLASSES).float(), CLASSES) == 1.0
        assert objective_from_json(json.loads(json.dumps(classes.to_json())), classes.names) == classes
        if name is not MetricName.F1:
            return
    objective = objective_of(targets, metric=name.metric)
    assert objective.metric == name.metric
    best = objective.measure(Regression.of(NUMBERS).standardised(NUMBERS), NUMBERS) if targets is NUMBERS else None
    best = objective.measure(targets.float() * 2 - 1, targets) if best is None else best
    assert best == pytest.approx(1.0 if name.metric.larger_is_better else 0.0, abs=1e-9)


def test_strata() -> None:
    assert strata(CLASSES) is CLASSES
    assert strata(NUMBERS).tolist() == [0, 0, 0, 0]
    found = strata(LABELS)  # the rarest labels are y and z, then x, then none
    assert len(set(found.tolist())) == 4
    assert found.dtype == torch.int64
