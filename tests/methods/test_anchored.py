"""EWC, SI, MAS: what they measure, what they add to the loss, and that they forget less."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from hatrack.errors import InputError
from hatrack.methods import METHODS, Batch, Setup
from hatrack.methods.ewc import Consolidation, EWCSettings
from hatrack.methods.importance import Fisher, fisher_diagonal, output_sensitivity
from hatrack.methods.multi_head import AnchoredMethod
from hatrack.methods.proximal import Penalty
from hatrack.methods.si import SI, SISettings
from hatrack.streams import Task
from hatrack.train import EpochDone, TrainingSettings, fit
from support.toys import SHAPE, TASKS, accuracy, learn, logits, make, setup, tasks_for


def some_batch(task: Task) -> Batch:
    x, y = task.train.load()
    return Batch(x[:16], y[:16], (task.name,), torch.zeros(16, dtype=torch.int64), 1.0)


@pytest.mark.parametrize(
    ("name", "factor"),
    [("l2", 1.0), ("ewc", 5000 / 2), ("mas", 1.0), ("si", 100.0), ("imm-mean", 1 / 2), ("imm-mode", 1 / 2)],
)
def test_the_penalty_is_that_of_the_paper(name: str, factor: float) -> None:
    method = make(name, "shallow", penalty=Penalty.EXPLICIT)
    learn(method, TASKS[:1], epochs=2)
    anchor = {key: value.detach().clone() for key, value in method.network.backbone.named_parameters()}
    method.begin_task(TASKS[1])
    with torch.no_grad():
        for value in method.network.backbone.parameters():
            value.add_(0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(4)))
    method.train_mode(False)
    batch = some_batch(TASKS[1])
    loss = method.loss(batch)
    plain = nn.functional.cross_entropy(loss.logits, batch.y)
    expected = 0.0
    for key, value in method.network.backbone.named_parameters():
        weight = method.importance[key] if method.importance else 1.0
        expected += float((weight * (value - anchor[key]) ** 2).sum().detach())
    torch.testing.assert_close(loss.value - plain, torch.tensor(factor * expected), rtol=1e-3, atol=1e-6)
    assert (not method.importance) == name.startswith(("imm", "l2"))


def test_ewc_merges_the_fishers_of_tasks_to_their_mean_or_online() -> None:
    for settings, old, new in (
        ({}, 1 / 2, 1 / 2),
        ({"consolidation": Consolidation.ONLINE, "gamma": 0.7}, 0.7, 1.0),
    ):
        method = make("ewc", "shallow", strength=10.0, fisher=Fisher.TRUE, **settings)
        learn(method, TASKS[:1], epochs=2)
        first = method.importance
        torch.testing.assert_close(first, fisher_diagonal(method.network, TASKS[0], Fisher.TRUE))
        learn(method, TASKS[:2], first=1, epochs=2)
        second = fisher_diagonal(method.network, TASKS[1], Fisher.TRUE)
        for name, value in method.importance.items():
            torch.testing.assert_close(value, old * first[name] + new * second[name])
    with pytest.raises(InputError, match="gamma must be at least 0 and at most 1"):
        EWCSettings(gamma=1.5)


def test_the_mean_over_three_tasks_weighs_them_alike() -> None:
    method = make("ewc", "shallow", strength=1.0)
    each = []
    for index in range(3):
        learn(method, TASKS[: index + 1], first=index, epochs=1)
        generator = method.setup.generator("fisher", TASKS[index].name)
        each.append(fisher_diagonal(method.network, TASKS[index], Fisher.SAMPLED, generator))
    for name, value in method.importance.items():
        torch.testing.assert_close(value, sum(fisher[name] for fisher in each) / 3)


def test_mas_sums_the_sensitivity_over_tasks() -> None:
    method = make("mas", "shallow")
    each = []
    for index in range(2):
        learn(method, TASKS[: index + 1], first=index, epochs=2)
        each.append(output_sensitivity(method.network, TASKS[index]))
    for name, value in method.importance.items():
        torch.testing.assert_close(value, each[0][name] + each[1][name])


def test_the_path_integral_of_small_steps_is_how_far_the_loss_fell() -> None:
    """A quadratic loss of the backbone's weights alone, so that the whole fall is theirs."""
    setup = Setup(lambda: nn.Linear(4, 3, bias=False), SHAPE, 0, torch.device("cpu"))
    method = SI(setup, SISettings())
    method.begin_task(TASKS[0])
    weight = method.network.backbone.weight
    curvature = torch.linspace(0.5, 2.0, 12).reshape(3, 4)

    def loss() -> torch.Tensor:
        return (curvature * (weight - 1) ** 2).sum() / 2

    before = (curvature * (weight.detach() - 1) ** 2) / 2
    optimizer = method.protect(torch.optim.SGD([weight], lr=1e-3))
    for _ in range(500):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    fallen = before - (curvature * (weight.detach() - 1) ** 2) / 2
    torch.testing.assert_close(method.path["weight"], fallen, rtol=2e-3, atol=1e-5)
    start = weight.detach().clone()
    method.end_task(TASKS[0])
    moved = (start - method._start["weight"]) ** 2
    torch.testing.assert_close(method.importance["weight"], method.path["weight"] / (moved + 0.1))


