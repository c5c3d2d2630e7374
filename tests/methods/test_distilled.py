"""LwF and LFL, which look at the old network."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.methods import Batch
from hatrack.methods.lwf import LWFSettings, distillation
from support.toys import IMAGES, TASKS, learn, make


def batch_of(index: int, images: bool = False) -> Batch:
    task = (IMAGES if images else TASKS)[index]
    x, y = task.train.load()
    return Batch(x[:16], y[:16], (task.name,), torch.zeros(16, dtype=torch.int64), 1.0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_distillation_is_the_cross_entropy_of_tempered_probabilities(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    p, q = (logits.softmax(1) ** (1 / temperature) for logits in (old, new))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    value = distillation(new, old, temperature)
    torch.testing.assert_close(value, -(p * q.log()).sum(1).mean())
    value.backward()
    assert old.grad is None
    assert new.grad is not None
    torch.testing.assert_close(new.grad, (q - p).detach() / temperature / 5)
    assert torch.autograd.gradcheck(lambda z: distillation(z, old, temperature), (new,))
    at_optimum = old.detach().clone().requires_grad_()
    distillation(at_optimum, old, temperature).backward()
    torch.testing.assert_close(at_optimum.grad, torch.zeros_like(old), atol=1e-12, rtol=0)
    with pytest.raises(InputError, match="temperature must be above 0"):
        LWFSettings(temperature=0.0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_smoothed_distillation_is_that_of_the_hat_authors(temperature: float) -> None:
    """Probabilities tempered, ε shared out among the classes, and normalised again."""
    generator = torch.Generator().manual_seed(0)
    old, new = (3 * torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = (logits.softmax(1) ** (1 / temperature) for logits in (old, new))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    q = q + 1e-5 / 4
    q = q / q.sum(1, keepdim=True)
    torch.testing.assert_close(distillation(new, old, temperature, 1e-5), -(p * q.log()).sum(1).mean())
    near, plain = distillation(new, old, temperature, 1e-12), distillation(new, old, temperature)
    torch.testing.assert_close(near, plain, rtol=1e-4, atol=0)


def test_an_answer_that_is_surely_wrong_is_bounded_by_smoothing() -> None:
    old, new = torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]], requires_grad=True)
    assert float(distillation(new, old, 1.0).detach()) == pytest.approx(200.0)
    loss = distillation(new, old, 1.0, 1e-5)
    assert float(loss.detach()) == pytest.approx(-math.log(0.5e-5), rel=1e-5)
    loss.backward()
    assert bool(torch.isfinite(new.grad).all())
    with pytest.raises(InputError, match="smoothing must be at least 0 and below 1"):
        LWFSettings(smoothing=1.0)


@pytest.mark.parametrize("network", ["dropout", "norm"])
def test_lwf_asks_every_old_head(network: str) -> None:
    tasks = IMAGES if network == "norm" else TASKS
    method = make("lwf", network, strength=3.0, temperature=2.0)
    learn(method, tasks[:2], epochs=1)
    before = method.network.frozen_copy()
    method.begin_task(tasks[2])
    with torch.no_grad():
        for value in method.network.parameters():
            value.mul_(1.1)
    batch = batch_of(2, images=network == "norm")
    method.train_mode(False)
    loss = method.loss(batch)
    expected = F.cross_entropy(method.network(batch.x, ["third"]), batch.y)
    for task in ("first", "second"):
        expected = expected + 3.0 * distillation(method.network(batch.x, [task]), before(batch.x, [task]), 2.0, 1e-5)
    torch.testing.assert_close(loss.value, expected)
    loss.value.backward()
    assert method.network.head("first").weight.grad is not None
    assert all(parameter.grad is None for parameter in method.old.parameters())


def test_lfl_keeps_features_near_and_old_heads_where_they_are() -> None:
    method = make("lfl", "shallow", strength=0.3)
    learn(method, TASKS[:1], epochs=1)
    head = method.network.head("first").weight.detach().clone()
    before = method.network.frozen_copy()
    method.begin_task(TASKS[1])
    with torch.no_grad():
        for value in method.network.backbone.parameters():
            value.mul_(1.1)
    batch = batch_of(1)
    method.train_mode(False)
    loss = method.loss(batch)
    distance = (method.network.backbone(batch.x) - before.backbone(batch.x)).pow(2).sum() / 2 / len(batch.x)
    torch.testing.assert_close(loss.value, F.cross_entropy(loss.logits, batch.y) + 0.3 * distance)
    assert float(distance.detach()) > 0
    learn(method, TASKS, first=2, epochs=2)
    assert torch.equal(method.network.head("first").weight, head)
    assert not torch.equal(method.network.backbone.dense1.weight, before.backbone.dense1.weight)


def test_the_old_network_is_in_evaluation_mode_while_the_new_one_trains() -> None:
    method = make("lwf", "norm")
    learn(method, IMAGES[:1], epochs=1)
    method.begin_task(IMAGES[1])
    method.train_mode(True)
    assert method.network.training
    assert not any(module.training for module in method.old.modules())
    assert method.old not in method.trained_modules()


@pytest.mark.parametrize("matched", [True, False])
def test_lfl_compares_features_under_the_same_dropout(matched: bool) -> None:
    method = make("lfl", "dropout", matched_dropout=matched)
    learn(method, TASKS[:1], epochs=1)
    method.begin_task(TASKS[1])
    method.train_mode(True)
    batch = batch_of(1)
    torch.manual_seed(3)
    loss = method.loss(batch).value
    after = torch.random.get_rng_state()
    torch.manual_seed(3)
    plain = F.cross_entropy(method.network(batch.x, ["second"]), batch.y)
    assert torch.equal(torch.random.get_rng_state(), after)  # the old network takes no randomness away
    penalty = float((loss - plain).detach())
    assert penalty == 0.0 if matched else penalty > 1e-4  # nothing has moved yet
    assert not any(module.training for module in method.old.modules())


@pytest.mark.parametrize("matched", [True, False])
def test_lwf_asks_for_the_same_answers_under_the_same_dropout(matched: bool) -> None:
    method = make("lwf", "dropout", matched_dropout=matched, smoothing=0.0)
    learn(method, TASKS[:1], epochs=1)
    method.begin_task(TASKS[1])
    method.train_mode(True)
    features, old_features = method.both_features(batch_of(1).x, method.old)
    method.network.zero_grad()
    method.distance(method.old, features, old_features).backward()
    gradients = [p.grad.abs().max() for p in method.network.parameters() if p.grad is not None]
    largest = float(torch.stack(gradients).max())
    assert largest <= 1e-6 if matched else largest > 1e-4  # nothing has moved yet
