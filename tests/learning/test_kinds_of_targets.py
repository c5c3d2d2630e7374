"""Learner of numbers, of several labels and of weighted classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack import InputError, LabelPrediction, Learner, NumberPrediction, Prediction
from hatrack.objectives import ClassWeights, MetricName, TargetKind
from hatrack.objectives.metrics import (
    balanced_accuracy,
    f1,
    f1_of_classes,
    mean_absolute_error,
    mean_average_precision,
    r_squared,
)
from hatrack.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from hatrack.train import TrainingSettings

X = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
PRICE = 1000 + 50 * X[:, 0] + 5 * X[:, 1]
BOTH = torch.stack([PRICE, X[:, 2] - 3], 1)
TAGS = torch.stack([X[:, 0] > 0, X[:, 1] > 0.3], 1)
SIDES = (X[:, 3] > 0).long()


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())


def learner(epochs: int = 1) -> Learner:
    return Learner(build(), (4,), training=TrainingSettings(epochs=epochs, batch_size=8, lr=0.05), validation=0.1)


@pytest.mark.parametrize(("metric", "rate"), [("balanced_accuracy", balanced_accuracy), ("f1", f1_of_classes)])
def test_a_metric_of_classes_is_kept_and_counts_samples_of_other_tasks_as_wrong(
    metric: str, rate: Callable[[Tensor, Tensor], float], tmp_path: Path
) -> None:
    today, rare = learner(), (X[:, 0] > 1).long()
    today.fit("rare", (X, rare), metric=metric)
    today.fit("sides", (X, SIDES))
    today.save(tmp_path / "learner")
    for of in (today, Learner.load(tmp_path / "learner", build())):
        outputs = said(of, "rare")
        assert of.evaluate("rare", (X, rare)) == rate(outputs.argmax(1), rare)
        unnamed = of.predict(X)
        assert isinstance(unnamed, Prediction)
        pairs = zip(unnamed.tasks, unnamed.classes, strict=True)
        found = torch.tensor([int(name) if task == "rare" else -1 for task, name in pairs])
        assert (found < 0).any(), "some are taken for the other task"
        assert of.evaluate("rare", (X, rare), name_task=False) == rate(found, rare)


def said(of: Learner, task: str) -> Tensor:
    found = of.predict(X, task)
    if isinstance(found, NumberPrediction):
        return found.values
    return found.probabilities if isinstance(found, LabelPrediction) else found.distribution


@pytest.mark.slow
def test_everything_is_learned_kept_saved_and_loaded(tmp_path: Path) -> None:
    today = learner(epochs=12)
    today.fit("price", (X, PRICE))
    numbers = today.predict(X, "price")
    assert isinstance(numbers, NumberPrediction)
    assert (numbers.task, numbers.columns, numbers.values.shape) == ("price", ("0",), (120, 1))
    assert 900 < float(numbers.values.mean()) < 1100, "in its own units"
    assert today.evaluate("price", (X, PRICE)) == pytest.approx(r_squared(numbers.values, PRICE.unsqueeze(1)))
    assert today.evaluate("price", (X, PRICE)) > 0.7
    before = {"price": said(today, "price")}

    today.fit("tags", (X, TAGS), classes=("hot", "big"))
    labels = today.predict(X, "tags")
    assert isinstance(labels, LabelPrediction)
    assert (labels.names, labels.probabilities.shape) == (("hot", "big"), (120, 2))
    assert [set(row) for row in labels.labels[:3]] == [
        {name for name, share in zip(("hot", "big"), row, strict=True) if share > 0.5}
        for row in labels.probabilities[:3].tolist()
    ]
    assert today.evaluate("tags", (X, TAGS)) == pytest.approx(mean_average_precision(labels.probabilities, TAGS))
    before["tags"] = said(today, "tags")
    today.fit("sides", (X, SIDES), classes=("left", "right"), class_weights="balanced")
    before["sides"] = said(today, "sides")
    today.save(tmp_path / "learner")

    tomorrow = Learner.load(tmp_path / "learner", build(), training=today.training, validation=0.1)
    assert tomorrow.objectives == today.objectives
    assert tomorrow.classes == {"price": ("0",), "tags": ("hot", "big"), "sides": ("left", "right")}
    for of in (today, tomorrow):
        of.fit("both", (X, BOTH), classes=("price", "gap"), metric=MetricName.MAE)
        for task, promise in before.items():
            assert torch.equal(said(of, task), promise), task
    found = tomorrow.predict(X, "both")
    assert isinstance(found, NumberPrediction)
    assert found.columns == ("price", "gap")
    assert tomorrow.evaluate("both", (X, BOTH)) == pytest.approx(mean_absolute_error(found.values, BOTH))
    tomorrow.forget("price")
    assert "price" not in tomorrow.classes


def test_pairs_of_sample_and_target_are_read_for_what_they_are() -> None:
    of = learner()
    of.fit("price", [(x, float(y)) for x, y in zip(X, PRICE, strict=True)])
    of.fit("tags", [(x, y) for x, y in zip(X, TAGS, strict=True)])
    of.fit("sides", [(x, int(y)) for x, y in zip(X, SIDES, strict=True)])
    kinds = {task: type(of.predict(X[:2], task)) for task in of.tasks}
    assert kinds == {"price": NumberPrediction, "tags": LabelPrediction, "sides": Prediction}


def test_what_is_said_wins_over_what_targets_look_like() -> None:
    of = learner()
    of.fit("count", (X, SIDES), target=TargetKind.NUMBERS)
    assert isinstance(of.predict(X, "count"), NumberPrediction)
    of.fit("sides", (X, SIDES.double()), target=TargetKind.CLASSES)
    assert isinstance(of.predict(X, "sides"), Prediction)
    of.fit("tags", (X, TAGS.float()), target=TargetKind.LABELS, metric=MetricName.F1, class_weights=(1, 3))
    found = of.predict(X, "tags")
    assert isinstance(found, LabelPrediction)
    assert of.evaluate("tags", (X, TAGS.int())) == pytest.approx(f1(found.probabilities > 0.5, TAGS))


@pytest.mark.slow
def test_weights_change_what_is_learned_and_are_kept(tmp_path: Path) -> None:
    shares = []
    for weights in ("1,30", ClassWeights((30.0, 1.0)), [1.0, 1.0], None):
        of = learner(epochs=4)
        of.fit("sides", (X, SIDES), class_weights=weights)
        found = of.predict(X, "sides")
        assert isinstance(found, Prediction)
        shares.append(found.classes.count("1"))
    assert shares[0] > shares[2] > shares[1]
    of.save(tmp_path / "learner")
    heavy = learner()
    heavy.fit("sides", (X, SIDES), class_weights=(2, 1))
    heavy.save(tmp_path / "learner")
    assert Learner.load(tmp_path / "learner", build()).objectives == heavy.objectives


def test_files_from_before_there_were_objectives_are_read(tmp_path: Path) -> None:
    of = learner()
    of.fit("sides", (X, SIDES), classes=("left", "right"))
    of.save(tmp_path / "learner")
    file = read_checkpoint(tmp_path / "learner")
    described = {key: value for key, value in file.description.items() if key != "objectives"}
    write_checkpoint(tmp_path / "learner", Checkpoint(file.tensors, described))
    again = Learner.load(tmp_path / "learner", build())
    assert again.objectives == of.objectives
    assert torch.equal(said(again, "sides"), said(of, "sides"))


def test_only_classes_tell_a_task() -> None:
    of = learner()
    of.fit("sides", (X, SIDES))
    assert isinstance(of.predict(X), Prediction)
    of.fit("price", (X, PRICE))
    for ask in (lambda: of.predict(X), lambda: of.evaluate("price", (X, PRICE), name_task=False)):
        with pytest.raises(InputError, match=r"'price' \(regression\) has none of; name the task") as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert isinstance(of.predict(X, "sides"), Prediction)


@pytest.mark.parametrize(
    ("targets", "settings", "fault"),
    [
        (PRICE / 0, {}, "task t: training labels hold infinite values or NaN"),
        (torch.ones(120), {}, "task t: column '0' is 1 in all training samples"),
        (BOTH, {"classes": ("a",)}, "task t: 1 names do not fit targets of 2 columns"),
        (BOTH, {"class_weights": "balanced"}, "task t: class_weights are for classes and labels"),
        (SIDES, {"metric": MetricName.R2}, "task t: the metric of classes is one of: accuracy"),
        (TAGS[:60], {}, "120 training samples need labels"),
        (TAGS.int() * 2, {}, "of several labels must be truth values"),
        (SIDES, {"class_weights": "even"}, "class_weights=even does not fit"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_learned(targets: Tensor, settings: Any, fault: str) -> None:
    of = learner()
    with pytest.raises(InputError, match=fault):
        of.fit("t", (X, targets), **settings)
    assert of.tasks == ()


def test_targets_of_a_test_must_be_the_tasks_own() -> None:
    of = learner()
    of.fit("both", (X, BOTH))
    with pytest.raises(InputError, match=r"test targets must be float64 \(N, 2\)"):
        of.evaluate("both", (X, PRICE))
    with pytest.raises(InputError, match="task"):
        of.evaluate("none", (X, PRICE))
