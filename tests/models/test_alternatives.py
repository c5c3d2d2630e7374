"""The alternatives to HAT's own choices, against hand-worked numbers and numerical derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hatrack import HATNetwork
from hatrack import functional as hat
from hatrack.functional import Compensation, GateFunction, Regularization

FUNCTIONS = st.sampled_from(GateFunction)
SMOOTH = st.sampled_from([f for f in GateFunction if f is not GateFunction.STEP])
X = st.floats(-60, 60)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "at_two"),
    [
        (GateFunction.SIGMOID, 0.8807970779778823),
        (GateFunction.HARD_SIGMOID, 1.0),
        (GateFunction.ARCTAN, 0.8195464634),
        (GateFunction.SOFTSIGN, 0.75),
        (GateFunction.STEP, 1.0),
    ],
)
def test_gate_functions_by_hand(function: GateFunction, at_two: float) -> None:
    assert float(hat.gate(number(1.0), 2.0, function)) == pytest.approx(at_two, abs=1e-7)
    assert float(hat.gate_slope(number(0.0), function)) == 0.25


@given(FUNCTIONS, X, X)
def test_gates_rise_from_zero_to_one_alike_on_both_sides(function: GateFunction, x: float, y: float) -> None:
    low, high = (float(hat.gate(number(v), 1.0, function)) for v in sorted((x, y)))
    assert 0.0 <= low <= high <= 1.0
    if x != 0:
        mirrored = float(hat.gate(number(x), 1.0, function)) + float(hat.gate(number(-x), 1.0, function))
        assert mirrored == pytest.approx(1.0, abs=1e-11)
        assert (float(hat.gate(number(x), 1.0, function)) > 0.5) == (x > 0) or abs(x) < 1e-15


@given(SMOOTH, X)
def test_slopes_are_numerical_derivatives(function: GateFunction, x: float) -> None:
    step = 1e-5
    if function is GateFunction.HARD_SIGMOID and abs(abs(x) - 2.0) < 2 * step:
        return  # it has a corner there
    up, down = (float(hat.gate(number(x + d), 1.0, function)) for d in (step, -step))
    assert float(hat.gate_slope(number(x), function)) == pytest.approx((up - down) / (2 * step), abs=step)


@given(FUNCTIONS, st.floats(-6, 6), st.floats(1 / 400, 400))
def test_compensation_replaces_the_scale_by_the_largest(function: GateFunction, e: float, scale: float) -> None:
    if function is GateFunction.SIGMOID and abs(scale * e) > 50:
        return  # its formula decays there, as test_functional says
    leaf = number(e).requires_grad_()
    hat.compensated_gate(leaf, scale, 400.0, Compensation.EXACT, function).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert float(leaf.grad) == pytest.approx(400.0 * float(hat.gate_slope(number(e), function)), rel=1e-9)


@given(FUNCTIONS, st.floats(-6, 6), st.floats(0.01, 20))
def test_without_compensation_the_slope_is_the_chain_rule(function: GateFunction, e: float, scale: float) -> None:
    leaf = number(e).requires_grad_()
    hat.compensated_gate(leaf, scale, 400.0, Compensation.NONE, function).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert float(leaf.grad) == pytest.approx(scale * float(hat.gate_slope(number(scale * e), function)), rel=1e-6)


def test_float32_compensation_is_the_sigmoids() -> None:
    with pytest.raises(ValueError, match="exact or none with the arctan gate"):
        hat.compensated_gate(number(1.0), 1.0, 400.0, Compensation.FLOAT32, GateFunction.ARCTAN)


def test_unweighted_regularization_by_hand() -> None:
    attention = torch.tensor([1.0, 0.5, 0.0, 0.5])
    assert float(hat.unweighted_regularization(attention, Regularization.L1)) == 0.5
    assert float(hat.unweighted_regularization(attention, Regularization.L2)) == 0.375
    with pytest.raises(ValueError, match="attention_regularization"):
        hat.unweighted_regularization(attention, Regularization.WEIGHTED_L1)


def test_units_of_narrow_layers_cost_more_by_hand() -> None:
    narrow, wide = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0.0] * 15 + [1.0])
    assert float(hat.layered_regularization([narrow, 0 * wide])) == pytest.approx(0.5 / (2 + 4))
    assert float(hat.layered_regularization([0 * narrow, wide])) == pytest.approx(0.25 / (2 + 4))
    used = torch.tensor([False, True, True, True])  # one of the narrow layer is left, and costs 1
    free = torch.zeros(16, dtype=torch.bool)
    assert float(hat.layered_regularization([narrow, wide], [used, free])) == pytest.approx((1 + 0.25) / (1 + 4))
    assert float(hat.layered_regularization([narrow, wide], [~free[:4], ~free])) == 0.0


LAYERS = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@given(LAYERS, st.integers(0, 2**16))
def test_layered_costs_are_shares(widths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before = [torch.rand(n, generator=generator) < 0.5 for n in widths]
    attention = [torch.rand(n, generator=generator) for n in widths]
    cost = float(hat.layered_regularization(attention, before))
    assert 0.0 <= cost <= 1.0
    if not all(bool(b.all()) for b in before):
        assert float(hat.layered_regularization([torch.ones(n) for n in widths], before)) == pytest.approx(1.0)
    left = {int((~b).sum()) for b in before}
    if len(left) == 1:  # layers of one width: Eq. 5
        assert cost == pytest.approx(float(hat.attention_regularization(attention, before)), abs=1e-6)


def test_a_network_counts_its_layers_apart() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 16), nn.ReLU())
    net = HATNetwork(backbone, torch.zeros(2, 3), regularizer=Regularization.LAYERED_L1)
    net.add_task("first", 2, embedding=torch.randn(20))
    net.consolidate("first")
    net.add_task("second", 2, embedding=torch.randn(20))
    net.train()
    net.anneal(0.01)
    layers = net.masking.graph.split(net.masking.attention(net.tasks.named("second")).detach())
    before = net.masking.graph.split(net.masking.cumulative)
    expected = hat.layered_regularization([*layers.values()], [*before.values()])
    assert [len(layer) for layer in layers.values()] == [4, 16]
    cost = net.regularization()
    torch.testing.assert_close(cost.detach(), expected)
    cost.backward()  # type: ignore[no-untyped-call]
    slope = net.tasks.named("second").embedding.grad
    assert slope is not None
    assert bool((slope[net.masking.cumulative] == 0).all())


def test_attention_fades_by_a_share_per_task() -> None:
    first = hat.faded_attention(None, torch.tensor([True, True, False]), 0.5)
    second = hat.faded_attention(first, torch.tensor([False, True, False]), 0.5)
    third = hat.faded_attention(second, torch.tensor([False, False, True]), 0.5)
    assert first.tolist() == [1.0, 1.0, 0.0]
    assert second.tolist() == [0.5, 1.0, 0.0]
    assert third.tolist() == [0.25, 0.5, 1.0]


def test_what_adahat_leaves_by_hand() -> None:
    uses = torch.tensor([0.0, 1.0, 3.0])
    assert hat.adaptive_freedom(uses, 1.0).tolist() == [1.0, 0.5, 0.25]
    assert hat.adaptive_freedom(uses, 1e-6).tolist() == pytest.approx([1.0, 1e-6, 1e-6 / 3], rel=1e-5)
