"""Classes in four quarter turns: the loss against a slow oracle, and that every law of masks holds as without turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hatrack
from hatrack.backbones import MLP, QuarterTurns
from hatrack.errors import CheckpointError, InputError
from hatrack.methods import METHODS, Batch, Setup
from hatrack.methods.hat import HATSettings
from hatrack.methods.masked import MaskedMethod, Room
from hatrack.methods.turning import turned_loss
from hatrack.objectives import Classification
from hatrack.streams import Task
from hatrack.support.interface import Interface
from hatrack.train import TrainingSettings, fit
from support.marks import slow_but
from support.toys import (
    IMAGE,
    accuracy,
    assert_goes_on_as_without_interruption,
    assert_nothing_forgotten,
    learn,
    make,
    tasks,
)

MASKED = [name for name, method in METHODS.items() if issubclass(method, MaskedMethod)]
EXACT = [name for name in MASKED if name != "adahat"]
QUICK_SETTINGS = TrainingSettings(epochs=2, batch_size=32)


def bars(name: str, columns: tuple[int, ...], seed: int, samples: int = 120) -> Task:
    """Pictures of one bar: a class for every column that it can be in, all of them left of the middle."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(len(columns), (2 * samples,), generator=generator)
    x = 0.3 * torch.randn(2 * samples, *IMAGE, generator=generator)
    x[torch.arange(len(x)), 0, :, torch.tensor(columns)[y]] += 1.0
    return Task.from_tensors(name, x[:samples], y[:samples], x[samples:], y[samples:])


def learned(name: str = "hat", **settings: Any) -> Any:
    method = make(name, "norm", rotations=4, **settings)
    learn(method, tasks("norm", 2, samples=32), epochs=1)
    method.train_mode(False)
    return method


@pytest.mark.parametrize("name", slow_but(["hat", "wsn"], EXACT))
def test_earlier_tasks_keep_every_bit(name: str) -> None:
    assert_nothing_forgotten(make(name, "conv", rotations=4), "conv", "momentum-decay", epochs=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKED)
def test_it_goes_on_after_loading_as_if_nothing_had_happened(name: str, tmp_path: Path) -> None:
    assert_goes_on_as_without_interruption(name, "norm", tmp_path, rotations=4)


