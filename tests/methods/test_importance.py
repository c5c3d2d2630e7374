from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from hatrack.backbones import AlexNet, ResNet18
from hatrack.methods import importance, sample_products
from hatrack.methods.importance import Fisher, fisher_diagonal, output_sensitivity
from hatrack.methods.multi_head import MultiHeadNetwork
from hatrack.streams import Task
from support.marks import slow_but
from support.toys import make, tasks_for


def prepared(network: str) -> tuple[MultiHeadNetwork, Task]:
    method, task = make("sgd", network), tasks_for(network)[0]
    method.begin_task(task)
    for module in method.network.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics other than those that it starts with
            module.running_mean = torch.linspace(-0.2, 0.3, module.num_features)
            module.running_var = torch.linspace(0.5, 2.0, module.num_features)
    return method.network.train(), task


def gradients(network: MultiHeadNetwork, loss: Tensor) -> dict[str, Tensor]:
    parameters = dict(network.backbone.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.parametrize("network", slow_but(["dropout", "norm"], ["dropout", "norm", "vit"]))
def test_the_empirical_fisher_is_the_mean_of_every_samples_squared_gradient(network: str) -> None:
    net, task = prepared(network)
    measured = fisher_diagonal(net, task, Fisher.TRUE)
    assert net.training
    x, y = task.train.load()
    net.eval()
    expected = {name: torch.zeros_like(value) for name, value in measured.items()}
    for index in range(len(x)):
        loss = F.cross_entropy(net(x[index : index + 1], [task.name]), y[index : index + 1])
        for name, value in gradients(net, loss).items():
            expected[name] += value.square() / len(x)
    for name, value in measured.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-8)
        assert not value.requires_grad


@pytest.mark.parametrize("network", ["shallow", "norm"])
def test_output_sensitivity_is_the_mean_size_of_every_samples_gradient(network: str) -> None:
    net, task = prepared(network)
    measured = output_sensitivity(net, task)
    x, _ = task.train.load()
    net.eval()
    expected = {name: torch.zeros_like(value) for name, value in measured.items()}
    for index in range(len(x)):
        for name, value in gradients(net, net(x[index : index + 1], [task.name]).square().sum()).items():
            expected[name] += value.abs() / len(x)
    for name, value in measured.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


