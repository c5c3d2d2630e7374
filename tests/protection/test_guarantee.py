"""Changes that `check` notices, and leaks that the test at attaching notices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hatrack
from hatrack import HATNetwork
from hatrack.errors import CheckpointError, GuaranteeError, InputError
from hatrack.units.rules import registry
from hatrack.units.trace import Call, Trace
from support.helpers import assert_poison_harmless, attach, learn, logits
from support.marks import slow_unless


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_diverged_are_named_before_they_spoil_old_outputs(value: float) -> None:
    net = attach("mlp")
    learn(net, "first")
    free = ~net.protected()["backbone.4.weight"]
    assert free.any()
    net.check()
    with torch.no_grad():
        dict(net.named_parameters())["backbone.4.weight"][free] = value
    with pytest.raises(GuaranteeError, match=r"values in backbone\.4\.weight became infinite or not a number"):
        net.check()
    net.add_task("second", 2)
    with pytest.raises(GuaranteeError, match="lower the learning rate"):
        net.consolidate("second")
    assert net.task_in_training == "second"


def move_a_protected_entry(net: HATNetwork) -> None:
    held = net.protected()["backbone.4.weight"]
    with torch.no_grad():
        dict(net.named_parameters())["backbone.4.weight"][held] += 1


def test_a_change_cannot_be_hidden_by_loading_ones_own_state() -> None:
    net = attach("mlp")
    learn(net, "first")
    move_a_protected_entry(net)
    with pytest.raises(GuaranteeError, match=r"protected entries have moved in backbone\.4\.weight"):
        net.load_state_dict(net.state_dict())
    with pytest.raises(GuaranteeError, match="protected entries have moved"):
        net.check()


def test_a_change_cannot_be_hidden_by_a_conversion() -> None:
    net = attach("mlp")
    learn(net, "first")
    move_a_protected_entry(net)
    with pytest.raises(GuaranteeError, match="protected entries have moved"):
        net.double()


class Centred(nn.Module):
    """Subtracts a running mean, which it updates in training: a state that no parameter shows."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(6, features)
        self.register_buffer("mean", torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.layer(x))
        if self.training:
            self.mean.lerp_(h.detach().mean(0), 0.1)
        return h - self.mean


def test_a_buffer_that_changes_the_outputs_is_every_tasks_own() -> None:
    net = HATNetwork(Centred(20), torch.zeros(1, 6))
    learn_on(net, "first")
    net.check()
    x = torch.randn(9, 6)
    promised = logits(net, x, "first")
    net.train()
    net.add_task("second", 2)
    net(torch.randn(9, 6), "second")
    net.consolidate("second")
    assert torch.equal(logits(net, x, "first"), promised)
    net.check()


def learn_on(net: HATNetwork, name: str) -> None:
    net.add_task(name, 2)
    net.train()
    net(torch.randn(9, 6), name)
    net.consolidate(name)


class Shifted(nn.Module):
    """Moves every unit's value to its neighbour."""

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, dims=-1)


@contextmanager
def wrong_rule() -> Iterator[None]:
    def stays(trace: Trace, call: Call) -> Tensor:
        return trace.labels(call.args[0])

    hatrack.units.rule(Shifted)(stays)
    try:
        yield
    finally:
        del registry._RULES[Shifted]


@pytest.mark.parametrize("width", slow_unless(lambda width: width in (2, 16), [2, 3, 4, 16]))
def test_a_wrong_rule_is_found_out_at_attaching_however_narrow_the_network(width: int) -> None:
    for seed in range(10):
        torch.manual_seed(seed)
        backbone = nn.Sequential(nn.Linear(5, width), nn.Tanh(), Shifted(), nn.Linear(width, 3), nn.Tanh())
        before = {name: value.clone() for name, value in backbone.state_dict().items()}
        with wrong_rule(), pytest.raises(GuaranteeError, match="a rule for one of its operations must be wrong"):
            HATNetwork(backbone, torch.zeros(1, 5))
        assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_an_activation_that_is_undefined_on_random_input_raises_no_false_alarm() -> None:
    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(x)

    HATNetwork(nn.Sequential(nn.Linear(5, 8), Log(), nn.Linear(8, 4)), torch.zeros(1, 5))