def test_the_loss_is_that_of_single_pictures_in_single_turns() -> None:
    method, task = learned(), tasks("norm", 2, samples=32)[1]
    x, y = (part[:9] for part in task.train.load())
    weights = (0.5, 1.0, 2.0)
    assert task.num_classes == len(weights)
    objectives = (Classification(task.classes, weights),)
    batch = Batch(x, y, (task.name,), torch.zeros(9, dtype=torch.int64), 0.0, objectives=objectives)
    head = method.network.tasks.named(task.name).head
    total, weight_of_all = torch.zeros(()), 0.0
    for picture, label in zip(x, y.tolist(), strict=True):
        for turn in range(4):
            features = method.network.features(torch.rot90(picture, turn, (1, 2)).unsqueeze(0), task.name)
            own = 4 * features[0, : features.shape[1] // 4]  # the first block is the picture as it stands
            scores = torch.stack(
                [part @ own + bias for row, bias in zip(head.weight, head.bias, strict=True) for part in row.chunk(4)]
            )
            total = total + weights[label] * F.cross_entropy(scores, torch.tensor(4 * label + turn))
            weight_of_all += weights[label]
    torch.testing.assert_close(
        turned_loss(head, method.network.features(x, task.name), batch).value, total / weight_of_all
    )


def test_answers_are_means_over_turns_of_what_is_said_of_every_turn() -> None:
    method, task = learned(), tasks("norm", 1, samples=32)[0]
    x = task.test.load()[0]
    batch = Batch(x, torch.zeros(len(x), dtype=torch.int64), (task.name,), torch.zeros(len(x), dtype=torch.int64), 0.0)
    head, features = method.network.tasks.named(task.name).head, method.network.features(x, task.name)
    said = turned_loss(head, features, batch).logits.view(len(x), 4, task.num_classes, 4)
    torch.testing.assert_close(method.predict(x, task.name), said.diagonal(dim1=1, dim2=3).mean(2))


def test_training_learns_turns_and_validation_looks_at_answers() -> None:
    method, task = make("hat", "norm", rotations=4), tasks("norm", 1, samples=32)[0]
    method.begin_task(task)
    x, y = task.train.load()
    batch = Batch(x, y, (task.name,), torch.zeros_like(y), 0.0, objectives=(task.objective,))
    method.train_mode(True)
    assert method.loss(batch).logits.shape == (4 * len(batch), 4 * task.num_classes)
    method.train_mode(False)
    assert method.loss(batch).logits.shape == (len(batch), task.num_classes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hat", "pmask"])
def test_turned_classes_are_learned(name: str) -> None:
    method = make(name, "norm", rotations=4, dropout=0.0)
    seen = [bars("first", (0, 2), 0), bars("second", (1, 2, 0), 1)]
    learn(method, seen, epochs=12, lr=0.05, momentum=0.9)
    assert min(accuracy(method, task) for task in seen) > 0.9


@pytest.mark.parametrize("name", slow_but(["hat"], EXACT))
def test_extracted_tasks_agree(name: str) -> None:
    method = learned(name)
    x = tasks("norm", 1)[0].test.load()[0]
    for task in method.network.task_names:
        with torch.no_grad():
            torch.testing.assert_close(method.network.extract(task)(x), method.predict(x, task))


def test_tasks_are_recognised_forgotten_and_asked_for_sample_by_sample() -> None:
    method, seen = learned(), tasks("norm", 2, samples=32)
    net, x = method.network, seen[0].test.load()[0]
    for task in seen:
        net.calibrate(task.name, *task.train.load())
    with torch.no_grad():
        for scorer in (hatrack.Scorer.SUMS, hatrack.Scorer.DISTANCE, hatrack.Scorer.MAX_LOGIT):
            answer = net.infer(x, scorer)
            expected = torch.stack([F.pad(net(x, name), (0, 1))[:, :3] for name in answer.tasks])
            chosen = expected[answer.chosen, torch.arange(len(x))]
            shown = answer.logits.isfinite()
            torch.testing.assert_close(answer.logits[shown], chosen[shown])
        names = [seen[index % 2].name for index in range(len(x))]
        mixed, promised = net(x, names), net(x, seen[1].name)
        torch.testing.assert_close(mixed[1::2], promised[1::2])
        net.forget(seen[0].name)
        assert torch.equal(net(x, seen[1].name), promised)


def test_a_network_grows() -> None:
    method = learned(capacity=Room.GROW)
    x = tasks("norm", 1)[0].test.load()[0]
    before = {name: method.predict(x, name).detach() for name in method.network.task_names}
    group = method.network.units.groups[-1].name
    method.network.grow({group: 3})
    for name, promise in before.items():
        torch.testing.assert_close(method.predict(x, name), promise)
    task = bars("third", (0, 1), 2, samples=32)
    method.begin_task(task)
    for _ in fit(method, [task], QUICK_SETTINGS):
        pass
    method.end_task(task)
    grown = {name: method.predict(x, name) for name in before}
    for name, promise in before.items():
        torch.testing.assert_close(grown[name], promise)


def test_a_learner_turns_and_is_saved_and_loaded(tmp_path: Path) -> None:
    def backbone() -> nn.Module:
        torch.manual_seed(0)
        return MLP(IMAGE, (12,))

    task = bars("bars", (0, 2), 0)
    learner = hatrack.Learner(
        backbone(), IMAGE, settings=HATSettings(rotations=4), training=TrainingSettings(epochs=2), seed=3
    )
    direct = hatrack.Learner(QuarterTurns(backbone()), IMAGE, training=TrainingSettings(epochs=2), seed=3)
    for each in (learner, direct):
        each.fit("bars", task.train.load())
    x = task.test.load()[0]
    said = learner.predict(x, "bars").distribution
    assert torch.equal(direct.predict(x, "bars").distribution, said), "one for the other"
    learner.save(tmp_path / "learner.hat")
    again = hatrack.Learner.load(tmp_path / "learner.hat", QuarterTurns(backbone()))
    assert torch.equal(again.predict(x, "bars").distribution, said)
    with pytest.raises(CheckpointError, match="QuarterTurns at its root"):
        hatrack.Learner.load(tmp_path / "learner.hat", backbone())


@pytest.mark.parametrize(
    ("shape", "interface", "said"),
    [
        ((1, 6, 4), Interface(), r"square pictures .* shape \(1, 6, 4\): make them square"),
        ((6,), Interface(), r"square pictures .* shape \(6,\)"),
        (IMAGE, Interface(features="out"), "backbones that map them to features"),
    ],
)
@pytest.mark.parametrize("name", ["hat", "wsn"])
def test_what_cannot_be_turned_is_refused(name: str, shape: tuple[int, ...], interface: Interface, said: str) -> None:
    setup = Setup(lambda: MLP(shape, (4,)), shape, 0, torch.device("cpu"), interface=interface)
    settings = METHODS[name].settings_type(rotations=4)
    with pytest.raises(InputError, match=said) as error:
        METHODS[name](setup, settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["hat", "pmask"])
def test_tasks_without_classes_are_refused_before_they_begin(name: str) -> None:
    method = make(name, "norm", rotations=4)
    x: Tensor = torch.randn(20, *IMAGE)
    task = Task.from_tensors("numbers", x, x.flatten(1)[:, 0], x, x.flatten(1)[:, 0])
    with pytest.raises(InputError, match="only classes are turned"):
        method.begin_task(task)
    assert method.network.task_names == ()
    make(name, "norm").require_task(task)


@pytest.mark.parametrize("name", MASKED)
def test_other_numbers_of_turns_are_refused(name: str) -> None:
    for rotations in (0, 2, 3, 8):
        with pytest.raises(InputError, match="rotations must be 1"):
            METHODS[name].settings_type(rotations=rotations)
