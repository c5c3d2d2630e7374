from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hatrack import Compensation, HATNetwork
from hatrack.gating.gates import ActiveTask, InputGate, used_units
from hatrack.units import Group, Reader
from support.helpers import attach, learn, open_task

NUM_UNITS = 6


def gate_over(units: list[int], axis: int) -> tuple[InputGate, ActiveTask]:
    active = ActiveTask()
    return InputGate(Reader("layer", 0, "input", axis, torch.tensor(units)), NUM_UNITS, active), active


POSITIONS = st.lists(st.integers(0, NUM_UNITS), min_size=1, max_size=8)


@given(POSITIONS, st.lists(st.booleans(), min_size=NUM_UNITS, max_size=NUM_UNITS), st.sampled_from([-1, -2, -3]))
def test_hard_and_soft_gates_against_a_loop(units: list[int], mask: list[bool], axis: int) -> None:
    gate, active = gate_over(units, axis)
    shape = [3, 2, 2, 2]
    shape[axis] = len(units)
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert gate(value) is value
    outer = []
    for attention in (torch.tensor(mask), torch.tensor(mask).float() * 0.5):
        outer.append(active.activate(attention, {}))
        expected = value.clone()
        for index, unit in enumerate(units):
            share = 1.0 if unit == NUM_UNITS else float(attention[unit])
            expected.select(axis, index).mul_(share)
        assert torch.equal(gate(value), expected)
    active.go_back_to(outer[0])
    assert gate(value) is value


def test_a_hard_gate_clears_infinities() -> None:
    gate, active = gate_over([0, 1, 2], -1)
    active.activate(torch.tensor([False, False, True, True, True, True]), {})
    value = torch.tensor([[math.inf, math.nan, 2.0]])
    assert gate(value).tolist() == [[0.0, 0.0, 2.0]]


def test_an_active_task_is_its_threads_own_and_is_not_copied() -> None:
    active = ActiveTask()
    active.activate(torch.ones(3, dtype=torch.bool), {})
    assert active.cleared is not None
    assert copy.deepcopy(active).cleared is None


def test_every_group_keeps_a_unit() -> None:
    groups = [Group("a", 0, 3, (), 0), Group("b", 3, 1, (), 0), Group("c", 4, 2, (), 0)]
    mask = used_units(torch.tensor([-3.0, -1.0, -2.0, -6.0, 1.0, -1.0]), groups)
    assert mask.tolist() == [False, True, False, True, True, False]


@pytest.mark.parametrize("compensation", list(Compensation))
def test_compensation_reaches_the_embedding(compensation: Compensation) -> None:
    torch.manual_seed(0)
    net = HATNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.zeros(1, 4), compensation=compensation)
    open_task(net, "a")
    net.anneal(0.005)
    net(torch.randn(5, 4), "a").square().sum().backward()
    gradient = net.tasks[0].embedding.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("kind", ["mlp", "conv-bn", "conv1d", "conv3d", "residual", "alexnet"])
def test_all_ones_masks_are_the_plain_network(kind: str) -> None:
    net = attach(kind)
    net.add_task("a", 2)
    with torch.no_grad():
        net.tasks[0].embedding.fill_(1.0)
    net.consolidate("a")
    net.eval()
    x = torch.randn(5, *net.example_shape[1:])
    gated = net(x, "a")
    head = net.tasks[0].head
    assert torch.equal(gated, head(net.detach()(x)))


def test_soft_masks_are_numbers_and_drift_a_little() -> None:
    net = attach("mlp", hard=False)
    x, _ = learn(net, "a", 0, steps=20)
    assert all(mask.dtype == torch.float32 for mask in net.masks("a").values())
    net.eval()
    before = net(x, "a").detach()
    held = {name: where for name, where in net.protected().items() if where.any()}
    values = {name: p.detach().clone() for name, p in net.named_parameters()}
    assert any(name.startswith("backbone.") for name in held)
    learn(net, "b", 1, steps=20)
    for name, parameter in net.named_parameters():
        if name in held:
            assert torch.equal(parameter[held[name]], values[name][held[name]])
    net.eval()
    drift = (net(x, "a") - before).abs().max()
    assert drift < 0.5
    net.check()


def test_soft_conditioning_is_equation_2() -> None:
    torch.manual_seed(0)
    net = HATNetwork(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5)), torch.zeros(1, 3), hard=False, s_max=5)
    net.add_task("a", 2)
    net.consolidate("a")
    a0, a2 = net.masks("a")["0"], net.masks("a")["2"]
    net.add_task("b", 2)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("b"), lr=1.0))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for parameter in net.task_parameters("b"):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for i in range(5):
        bias = before["backbone.2.bias"][i] - (1 - a2[i])
        torch.testing.assert_close(net.backbone[2].bias[i].detach(), bias)
        for j in range(4):
            expected = before["backbone.2.weight"][i, j] - (1 - torch.minimum(a2[i], a0[j]))
            torch.testing.assert_close(net.backbone[2].weight[i, j].detach(), expected)


def test_embeddings_that_are_drawn_from_a_distribution_without_a_generator_differ() -> None:
    networks = [attach("mlp") for _ in range(2)]
    torch.default_generator.manual_seed(0)
    for net in networks:
        net.add_task("one", 2, embedding=torch.distributions.Normal(0.0, 1.0))
    one, two = (net.tasks[0].embedding for net in networks)
    assert not torch.equal(one, two)


class PartlyWithoutGradient(nn.Module):
    """Network of which a layer that reads flattened channels runs without gradients, before another one that does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.first, self.second = nn.Linear(16, 6), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).relu().flatten(1)
        with torch.no_grad():
            aside = self.first(h)
        return (self.second(h) + aside).relu()


def test_attention_that_was_asked_for_without_gradients_still_learns_from_later_layers() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 1, 4, 4)
    net = HATNetwork(PartlyWithoutGradient(), x)
    net.add_task("only", 2)
    net.train()
    net.anneal(0.0)  # when gates are open by halves
    net(x, "only").square().sum().backward()
    gradient = net.tasks.named("only").embedding.grad
    assert gradient is not None
    channels = next(group for group in net.masking.graph.groups if group.size == 4)
    assert (gradient[channels.span] != 0).any()


def test_soft_attention_made_in_inference_mode_is_not_used_outside_of_it() -> None:
    active = ActiveTask((3,))
    active.activate(torch.rand(3), {})
    with torch.inference_mode():
        assert active.attention is not None
    assert active.attention is not None
    assert not active.attention.is_inference()