class Odd(nn.Module):
    """Dense layers of which some are used in other ways than once, on one vector of every sample."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8, bias=kind != "no bias"), nn.Linear(8, 8)
        self.alias = self.second if kind == "two names" else None
        if kind == "tied":
            self.third.weight = self.second.weight
        self.relu = nn.ReLU(inplace=kind == "in place")
        if kind == "hook, seldom":
            self.second.register_forward_hook(lambda module, given, result: result.clamp(max=4.0))
        if kind == "computed":
            prune.identity(self.second, "weight")

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.first(x))
        if self.kind == "tokens":
            tokens = h.unsqueeze(1) * torch.linspace(0.5, 1.5, 4).view(1, 4, 1)
            return self.third(self.relu(self.second(tokens)).mean(1))
        result = self.relu(self.second(input=h) if self.kind == "by name" else self.second(h))
        if self.kind == "twice":
            result = self.relu(self.second(result))
        if self.kind == "by hand":
            result = F.linear(result, self.second.weight)
        if self.kind == "by hand, seldom":
            result = result + F.relu(F.linear(h, self.second.weight) - 4.0)
        if self.kind == "by its forward, seldom":
            result = result + F.relu(self.second.forward(h) - 4.0)
        if self.kind == "mixed precision":
            with torch.autocast("cpu", torch.bfloat16):
                result = self.second(h).float()
        features: Tensor = self.third(result)
        return features


KINDS = {
    "plain": 6,
    "no bias": 5,
    "in place": 6,
    "written to": 6,
    "tokens": 4,
    "twice": 4,
    "by hand": 4,
    "two names": 4,
    "by name": 6,
    "by hand, seldom": 4,
    "by its forward, seldom": 4,
    "mixed precision": 4,
    "hook, seldom": 6,
    "computed": 4,
}
"""How many parameters of three layers have gradients that are products."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("magnitude", [torch.square, torch.abs])
def test_dense_layers_take_products_where_these_are_the_gradients(
    kind: str, magnitude: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = MultiHeadNetwork(Odd(kind), 8)
    net.add_task("only", 3, torch.Generator().manual_seed(0))
    x, y = torch.randn(30, 6), torch.randint(0, 3, (30,))
    x[2:] *= 30.0 if kind.endswith("seldom") else 1.0
    task = Task.from_tensors("only", x, y, x, y)
    of_many: list[str] = []
    one_by_one = importance.add_one_by_one

    def noted(total: Any, network: Any, name: str, parameters: Any, x: Tensor, *rest: Any) -> None:
        of_many.extend(parameters)
        one_by_one(total, network, name, parameters, x, *rest)

    monkeypatch.setattr(importance, "add_one_by_one", noted)
    is_square, before = magnitude is torch.square, dict(net.named_parameters())
    measured = fisher_diagonal(net, task, Fisher.TRUE) if is_square else output_sensitivity(net, task)
    assert len(measured) - len(of_many) == KINDS[kind]
    assert all(parameter is before[name] for name, parameter in net.named_parameters())
    assert kind == "computed" or net.backbone.second.weight in set(before.values())
    expected = {name: torch.zeros_like(value) for name, value in measured.items()}
    for index in range(len(x)):
        logits = net(x[index : index + 1], ["only"])
        loss = F.cross_entropy(logits, y[index : index + 1]) if is_square else logits.square().sum()
        for name, value in gradients(net, loss).items():
            expected[name] += magnitude(value) / len(x)
    for name, value in measured.items():
        rtol = 2e-2 if kind == "mixed precision" else 1e-4
        torch.testing.assert_close(value, expected[name], rtol=rtol, atol=max(1e-6, 0.1 * rtol * float(value.max())))


def test_fewer_samples_pass_at_once_where_much_is_kept_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = MultiHeadNetwork(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)), 5)
    net.add_task("only", 3, torch.Generator().manual_seed(0))
    x, y = torch.randn(40, 1, 8, 8), torch.arange(40) % 3
    task = Task.from_tensors("only", x, y, x, y)
    expected, passes = fisher_diagonal(net, task, Fisher.TRUE), []
    net.backbone[3].register_forward_pre_hook(lambda module, given: passes.append(len(given[0])))
    monkeypatch.setattr(sample_products, "MOST_GRADIENT_ENTRIES", 4000)
    measured = fisher_diagonal(net, task, Fisher.TRUE)
    assert max(passes) == 4000 // (8 * 8 + 288 + 5)  # the input, what the rectifier gives, and the features
    for name, value in measured.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-8)


def test_the_batch_estimate_is_that_of_the_hat_authors() -> None:
    net, task = prepared("shallow")
    x, y = task.train.load()
    rows = torch.arange(50)  # two batches and a half
    part = Task.from_tensors(task.name, x[rows], y[rows], x, y)
    measured = fisher_diagonal(net, part, Fisher.BATCHES)
    net.eval()
    expected = {name: torch.zeros_like(value) for name, value in measured.items()}
    for start in (0, 20, 40):
        batch = slice(start, min(start + 20, 50))
        for name, value in gradients(net, F.cross_entropy(net(x[batch], [task.name]), y[batch])).items():
            expected[name] += 20 * value.square() / 50
    for name, value in measured.items():
        torch.testing.assert_close(value, expected[name])


def test_the_authors_estimate_drops_as_in_training_and_leaves_the_world_as_it_was() -> None:
    net, task = prepared("dropout")
    x, y = task.train.load()
    state = torch.get_rng_state()
    measured, again, other = (
        fisher_diagonal(net, task, Fisher.AUTHORS, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(5)))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        expected = {name: torch.zeros_like(value) for name, value in measured.items()}
        for samples, labels in zip(torch.split(x, 20), torch.split(y, 20), strict=True):  # in training mode
            for name, value in gradients(net, F.cross_entropy(net(samples, [task.name]), labels)).items():
                expected[name] += 20 * value.square() / len(x)
    for name, value in measured.items():
        torch.testing.assert_close(value, expected[name])
        assert torch.equal(value, again[name])
    assert any(not torch.equal(value, other[name]) for name, value in measured.items())


