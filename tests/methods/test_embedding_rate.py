"""Learning rate of embeddings, of units and of weights."""

from __future__ import annotations

from typing import Any

import pytest

from hatrack.functional import EMBEDDING_BOUND
from hatrack.methods import Pace
from hatrack.methods.embedding_rate import MOST_FACTOR
from hatrack.methods.masked import MaskedMethod
from hatrack.train import LearningRateDecay, OptimizerKind, Training, TrainingSettings
from support.toys import make, tasks

TASKS = tasks("mlp", 2, samples=48)
BY_EMBEDDINGS = pytest.mark.parametrize("name", ["hat", "pmask"])


def begun(name: str, pace: Pace, **settings: Any) -> MaskedMethod:
    """Return a method that is about to learn its first task."""
    method = make(name, "mlp", **settings)
    assert isinstance(method, MaskedMethod)
    method.note_pace(pace)
    method.begin_task(TASKS[0])
    return method


@BY_EMBEDDINGS
@pytest.mark.parametrize("decay", LearningRateDecay)
@pytest.mark.parametrize(("lr", "batches"), [(0.001, 30), (0.001, 15), (0.005, 20)])
def test_embeddings_can_cross_half_of_their_range_with_adam(
    name: str, lr: float, batches: int, decay: LearningRateDecay
) -> None:
    settings = TrainingSettings(lr=lr, epochs=20, lr_decay=decay)
    method = begun(name, Pace(lr, batches, settings.lr_left, settings.epochs, adaptive=True))
    weights, embeddings = method.parameter_groups()
    task = method.network.tasks[0]
    assert [id(each) for each in embeddings.parameters] == [id(values) for values in task.mask_values]
    assert {id(each) for group in (weights, embeddings) for each in group.parameters} == {
        id(each) for each in method.trained_parameters()
    }
    assert weights.lr_factor == 1.0 < embeddings.lr_factor < MOST_FACTOR
    steps = 20 * batches
    way = sum(lr * embeddings.lr_factor * settings.lr_left(step / steps) for step in range(steps))
    assert way == pytest.approx(EMBEDDING_BOUND, rel=0.01)


@BY_EMBEDDINGS
@pytest.mark.parametrize(("lr", "factor"), [(1e-5, MOST_FACTOR), (0.1, 1.0)])
def test_embeddings_learn_neither_slower_than_weights_nor_at_any_rate_with_adam(
    name: str, lr: float, factor: float
) -> None:
    last = begun(name, Pace(lr, batches=30, epochs=20, adaptive=True)).parameter_groups()[-1]
    assert (last.lr_factor, last.decays) == (factor, False)


@BY_EMBEDDINGS
def test_embeddings_learn_as_fast_as_weights_with_sgd_and_as_is_said_with_any(name: str) -> None:
    for adaptive, said, factor in [(False, None, 1.0), (False, 3.0, 3.0), (True, 3.0, 3.0), (True, 1.0, 1.0)]:
        method = begun(name, Pace(0.001, batches=30, epochs=20, adaptive=adaptive), embedding_lr_factor=said)
        last = method.parameter_groups()[-1]
        assert (last.lr_factor, last.decays) == (factor, True)


@BY_EMBEDDINGS
@pytest.mark.parametrize(("kind", "factor"), [(OptimizerKind.ADAM, 6.0 / (0.01 * 36)), (OptimizerKind.SGD, 1.0)])
def test_a_training_says_what_steps_there_will_be(name: str, kind: OptimizerKind, factor: float) -> None:
    method = make(name, "mlp")
    method.begin_task(TASKS[0])
    assert len(TASKS[0].train) == 48
    Training(method, TASKS[:1], TrainingSettings(optimizer=kind, lr=0.01, epochs=9, batch_size=12))
    assert method.parameter_groups()[-1].lr_factor == pytest.approx(factor)


@BY_EMBEDDINGS
def test_a_method_that_heard_of_no_steps_has_one_rate(name: str) -> None:
    method = make(name, "mlp")
    method.begin_task(TASKS[0])
    (group,) = method.parameter_groups()
    assert (group.lr_factor, group.decays) == (1.0, True)
    assert [id(each) for each in group.parameters] == [id(each) for each in method.trained_parameters()]


def costs(adaptive: bool, **settings: Any) -> list[float]:
    """Return PMASK's c in every epoch of twenty."""
    method = begun("pmask", Pace(0.001, batches=30, epochs=20, adaptive=adaptive), c=0.5, **settings)
    found = []
    for epoch in range(1, 21):
        method.train_mode(True)
        method.begin_epoch(epoch, 20, None)  # type: ignore[arg-type]
        found.append(method.strength())
        method.train_mode(False)
        assert method.strength() == 0.5, "validation compares epochs by one cost"
    return found


def test_what_masks_of_weights_cost_sets_in_late_where_embeddings_learn_fast() -> None:
    found = costs(adaptive=True)
    assert found[:4] == [0.0] * 4
    assert found == sorted(found)
    assert found[11:] == [0.5] * 9
    assert costs(adaptive=False) == costs(adaptive=True, embedding_lr_factor=1.0) == [0.5] * 20
