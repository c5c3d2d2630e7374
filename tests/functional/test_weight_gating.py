"""The gate of every weight in one pass: the same bits as the three operations that it stands for.

Its embedding's gradient has the bits of a formula of whole tensors, and the digits of the gate that units have.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from hatrack import WeightMaskedNetwork, functional
from hatrack.functional import (
    Compensation,
    annealed_scale,
    blocks,
    compensated_gate,
    gate,
    gated_weight,
    share_taken,
)
from hatrack.masks import Embedding

S_MAX = 400.0


class Whole(torch.autograd.Function):
    """Oracle of the exact compensation, by whole tensors."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, e: Tensor, free: Tensor, scale: float, s_max: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight, e, free)
        ctx.scale, ctx.s_max = scale, s_max
        a = gate(e, scale)
        return weight * a, (a * free).sum()

    @staticmethod
    def backward(ctx: Any, of_product: Tensor, of_cost: Tensor) -> tuple[Tensor | None, ...]:
        weight, e, free = ctx.saved_tensors
        of_gate = torch.addcmul(of_cost * free, of_product, weight)
        return of_product * gate(e, ctx.scale), of_gate * slope_of_weights(e, ctx.scale, ctx.s_max), None, None, None


def slope_of_weights(e: Tensor, scale: float, s_max: float) -> Tensor:
    """Compute the slope of a gate times the compensation, with a power of 2."""
    bits, powers, numbers = math.log2(math.e), math.log2(s_max), torch.finfo(e.dtype)
    lowest = math.log2(numbers.tiny) + 1.0
    if e.dtype.itemsize > 2:
        places = torch.sub(50.0 * bits + powers, e.abs(), alpha=scale * bits).clamp(lowest, powers)
    else:
        places = (torch.sub(50.0, e.abs() * scale) * bits).clamp(lowest, 0.0)
    decay = torch.where(places > lowest, torch.exp2(places), 0.0) * (1.0 if e.dtype.itemsize > 2 else s_max)
    slope: Tensor = torch.ops.aten.sigmoid_backward(decay, torch.sigmoid(e))
    return torch.where(slope >= numbers.tiny, slope, 0.0)


def by_whole_tensors(
    weight: Tensor, e: Tensor, free: Tensor | None, scale: float, compensation: Compensation, s_max: float = S_MAX
) -> tuple[Tensor, Tensor]:
    """Oracle: the product and the cost with the gradients of their formula."""
    if compensation is not Compensation.EXACT or weight.dtype != e.dtype:
        return by_three_operations(weight, e, free, scale, compensation, s_max)
    every = torch.ones_like(e) if free is None else free
    product, cost = Whole.apply(weight, e, every, scale, s_max)  # type: ignore[no-untyped-call]
    return product, cost


def by_three_operations(
    weight: Tensor,
    e: Tensor,
    free: Tensor | None,
    scale: float,
    compensation: Compensation,
    s_max: float = S_MAX,
) -> tuple[Tensor, Tensor]:
    """Oracle: what a network did before; the product and the cost each with a gate of their own."""
    product = weight * compensated_gate(e, scale, s_max, compensation).to(weight.dtype)
    gates = compensated_gate(e, scale, s_max, compensation)
    return product, (gates if free is None else gates * free).sum()


def gradients(function: Any, weight: Tensor, e: Tensor, *rest: Any, of: Tensor, of_cost: float) -> list[Tensor]:
    weight, e = (tensor.detach().clone().requires_grad_() for tensor in (weight, e))
    product, cost = function(weight, e, *rest)
    torch.autograd.backward([product, cost], [of, torch.tensor(of_cost, dtype=cost.dtype)])
    assert weight.grad is not None
    assert e.grad is not None
    return [product.detach(), weight.grad, e.grad, cost.detach()]


