"""Elastic weights: a penalty by hand, under the task's mask, that survives files; and no promise that does not hold."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import hatrack
from hatrack import GuaranteeError, InputError, WeightMaskedNetwork
from hatrack.functional import quadratic_distance
from hatrack.masks import ElasticWeights, Embedding, Scores
from hatrack.methods.importance import Fisher, fisher_diagonal
from hatrack.streams import Task
from support.helpers import CLASSES, easy_task, logits, progress


def attach(strength: float = 10.0, seed: int = 0) -> WeightMaskedNetwork:
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU())
    conditioning = ElasticWeights(strength)
    return WeightMaskedNetwork(backbone, torch.zeros(2, 6), source=Embedding(100.0), conditioning=conditioning)


def task_of(name: str, seed: int) -> Task:
    x, y = easy_task((6,), seed)
    return Task.from_tensors(name, x, y, x, y)


def learn(net: WeightMaskedNetwork, name: str, seed: int = 0, steps: int = 20, lr: float = 0.05) -> Tensor:
    """Train, consolidate and tie; returns the samples."""
    x, y = easy_task((6,), seed)
    net.add_task(name, CLASSES, generator=torch.Generator().manual_seed(seed))
    optimizer = net.protect(torch.optim.SGD(net.task_parameters(name), lr=lr))
    net.train()
    for step in range(steps):
        net.anneal(progress(step))
        optimizer.zero_grad()
        (F.cross_entropy(net(x, name), y) + net.penalty()).backward()
        optimizer.step()
    net.consolidate(name)
    net.anchor(fisher_diagonal(net, task_of(name, seed), Fisher.TRUE))
    return x


@given(st.integers(0, 2**31), st.integers(1, 3))
def test_the_distance_is_that_of_a_loop(seed: int, weights: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> dict[str, Tensor]:
        return {str(index): torch.randn(2, index + 1, generator=generator) for index in range(weights)}

    now, anchor, importance = draw(), draw(), {name: value.abs() for name, value in draw().items()}
    by_hand = 0.0
    for name, value in now.items():
        each = zip(value.flatten(), anchor[name].flatten(), importance[name].flatten(), strict=True)
        by_hand += sum(float(matters) * (float(entry) - float(was)) ** 2 for entry, was, matters in each)
    assert float(quadratic_distance(now, anchor, importance)) == pytest.approx(by_hand, rel=1e-5, abs=1e-6)


def test_importance_is_the_squared_gradient_under_the_mask_sample_by_sample() -> None:
    net = attach()
    x = learn(net, "first")
    _, y = easy_task((6,), 0)
    masks, measured = net.masks("first"), fisher_diagonal(net, task_of("first", 0), Fisher.TRUE)
    assert measured.keys() == masks.keys() == {"0.weight", "3.weight"}
    by_hand = {name: torch.zeros_like(value) for name, value in measured.items()}
    net.eval()
    for sample, label in zip(x, y, strict=True):
        net.zero_grad()
        F.cross_entropy(net(sample.unsqueeze(0), "first"), label.unsqueeze(0)).backward()
        for name, total in by_hand.items():
            gradient = net.backbone.get_parameter(name).grad
            assert gradient is not None
            total += gradient.square() / len(x)
    for name, total in by_hand.items():
        torch.testing.assert_close(measured[name], total, rtol=1e-4, atol=1e-9)
        assert float(measured[name].max()) > 0.0
        assert not measured[name][~masks[name]].any(), "a weight that the task does not use"
    for kind in (Fisher.BATCHES, Fisher.SAMPLED):
        other = fisher_diagonal(net, task_of("first", 0), kind, torch.Generator().manual_seed(0))
        assert all(not other[name][~mask].any() for name, mask in masks.items())


def test_the_penalty_by_hand() -> None:
    net = attach(strength=3.0)
    assert float(net.penalty().detach()) == 0.0
    learn(net, "first")
    first = fisher_diagonal(net, task_of("first", 0), Fisher.TRUE)
    assert float(net.penalty().detach()) == 0.0
    learn(net, "second", 1)
    second = fisher_diagonal(net, task_of("second", 1), Fisher.TRUE)
    anchor = {name: net.backbone.get_parameter(name).detach().clone() for name in first}
    with torch.no_grad():
        net.backbone.get_parameter("3.weight").add_(0.1)
    moved = {name: net.backbone.get_parameter(name) for name in first}
    by_hand = sum(float(((first[n] + second[n]) * (moved[n].detach() - anchor[n]) ** 2).sum()) for n in first)
    assert float(net.penalty().detach()) == pytest.approx(1.5 * by_hand, rel=1e-5)
    net.zero_grad()
    net.penalty().backward()
    gradient = moved["3.weight"].grad
    assert gradient is not None
    torch.testing.assert_close(gradient, 3.0 * (first["3.weight"] + second["3.weight"]) * 0.1, rtol=1e-3, atol=1e-8)


@pytest.mark.slow
def test_drift_is_the_less_the_stronger_the_penalty_and_is_not_called_a_guarantee() -> None:
    drift = []
    for strength in (0.0, 10.0, 1000.0):
        net = attach(strength)
        x = learn(net, "first")
        before = logits(net, x, "first")
        learn(net, "second", 1, lr=0.002, steps=60)
        drift.append(float((logits(net, x, "first") - before).abs().max()))
        protected = net.protected()
        assert not any(held.any() for name, held in protected.items() if name.startswith("backbone."))
        assert all(held.all() for name, held in protected.items() if name.startswith("tasks."))
        digests = json.loads(bytes(net.get_extra_state().tolist()))
        assert not any(name.startswith("backbone.") and "weight" in name for name in digests)
        net.check()  # weights may move, and did
        assert 0.0 < net.capacity().weights < 1.0
    assert drift[0] > drift[1] > drift[2] > 0.0
    with torch.no_grad():
        net.tasks[0].packed.bitwise_not_()
    with pytest.raises(GuaranteeError, match="task first"):
        net.check()


def test_hard_conditioning_has_nothing_to_tie() -> None:
    net = WeightMaskedNetwork(nn.Linear(6, 4), torch.zeros(2, 6), source=Scores())
    assert net.quadratic_penalty is None
    assert float(net.penalty().detach()) == 0.0
    with pytest.raises(InputError, match="anchor acts on elastic weights"):
        net.anchor({})
    with pytest.raises(InputError, match=r"for every weight: 0\.weight, 3\.weight"):
        attach().anchor({"0.weight": torch.zeros(16, 6)})
    with pytest.raises(InputError, match="must be at least 0 and finite"):
        ElasticWeights(-1.0)


def test_a_file_keeps_anchor_and_importance_in_the_middle_of_a_task(tmp_path: Path) -> None:
    net = attach()
    learn(net, "first")
    net.add_task("second", CLASSES)
    with torch.no_grad():
        net.backbone.get_parameter("0.weight").add_(0.5)  # no longer where it is drawn to
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", attach().detach())
    assert isinstance(again, WeightMaskedNetwork)
    assert again.conditioning == net.conditioning
    assert again.quadratic_penalty is not None
    assert net.quadratic_penalty is not None
    for name, value in net.quadratic_penalty.anchors.items():
        assert torch.equal(again.quadratic_penalty.anchors[name], value)
        assert torch.equal(again.quadratic_penalty.importance[name], net.quadratic_penalty.importance[name])
    assert float(net.penalty().detach()) > 0.0
    assert torch.equal(again.penalty(), net.penalty())
    assert torch.equal(copy.deepcopy(net).penalty(), net.penalty())


def test_what_was_forgotten_draws_on_nothing() -> None:
    net = attach()
    learn(net, "first")
    learn(net, "second", 1)
    used = net.masks("second")
    net.forget("first", generator=torch.Generator().manual_seed(0))
    assert net.quadratic_penalty is not None
    for name, mask in used.items():
        assert not net.quadratic_penalty.importance[name][~mask].any()
        assert torch.equal(net.quadratic_penalty.anchors[name][~mask], net.backbone.get_parameter(name)[~mask])
        assert net.quadratic_penalty.importance[name][mask].any()
    assert float(net.penalty().detach()) == 0.0


@pytest.mark.parametrize("prefix", ["", "0."])
def test_a_state_of_before_is_loaded_by_the_names_of_now(prefix: str) -> None:
    net, other = attach(), attach()
    learn(net, "first")
    other.add_task("first", CLASSES)
    renamed = {
        f"{prefix}{name.replace('quadratic_penalty.', 'tether.')}": value for name, value in net.state_dict().items()
    }
    assert any("tether." in name for name in renamed)
    (nn.Sequential(other) if prefix else other).load_state_dict(renamed)
    assert net.quadratic_penalty is not None
    assert other.quadratic_penalty is not None
    for name, value in net.quadratic_penalty.importance.items():
        assert value.any()
        assert torch.equal(other.quadratic_penalty.importance[name], value)