def convolution(stride: int, slope: float) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3, stride=stride), nn.LeakyReLU(slope), nn.AdaptiveAvgPool2d(2), nn.Flatten())


@pytest.mark.parametrize(("stride", "slope"), [(2, 0.1), (1, 0.5)])
def test_a_backbone_whose_weights_fit_but_which_computes_something_else(
    stride: int, slope: float, tmp_path: Path
) -> None:
    net = HATNetwork(convolution(1, 0.1), torch.zeros(1, 1, 9, 9))
    net.add_task("first", 3)
    net.consolidate("first")
    net.save(tmp_path / "net.hat")
    assert hatrack.load(tmp_path / "net.hat", convolution(1, 0.1)).task_names == ("first",)
    with pytest.raises(CheckpointError, match="task 'first' gives other outputs"):
        hatrack.load(tmp_path / "net.hat", convolution(stride, slope))


def diverge(net: HATNetwork) -> None:
    """Leave behind what a step without protection and with a huge learning rate does."""
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter.add_(1.0)
            parameter.flatten()[number % parameter.numel()] = float("nan")


def test_restoring_brings_old_outputs_back_bit_by_bit() -> None:
    net = attach("conv-bn")
    x, _ = learn(net, "first")
    net.add_task("second", 2)
    promised = logits(net, x, "first")
    diverge(net)
    with pytest.raises(GuaranteeError, match=r"call restore\(\)"):
        net.check()
    net.restore()
    net.check()
    assert torch.equal(logits(net, x, "first"), promised)
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())


def test_a_bad_state_is_refused_and_leaves_the_good_one() -> None:
    net = attach("mlp")
    x, _ = learn(net, "first")
    promised = logits(net, x, "first")
    bad = {name: value.clone() if isinstance(value, Tensor) else value for name, value in net.state_dict().items()}
    bad["backbone.4.weight"] += 1
    with pytest.raises(GuaranteeError, match="protected entries have moved"):
        net.load_state_dict(bad)
    net.check()
    assert torch.equal(logits(net, x, "first"), promised)


def test_a_detached_network_answers_no_more(tmp_path: Path) -> None:
    net = attach("mlp")
    x, _ = learn(net, "first")
    net.add_task("second", 2)
    net.detach()
    for use in (
        lambda: net(x, "first"),
        lambda: net.consolidate("second"),
        lambda: net.save(tmp_path / "net.hat"),
    ):
        with pytest.raises(InputError, match="was detached"):
            use()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(3, 5, 6), (6,)])
def test_a_shape_that_a_dense_layer_takes_but_the_network_does_not(shape: tuple[int, ...]) -> None:
    net = HATNetwork(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), torch.zeros(1, 6))
    net.add_task("first", 2)
    with pytest.raises(InputError, match=r"the network expects \(N, 6\)"):
        net(torch.zeros(shape), "first")


class HandWritten(nn.Module):
    """A leaky activation, a thresholded one and noise, as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = torch.where(h > 0, h, 0.1 * h) + torch.zeros_like(h)
        return (self.second(h) * (self.second(h) >= 0.1)).masked_fill(h[:, :16] < -2, 0.0)


def test_activations_written_by_hand() -> None:
    net = HATNetwork(HandWritten(), torch.zeros(1, 6))
    x = torch.randn(9, 6)
    promised = {}
    for task in ("first", "second"):
        learn_on(net, task)
        promised[task] = logits(net, x, task)
    assert all(torch.equal(logits(net, x, task), kept) for task, kept in promised.items())
    assert_poison_harmless(net, dict.fromkeys(promised, x))