@example([5, 7], 0.0, Compensation.EXACT, torch.float32, None, S_MAX, 1)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=3),
    st.floats(0.0, 1.0),
    st.sampled_from(Compensation),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from([None, "booleans", "numbers"]),
    st.sampled_from([5.0, 250.0, S_MAX]),
    st.integers(0, 2**31),
)
def test_product_and_gradients_keep_every_bit(
    shape: list[int],
    progress: float,
    compensation: Compensation,
    dtype: torch.dtype,
    frozen: str | None,
    s_max: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    weight, e, of = draw(), (2 * draw()).clamp(-6, 6), draw()
    free = None if frozen is None else draw() > 0
    given_free = free if free is None or frozen == "booleans" else free.to(dtype)
    scale = annealed_scale(progress, s_max)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_BLOCK", 64)  # whole vectors: what is left over is computed otherwise

        def fused(weight: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
            return gated_weight(weight, e, given_free, scale, s_max, compensation)

        def oracle(weight: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
            numbers = None if free is None else free.to(dtype)
            return by_whole_tensors(weight, e, numbers, scale, compensation, s_max)

        found = gradients(fused, weight, e, of=of, of_cost=0.75)
        expected = gradients(oracle, weight, e, of=of, of_cost=0.75)
    for one, other in zip(found[:3], expected[:3], strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(found[3], expected[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1 / S_MAX, 5.0, 20.0, 100.0, S_MAX])
def test_the_slope_is_its_formula_to_the_bit(dtype: torch.dtype, scale: float) -> None:
    e = torch.linspace(-6, 6, 30001, dtype=torch.float64).to(dtype)
    values = e.clone().requires_grad_()
    gate = compensated_gate(values, scale, S_MAX)
    gate.sum().backward()
    sigma, tiny = torch.sigmoid(e), torch.finfo(dtype).tiny
    limit = -math.log(tiny) - 0.5
    beyond = torch.relu((scale * e).abs() - 50.0)
    slope = S_MAX * sigma * (1.0 - sigma) * torch.exp(-beyond.clamp_max(limit))
    assert values.grad is not None
    assert torch.equal(values.grad, torch.where((beyond < limit) & (slope >= tiny), slope, 0.0))
    plain = torch.sigmoid(scale * e)
    assert torch.equal(gate.detach(), torch.where(plain < 1e-12, 0.0, plain))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1 / S_MAX, 5.0, 20.0, 80.0])
def test_inside_the_bound_the_gradient_is_right_in_half_precision(dtype: torch.dtype, scale: float) -> None:
    """Where the bound were multiplied first, its rounding alone would take a sixth off."""
    e = torch.linspace(-min(2.0, 48.0 / scale), min(2.0, 48.0 / scale), 301).to(dtype)
    weight, of = torch.linspace(0.5, 2.0, 301).to(dtype), torch.linspace(2.0, 0.5, 301).to(dtype)
    rest = (None, scale, S_MAX)
    *_, found, _ = gradients(gated_weight, weight, e, *rest, of=of, of_cost=0.75)
    *_, exact, _ = gradients(gated_weight, weight.double(), e.double(), *rest, of=of.double(), of_cost=0.75)
    torch.testing.assert_close(found.double(), exact, rtol=6 * torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1 / S_MAX, 5.0, 20.0, 80.0, 100.0, S_MAX])
def test_the_gradient_is_that_of_the_gate_of_units_but_for_rounding(dtype: torch.dtype, scale: float) -> None:
    """Where the slope decays, a digit less of ``s e`` is told apart the larger that is."""
    e = torch.linspace(-6, 6, 30001, dtype=torch.float64).to(dtype)
    weight, of, free = (torch.randn(len(e), generator=torch.Generator().manual_seed(n)).to(dtype) for n in range(3))
    free = (free > 0).to(dtype)
    rest: dict[str, Any] = {"of": of, "of_cost": 0.75}
    *_, found, _ = gradients(gated_weight, weight, e, free, scale, S_MAX, **rest)
    *_, expected, _ = gradients(by_three_operations, weight, e, free, scale, Compensation.EXACT, **rest)
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    terms = (of * weight).abs() + 0.75 * free
    slope = S_MAX * torch.sigmoid(e) * torch.sigmoid(-e) * torch.exp(-torch.relu((scale * e).abs() - 50.0))
    rounding = eps * (8.0 + 2.0 * (scale * e).abs())
    assert bool(((found - expected).abs() <= terms * (slope * rounding + 1e4 * tiny)).all())
    inside = (scale * e).abs() < 50.0
    assert bool((found[inside] != 0).all())


def test_each_of_its_results_alone_and_a_transposed_weight() -> None:
    e = torch.randn(5, 4, requires_grad=True)
    weight = torch.randn(4, 5).T.requires_grad_()
    whole = by_whole_tensors(weight, e, None, 20.0, Compensation.EXACT)
    for index in (0, 1):
        found = gated_weight(weight, e, None, 20.0, S_MAX)[index].sum()
        expected = whole[index].sum()
        (of_e,) = torch.autograd.grad(found, [e])
        assert torch.equal(of_e, torch.autograd.grad(expected, [e], retain_graph=True)[0])
    (of_weight,) = torch.autograd.grad(gated_weight(weight, e.detach(), None, 20.0, S_MAX)[0].sum(), [weight])
    assert torch.equal(of_weight, torch.autograd.grad(whole[0].sum(), [weight])[0])


def test_what_moved_between_the_passes_is_noticed() -> None:
    weight, e = torch.randn(3, 3, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    product, _ = gated_weight(weight, e, None, 1.0, S_MAX)
    with torch.no_grad():
        e.add_(1.0)
    with pytest.raises(RuntimeError, match="modified in place"):
        product.sum().backward()


def test_weights_of_another_type_than_their_embedding() -> None:
    weight, e, free = torch.randn(4, 5).double(), torch.randn(4, 5), (torch.rand(4, 5) < 0.5).double()
    of = torch.randn(4, 5).double()
    found, expected = (
        gradients(function, weight, e, free, 20.0, *rest, of=of, of_cost=0.5)
        for function, rest in ((gated_weight, (S_MAX,)), (by_three_operations, (Compensation.EXACT,)))
    )
    assert [value.dtype for value in found] == [torch.float64, torch.float64, torch.float32, torch.float32]
    assert all(torch.equal(one, other) for one, other in zip(found[:3], expected[:3], strict=True))


def attach() -> WeightMaskedNetwork:
    torch.manual_seed(0)
    net = WeightMaskedNetwork(
        nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 8)), torch.zeros(2, 6), source=Embedding(S_MAX)
    )
    net.add_task("first", 2)
    net.consolidate("first")
    net.add_task("second", 2)
    return net.train()