def test_the_path_leaves_the_penalty_out() -> None:
    setup = Setup(lambda: nn.Linear(4, 3, bias=False), SHAPE, 0, torch.device("cpu"))
    method = SI(setup, SISettings(strength=0.5, penalty=Penalty.EXPLICIT))
    method.begin_task(TASKS[0])
    weight = method.network.backbone.weight
    method.anchor = {"weight": torch.zeros(3, 4)}
    method.importance = {"weight": torch.ones(3, 4)}
    before = weight.detach().clone()
    optimizer = method.protect(torch.optim.SGD([weight], lr=0.1))
    (weight.sum() + 0.5 * weight.square().sum()).backward()  # a task's loss whose gradient is 1, and the penalty
    optimizer.step()
    torch.testing.assert_close(method.path["weight"], before - weight.detach())


def test_the_path_leads_where_the_penalty_drew_the_weights() -> None:
    """The gradient is the task's alone, and the way the whole one, as with a penalty in the loss."""
    setup = Setup(lambda: nn.Linear(4, 3, bias=False), SHAPE, 0, torch.device("cpu"))
    method = SI(setup, SISettings(strength=0.5))
    method.begin_task(TASKS[0])
    weight = method.network.backbone.weight
    method.anchor = {"weight": torch.zeros(3, 4)}
    method.importance = {"weight": torch.ones(3, 4)}
    before = weight.detach().clone()
    optimizer = method.protect(torch.optim.SGD([weight], lr=0.1))
    weight.sum().backward()  # a task's loss whose gradient is 1
    optimizer.step()
    torch.testing.assert_close(weight.detach(), (before - 0.1) / (1 + 0.1))
    torch.testing.assert_close(method.path["weight"], before - weight.detach())


def test_the_path_goes_back_to_the_best_epoch_with_the_weights() -> None:
    method = make("si", "shallow")
    method.begin_task(TASKS[0])
    kept, last_was_best = [], True
    for event in fit(method, TASKS[:1], TrainingSettings(epochs=12, batch_size=16, lr=3.0)):
        if isinstance(event, EpochDone):
            last_was_best = event.best
            if event.best:
                kept = [buffer.clone() for buffer in method.path.buffers()]
    assert not last_was_best
    assert all(torch.equal(buffer, best) for buffer, best in zip(method.path.buffers(), kept, strict=True))
    assert sum(float(buffer.abs().sum()) for buffer in kept) > 0
    method.end_task(TASKS[0])
    assert all(float(value.min()) >= 0 for value in method.importance.values())
    with pytest.raises(InputError, match="damping must be above 0"):
        SISettings(damping=0.0)


STRENGTHS = {
    "ewc-norm": 500.0,
    "si-wide": 10.0,
    "si-norm": 10.0,
    "lwf-wide": 8.0,
    "lwf-norm": 8.0,
    "lfl-wide": 3.2,
}
"""Other than the defaults; at 5000, EWC's steps overshoot where a batch norm makes the Fisher large."""


@cache
def forgotten(name: str, network: str, strength: float | None) -> float:
    """Return by how much the first task's logits move while two more are learned; measured once for all comparisons."""
    tasks = tasks_for(network)
    method = make(name, network, **({} if strength is None else {"strength": strength}))
    learn(method, tasks[:1], epochs=15)
    before = logits(method, tasks[0])
    assert accuracy(method, tasks[0]) > 0.7
    learn(method, tasks, first=1, epochs=10)
    return float((logits(method, tasks[0]) - before).square().mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "network"),
    [
        *((name, "wide") for name in ("l2", "ewc", "imm-mean", "imm-mode", "si", "mas", "cab", "lwf", "lfl")),
        *((name, "norm") for name in ("ewc", "imm-mean", "imm-mode", "si", "mas", "lwf")),
        ("cab", "plain"),
    ],
)
def test_less_is_forgotten_than_in_fine_tuning(name: str, network: str) -> None:
    strength = STRENGTHS.get(f"{name}-{network}")
    assert forgotten(name, network, strength) < forgotten("sgd", network, None) / 2


def partly_frozen() -> nn.Module:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    backbone[0].requires_grad_(False)
    return backbone


@pytest.mark.parametrize("name", ["l2", "ewc", "mas", "si", "imm-mean", "imm-mode"])
@pytest.mark.parametrize("penalty", Penalty)
def test_a_part_of_the_backbone_may_be_frozen(name: str, penalty: Penalty) -> None:
    kind = METHODS[name]
    method = kind(replace(setup(), build_backbone=partly_frozen), kind.settings_type(penalty=penalty))
    learn(method, TASKS[:2], epochs=1)
    assert isinstance(method, AnchoredMethod)
    assert torch.equal(method.network.backbone[0].weight, partly_frozen()[0].weight)
    assert not torch.equal(method.network.backbone[2].weight, partly_frozen()[2].weight)
