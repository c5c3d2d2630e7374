from __future__ import annotations

import torch
from torch import nn

from hatrack.methods import Setup
from hatrack.methods.imm import IMMMean, IMMMeanSettings
from hatrack.methods.importance import Fisher, fisher_diagonal
from support.toys import IMAGES, SHAPE, TASKS, learn, logits, make


def state(method: object) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in method.network.backbone.state_dict().items()}  # type: ignore[attr-defined]


def test_the_mean_is_that_of_all_tasks_weights_and_statistics_and_predicts() -> None:
    method = make("imm-mean", "norm")
    each = []
    for index in range(3):
        learn(method, IMAGES[: index + 1], first=index, epochs=2)
        each.append(state(method))
        if index == 0:
            assert torch.equal(logits(method, IMAGES[0]), method.network.eval()(IMAGES[0].test.load()[0], ["first"]))
    merged = method.merged.backbone.state_dict()
    for name, value in merged.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (each[0][name] + each[1][name] + each[2][name]) / 3)
        else:
            assert torch.equal(value, each[2][name])
    x, _ = IMAGES[0].test.load()
    assert torch.equal(logits(method, IMAGES[0]), method.merged(x, ["first"]))
    with torch.no_grad():
        assert not torch.equal(logits(method, IMAGES[0]), method.network.eval()(x, ["first"]))
    assert all(torch.equal(value, each[2][name]) for name, value in state(method).items())  # training goes on from here
    assert not method.merged.training


def test_the_mode_weighs_by_the_fisher() -> None:
    method = make("imm-mode", "shallow", strength=1e-3)
    weights, fishers = [], []
    for index in range(3):
        learn(method, TASKS[: index + 1], first=index, epochs=2)
        weights.append(state(method))
        fishers.append(fisher_diagonal(method.network, TASKS[index], Fisher.TRUE))
    for name, value in method.merged.backbone.state_dict().items():
        total = fishers[0][name] + fishers[1][name] + fishers[2][name]
        expected = sum(fisher[name] * weight[name] for fisher, weight in zip(fishers, weights, strict=True)) / total
        used = total > 1e-12
        torch.testing.assert_close(value[used], expected[used], rtol=1e-4, atol=1e-5)
        mean = (weights[0][name] + weights[1][name] + weights[2][name]) / 3
        torch.testing.assert_close(value[total == 0], mean[total == 0])
    x, _ = TASKS[0].test.load()
    assert torch.equal(logits(method, TASKS[0]), method.merged(x, ["first"]))


def test_weights_that_matter_to_no_task_become_their_mean() -> None:
    method = make("imm-mode", "shallow")
    learn(method, TASKS[:1], epochs=1)
    dead = method.network.backbone.dense1
    with torch.no_grad():
        dead.bias.fill_(-1e3)  # no unit is ever active, so no weight before it matters
        method.network.backbone.dense1.weight.fill_(1.0)
    method.merged, method.fisher = method.network.frozen_copy(), {}
    method.shares(TASKS[0])
    method.begin_task(TASKS[1])
    with torch.no_grad():
        dead.weight.fill_(3.0)
    method.end_task(TASKS[1])
    torch.testing.assert_close(method.merged.backbone.dense1.weight.data, torch.full_like(dead.weight.data, 2.0))


def test_weights_that_layers_share_are_merged_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
            self.other.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.other(torch.relu(self.one(x)))
            return result

    method = IMMMean(Setup(Tied, SHAPE, 0, torch.device("cpu")), IMMMeanSettings())
    each = []
    for index in range(2):
        learn(method, TASKS[: index + 1], first=index, epochs=1)
        each.append(state(method)["one.weight"])
    assert method.merged is not None
    torch.testing.assert_close(method.merged.backbone.state_dict()["other.weight"], (each[0] + each[1]) / 2)