def own_gradients(net: WeightMaskedNetwork) -> list[Tensor]:
    found = [parameter.grad.clone() for parameter in net.task_parameters("second") if parameter.grad is not None]
    net.zero_grad()
    return found


def test_the_cost_is_the_same_with_a_pass_before_it_and_without() -> None:
    net, x = attach(), torch.randn(9, 6)
    net.anneal(0.3)
    alone = net.regularization()
    alone.backward()
    expected = own_gradients(net)
    loss = net(x, "second").square().sum()
    kept = net.regularization()
    torch.testing.assert_close(kept, alone)
    kept.backward()
    torch.testing.assert_close(own_gradients(net), expected)  # other last bits: it is another gate's gradient
    loss.backward()  # one after the other, in either order
    net.zero_grad()
    net.regularization().backward()
    torch.testing.assert_close(own_gradients(net), expected)
    gates = [compensated_gate(v, annealed_scale(0.3, S_MAX), S_MAX) for v in net.tasks[1].choice]
    free = [(~mask).float() for mask in net.masks("first").values()]
    taken = sum(float((gate * f).sum().detach()) for gate, f in zip(gates, free, strict=True))
    total = torch.tensor(float(sum(int(f.sum()) for f in free)))
    assert float(share_taken(torch.tensor(taken), total)) == pytest.approx(float(kept.detach()), rel=1e-5)


