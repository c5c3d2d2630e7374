"""Contrast before the head: its parts, what each of them moves, and that the law of masks holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack import HATSettings, Learner
from hatrack.errors import InputError
from hatrack.functional import supervised_contrast
from hatrack.learning.unannounced import UnannouncedLearner
from hatrack.methods import METHODS, Batch
from hatrack.methods.contrast import LENGTH, Projection, Standard, contrast_epochs, contrast_of_turns
from hatrack.methods.masked import MaskedMethod
from hatrack.storage.checkpoint import read_checkpoint
from hatrack.streams import Task
from hatrack.train import EpochDone, Training, TrainingSettings
from support.marks import slow_but
from support.toys import accuracy, assert_nothing_forgotten, learn, make, tasks

MASKED = [name for name, method in METHODS.items() if issubclass(method, MaskedMethod)]
EXACT = [name for name in MASKED if name != "adahat"]


@pytest.mark.parametrize("name", slow_but(["hat"], EXACT))
def test_earlier_tasks_keep_every_bit(name: str) -> None:
    method = make(name, "norm", rotations=4, contrastive=0.6)
    assert_nothing_forgotten(method, "norm", "momentum-decay", epochs=3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_features_of_any_type_are_contrasted(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 4).to(dtype)
    training = TrainingSettings(epochs=2, batch_size=20)
    backbone = nn.Sequential(nn.Linear(4, 16), nn.ReLU()).to(dtype)
    learner = Learner(backbone, x[:2], settings=HATSettings(contrastive=0.5), training=training)
    learner.fit("first", (x, (x[:, 0] > 0).long()), progress=False)
    before = learner.predict(x, "first").probabilities
    learner.fit("second", (x, (x[:, 1] > 0).long()), progress=False)
    assert torch.equal(learner.predict(x, "first").probabilities, before)


@pytest.mark.parametrize("epochs", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_parts_take_all_epochs_and_the_head_has_one_at_least(share: float, epochs: int) -> None:
    contrast = contrast_epochs(share, epochs)
    assert 0 <= contrast < epochs
    assert (contrast > 0) == (share > 0 and epochs > 1)
    for name in ("hat", "packnet", "wsn"):
        found, plain = (tuple(make(name, contrastive=each).phases(epochs)) for each in (share, 0.0))
        assert sum(found) == epochs
        assert found == (plain if not contrast else (*make(name).phases(contrast), epochs - contrast))


@pytest.mark.parametrize("turns", [1, 4])
def test_contrast_takes_every_class_in_every_turn_as_a_class(turns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    projection = Projection.of(5 * turns, turns, generator)
    parts, y = torch.randn(3, turns, 5, generator=generator), torch.tensor([1, 0, 1])
    mean = parts.flatten(0, 1).mean(0)
    expected = supervised_contrast(
        torch.stack([projection.module(parts[n, r] - mean) for n in range(3) for r in range(turns)]),
        torch.tensor([turns * int(y[n]) + r for n in range(3) for r in range(turns)]),
    )
    torch.testing.assert_close(contrast_of_turns(projection, parts.flatten(1) / turns, y), expected)


@pytest.mark.parametrize("turns", [1, 4])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_head_on_standardised_features_is_folded_into_an_ordinary_one(turns: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features = scale * (3.0 + torch.rand(50, 6 * turns, generator=generator, dtype=torch.float64))
    head = nn.Linear(6 * turns, 3, dtype=torch.float64)
    standard = Standard.of(features, turns)
    own = turns * standard(features).unflatten(1, (turns, -1))
    assert float(own.square().sum(2).mean()) == pytest.approx(LENGTH**2)
    with torch.no_grad():
        said = head(standard(features))
        standard.fold_into(head)
        torch.testing.assert_close(head(features), said)


def state_of(method: Any) -> dict[str, Tensor]:
    return {n: v.clone() for n, v in method.network.state_dict().items() if not n.endswith("_extra_state")}


@pytest.mark.parametrize("name", slow_but(["hat", "pmask"], MASKED))
def test_contrast_leaves_the_head_alone_and_the_head_leaves_all_else_alone(name: str, tmp_path: Path) -> None:
    method, task = make(name, "plain", contrastive=0.5, dropout=0.0), tasks("plain", 1, samples=32)[0]
    method.begin_task(task)
    begun, states = state_of(method), []
    for event in Training(method, [task], TrainingSettings(epochs=4, batch_size=16, lr=0.01)):
        if isinstance(event, EpochDone):
            states.append(state_of(method))
    learned = states[-1]
    heads = {key for key in learned if ".head." in key}
    assert heads
    assert all(torch.equal(begun[key], states[1][key]) for key in heads)
    assert any(not torch.equal(begun[key], states[1][key]) for key in begun if key not in heads)
    moved = {key for key in learned if not torch.equal(states[2][key], learned[key])}
    assert moved == heads
    method.end_task(task)
    method.save(tmp_path / "net.hat")
    names = read_checkpoint(tmp_path / "net.hat", method.network.format).tensors
    assert {key for key in names if "projection" in key} == set()
    assert not any(key not in method.network.state_dict() for key in names)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hat", "wsn"])
def test_contrasted_classes_are_learned(name: str) -> None:
    method, task = make(name, "wide", contrastive=0.6, dropout=0.0), tasks("wide", 1, samples=240)[0]
    learn(method, [task], epochs=30, lr=0.05, momentum=0.9)
    assert accuracy(method, task) > 0.85


def test_a_task_that_was_given_up_leaves_no_part_behind() -> None:
    method, seen = make("hat", contrastive=0.5), tasks("mlp", 2, samples=32)
    method.begin_task(seen[0])
    training = iter(Training(method, seen[:1], TrainingSettings(epochs=2)))
    next(training)
    assert len(method.trained_modules()) == 2
    method.network.forget(seen[0].name)
    method.begin_task(seen[1])
    assert len(method.trained_modules()) == 1
    x, y = seen[1].train.load()
    batch = Batch(x, y, (seen[1].name,), torch.zeros_like(y), 0.0)
    assert method.loss(batch).logits.shape == (len(y), seen[1].num_classes)


def test_what_has_no_classes_or_no_epochs_is_refused() -> None:
    method = make("hat", contrastive=0.5)
    x = torch.randn(20, 4)
    with pytest.raises(InputError, match="only classes"):
        method.begin_task(Task.from_tensors("numbers", x, x[:, 0], x, x[:, 0]))
    with pytest.raises(InputError, match="contrastive"):
        UnannouncedLearner(method, 2, torch.optim.SGD)
    for share in (-0.1, 1.0):
        with pytest.raises(InputError, match="contrastive must be at least 0 and below 1"):
            METHODS["wsn"].settings_type(contrastive=share)