def test_the_authors_estimate_without_dropout_is_that_over_batches_and_spares_norms() -> None:
    net, task = prepared("norm")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    both = [fisher_diagonal(net, task, kind) for kind in (Fisher.BATCHES, Fisher.AUTHORS)]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def logistic(weights: Tensor, samples: Tensor, labels: Tensor) -> tuple[MultiHeadNetwork, Task]:
    """Logits (0, w·x): logistic regression, with the weights in the backbone."""
    backbone = nn.Linear(len(weights), 1, bias=False)
    net = MultiHeadNetwork(backbone, 1)
    net.add_task("only", 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        backbone.weight.copy_(weights.unsqueeze(0))
        net.head("only").weight.copy_(torch.tensor([[0.0], [1.0]]))
        net.head("only").bias.zero_()
    return net, Task.from_tensors("only", samples, labels, samples, labels)


@pytest.mark.slow
def test_logistic_regression_has_the_fisher_of_the_textbook() -> None:
    weights = torch.tensor([0.8, -0.5, 0.3])
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    p = torch.sigmoid(x @ weights)
    y = (p > 0.4).long()
    net, task = logistic(weights, x, y)
    true = fisher_diagonal(net, task, Fisher.TRUE)["weight"]
    torch.testing.assert_close(true, (((p - y) ** 2).unsqueeze(1) * x**2).mean(0, keepdim=True))
    many = x.repeat(200, 1)  # 200 labels are drawn for each sample
    net, task = logistic(weights, many, y.repeat(200))
    sampled = fisher_diagonal(net, task, Fisher.SAMPLED, torch.Generator().manual_seed(2))["weight"]
    torch.testing.assert_close(sampled, ((p * (1 - p)).unsqueeze(1) * x**2).mean(0, keepdim=True), rtol=0.03, atol=1e-3)


@pytest.mark.slow
def test_an_estimate_at_an_optimum_is_a_twentieth_in_batches() -> None:
    """Labels drawn from the model itself make its weights optimal; λ = 5000 was chosen for the smaller estimate."""
    weights = torch.tensor([0.8, -0.5, 0.3])
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(20000, 3, generator=generator)
    y = torch.bernoulli(torch.sigmoid(x @ weights), generator=generator).long()
    net, task = logistic(weights, x, y)
    ratio = fisher_diagonal(net, task, Fisher.BATCHES)["weight"] / fisher_diagonal(net, task, Fisher.TRUE)["weight"]
    assert bool(((ratio * 20 - 1).abs() < 0.15).all())


@pytest.mark.parametrize("backbone", [AlexNet((3, 20, 20), width=0.05), ResNet18((3, 20, 20), width=4)])
def test_the_backbones_of_the_experiments_can_be_measured(backbone: nn.Module) -> None:
    x = torch.randn(6, 3, 20, 20)
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    with torch.no_grad():
        features = backbone.eval()(x).shape[1]
    net = MultiHeadNetwork(backbone, features)
    net.add_task("only", 2, torch.Generator().manual_seed(0))
    task = Task.from_tensors("only", x, y, x, y)
    for measured in (
        *(fisher_diagonal(net, task, kind, torch.Generator().manual_seed(0)) for kind in Fisher),
        output_sensitivity(net, task),
    ):
        assert list(measured) == [name for name, _ in backbone.named_parameters()]
        assert all(bool(torch.isfinite(value).all()) and float(value.min()) >= 0 for value in measured.values())
        assert sum(float(value.sum()) for value in measured.values()) > 0


@pytest.mark.parametrize("kind", [Fisher.SAMPLED, Fisher.AUTHORS])
def test_without_a_generator_every_measurement_draws_on(kind: Fisher) -> None:
    net, task = prepared("dropout")
    torch.default_generator.manual_seed(0)
    one, other = fisher_diagonal(net, task, kind), fisher_diagonal(net, task, kind)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", Fisher)
def test_what_is_not_trained_has_no_importance(kind: Fisher) -> None:
    net, task = prepared("dropout")
    first = next(iter(dict(net.backbone.named_parameters())))
    net.backbone.get_parameter(first).requires_grad_(False)
    measured = fisher_diagonal(net, task, kind)
    assert measured
    assert first not in measured