@pytest.mark.parametrize("change", ["anneal", "step", "evaluate", "forget", "no grad"])
def test_an_old_cost_is_not_taken_for_a_new_one(change: str) -> None:
    net, x = attach(), torch.randn(9, 6)
    net.anneal(0.3)
    with torch.set_grad_enabled(change != "no grad"):
        net(x, "second")
    old = float(net.regularization().detach())
    if change == "anneal":
        net.anneal(0.001)
    elif change == "step":
        with torch.no_grad():
            net.tasks[1].choice[0].add_(1.0)
    elif change == "evaluate":
        net.eval()
    elif change == "forget":
        net.forget("second")
        net.add_task("second", 2)
    fresh = copy.deepcopy(net)
    assert float(net.regularization().detach()) == pytest.approx(float(fresh.regularization().detach()))
    assert net.regularization().requires_grad == (change != "evaluate")
    assert (float(net.regularization().detach()) == pytest.approx(old, rel=1e-4)) == (change == "no grad")


def naive(
    weight: Tensor, e: Tensor, free: Tensor | None, scale: float, s_max: float, compensation: Compensation, new: Any
) -> tuple[Tensor, Tensor]:
    """Oracle in the place of :func:`gated_weight`, by whole tensors and torch's own derivatives."""
    return by_whole_tensors(weight, e, None if free is None else free.to(e.dtype), scale, compensation, s_max)


def second_task(
    make: Callable[..., torch.optim.Optimizer], clip: float, lower_precision: bool, patch: pytest.MonkeyPatch
) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """Train a second task beside frozen weights; return all its parameters and the first task's logits over steps."""
    net, x, others = attach(), torch.randn(16, 6), torch.randn(5, 6)
    optimizer = net.protect(make(net.task_parameters("second")))
    promised, losses = [], []
    for step in range(6):
        net.train()
        net.anneal(step / 5)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=lower_precision):
            features = net(x, "second")
        loss = features.float().square().mean() + 0.75 * net.regularization()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        losses.append(float(loss.detach()))
        net.eval()
        with torch.no_grad():
            promised.append(net(others, "first"))
    return [value.detach() for value in net.parameters()], promised, losses


@pytest.mark.parametrize("lower_precision", [False, True])
@pytest.mark.parametrize("clip", [0.05, 1e9])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.5),
        lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, lr=0.05),
        lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    ],
    ids=["sgd", "momentum", "adam", "adamw"],
)
def test_a_second_task_is_learned_to_the_bit_as_by_whole_tensors(
    make: Callable[..., torch.optim.Optimizer], clip: float, lower_precision: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found, promised, losses = second_task(make, clip, lower_precision, patch)
        patch.setattr(functional, "gated_weight", naive)
        expected, _, slow_losses = second_task(make, clip, lower_precision, patch)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert losses == pytest.approx(slow_losses, rel=1e-5)
    assert losses[-1] < losses[0]
    assert all(torch.equal(logits, promised[0]) for logits in promised)


def test_steps_use_the_memory_of_earlier_steps_and_of_nothing_that_is_alive() -> None:
    net, x = attach(), torch.randn(9, 6)

    def step() -> list[Tensor]:
        net.zero_grad()
        (net(x, "second").square().sum() + net.regularization()).backward()
        return [p.grad for p in net.task_parameters("second") if p.grad is not None and p.grad.shape == (20, 6)]

    first = step()
    kept = [gradient.clone() for gradient in first]
    second = step()  # while the first gradients are alive
    assert not {value.data_ptr() for value in first} & {value.data_ptr() for value in second}
    assert all(torch.equal(one, other) for one, other in zip(first, kept, strict=True))
    del first
    early, late = ({value.data_ptr() for _ in range(50) for value in step()} for _ in range(2))
    assert late <= early, "memory is new in later steps"
    twin = copy.deepcopy(net)
    own = {value.data_ptr() for value in second}
    twin(x, "second").square().sum().backward()
    assert not own & {p.grad.data_ptr() for p in twin.parameters() if p.grad is not None}
