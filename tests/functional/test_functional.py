from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import hatrack
from hatrack import functional as hat
from hatrack.functional import Compensation

EMBEDDINGS = st.floats(-6, 6)
SCALES = st.floats(1 / 800, 800)
TINY = torch.finfo(torch.float32).tiny


def vector(values: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def slope(e: Tensor, scale: Any, s_max: float, compensation: Compensation) -> Tensor:
    leaf = e.clone().requires_grad_()
    hat.compensated_gate(leaf, scale, s_max, compensation).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


# ------------------------------------------------------------------------------------------------------- annealing


def test_progress_by_hand() -> None:
    assert [hat.batch_progress(b, 5) for b in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert hat.batch_progress(0, 1) == 1.0


@pytest.mark.parametrize(("batch", "batches"), [(-1, 3), (3, 3), (0, 0), (0, -1)])
def test_progress_refuses_what_is_no_batch(batch: int, batches: int) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        hat.batch_progress(batch, batches)


def test_annealed_scale_by_hand() -> None:
    assert hat.annealed_scale(0.0, 400.0) == 1 / 400
    assert hat.annealed_scale(0.5, 4.0) == pytest.approx((0.25 + 4) / 2)
    assert hat.annealed_scale(1.0, 400.0) == pytest.approx(400.0, rel=1e-15)
    # Eq. 3 as printed, with b counted from 1
    for b in range(1, 6):
        printed = 1 / 200 + (200 - 1 / 200) * (b - 1) / (5 - 1)
        assert hat.annealed_scale(hat.batch_progress(b - 1, 5), 200.0) == pytest.approx(printed, rel=1e-15)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1, 800))
def test_annealed_scale_grows_within_its_bounds(p: float, q: float, s_max: float) -> None:
    low, high = (hat.annealed_scale(v, s_max) for v in sorted((p, q)))
    assert 1 / s_max <= low <= high <= s_max * (1 + 1e-15)


def test_annealed_scale_keeps_tensors() -> None:
    scale = hat.annealed_scale(torch.tensor(0.5), 4.0)
    assert isinstance(scale, Tensor)
    assert scale.item() == pytest.approx(2.125)


@pytest.mark.parametrize("progress", [-0.1, 1.1, math.nan, math.inf])
def test_annealed_scale_refuses_progress_outside(progress: float) -> None:
    with pytest.raises(ValueError, match="progress must lie in"):
        hat.annealed_scale(progress, 400.0)


@pytest.mark.parametrize("s_max", [0.0, -1.0, math.nan, math.inf])
def test_annealed_scale_refuses_impossible_limits(s_max: float) -> None:
    with pytest.raises(ValueError, match="s_max must be positive and finite"):
        hat.annealed_scale(0.5, s_max)


# ------------------------------------------------------------------------------------------------------------ gates


def test_gate_by_hand() -> None:
    a = hat.gate(vector([0.0, math.log(3), -math.log(3), 6.0, -6.0]), 1.0)
    assert a.tolist() == pytest.approx([0.5, 0.75, 0.25, 1 / (1 + math.exp(-6)), 1 / (1 + math.exp(6))], rel=1e-15)
    assert hat.gate(vector([-6.0, 6.0]), 400.0).tolist() == [0.0, 1.0]


@given(st.lists(EMBEDDINGS, min_size=1, max_size=8), SCALES)
def test_gate_is_a_share_and_never_denormal(values: list[float], scale: float) -> None:
    for dtype in (torch.float32, torch.float64):
        a = hat.gate(vector(values, dtype), scale)
        assert ((a == 0) | ((a >= hat.GATE_FLUSH) & (a <= 1))).all()
        expected = torch.sigmoid(vector(values, dtype) * scale)
        assert torch.equal(a[a > 0], expected[a > 0])


@pytest.mark.parametrize("compensation", list(Compensation))
@given(values=st.lists(EMBEDDINGS, min_size=1, max_size=8), scale=SCALES)
def test_nothing_that_comes_out_is_denormal(compensation: Compensation, values: list[float], scale: float) -> None:
    e = vector(values, torch.float32)
    for out in (hat.compensated_gate(e, scale, 400.0, compensation), slope(e, scale, 400.0, compensation)):
        assert torch.isfinite(out).all()
        assert ((out == 0) | (out.abs() >= TINY)).all()


def test_hard_attention_is_the_sign() -> None:
    assert hat.hard_attention(vector([-6.0, -1e-300, -0.0, 0.0, 1e-300, 6.0])).tolist() == [False] * 4 + [True] * 2


@given(EMBEDDINGS.filter(lambda e: abs(e) > 1e-2), st.floats(1e-3, 800))
def test_hard_attention_is_what_the_gate_rounds_to(e: float, scale: float) -> None:
    assert hat.hard_attention(vector([e])).item() == (hat.gate(vector([e]), scale).item() > 0.5)


# ----------------------------------------------------------------------------------------------------- compensation


@given(EMBEDDINGS, st.floats(1 / 800, 60))
def test_without_compensation_the_slope_is_the_gates_own(e: float, scale: float) -> None:
    step = 1e-6 / scale
    around = hat.gate(vector([e - step, e + step]), scale)
    numerical = float(around[1] - around[0]) / (2 * step)
    found = slope(vector([e]), scale, 400.0, Compensation.NONE).item()
    assert found == pytest.approx(numerical, rel=1e-5, abs=1e-9 * scale)


def printed_formula(e: float, scale: float, s_max: float) -> float:
    """q' / q times the sigmoid's derivative, with the printed formula, in numbers that do not overflow."""
    limited = max(-50.0, min(50.0, scale * e))
    factor = s_max * (math.cosh(limited) + 1) / (scale * (math.cosh(e) + 1))
    z = abs(scale * e)
    derivative = scale * math.exp(-z) / (1 + math.exp(-z)) ** 2
    return derivative * factor


@given(EMBEDDINGS, SCALES, st.floats(25, 800))
def test_exact_compensation_is_the_printed_formula(e: float, scale: float, s_max: float) -> None:
    found = slope(vector([e]), scale, s_max, Compensation.EXACT).item()
    assert found == pytest.approx(printed_formula(e, scale, s_max), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(("e", "scale"), [(0.125, 400.0), (-0.125, 400.0), (0.2, 400.0), (-0.15, 400.0), (6.0, 10.0)])
def test_exact_compensation_at_and_beyond_the_clamp(e: float, scale: float) -> None:
    found = slope(vector([e]), scale, 400.0, Compensation.EXACT).item()
    sigma = 1 / (1 + math.exp(-e))
    decay = math.exp(-max(0.0, abs(scale * e) - 50))
    assert found == pytest.approx(400 * sigma * (1 - sigma) * decay, rel=1e-12)
    assert found == pytest.approx(printed_formula(e, scale, 400.0), rel=1e-9)


def test_exact_compensation_survives_where_float32_loses_the_gradient() -> None:
    e = vector([0.05], torch.float32)  # s·e = 20: the sigmoid rounds to one
    assert slope(e, 400.0, 400.0, Compensation.EXACT).item() == pytest.approx(100, rel=1e-2)
    assert slope(e, 400.0, 400.0, Compensation.FLOAT32).item() == 0.0
    assert slope(-e, 400.0, 400.0, Compensation.FLOAT32).item() == pytest.approx(100, rel=1e-2)


@given(st.lists(EMBEDDINGS, min_size=1, max_size=8), SCALES)
def test_float32_compensation_is_the_formula_step_by_step(values: list[float], scale: float) -> None:
    e = vector(values, torch.float32)
    a = hat.gate(e, scale)
    q = scale * a * (1.0 - a)
    limited = torch.clamp(scale * e, -50, 50)
    q = q * (400.0 * (torch.cosh(limited) + 1) / (scale * (torch.cosh(e) + 1)))
    assert torch.equal(slope(e, scale, 400.0, Compensation.FLOAT32), q)


@given(EMBEDDINGS, SCALES)
def test_compensation_factor_by_hand(e: float, scale: float) -> None:
    limited = max(-50.0, min(50.0, scale * e))
    expected = 400 * (math.cosh(limited) + 1) / (scale * (math.cosh(e) + 1))
    assert hat.compensation_factor(vector([e]), scale, 400.0).item() == pytest.approx(expected, rel=1e-12)


def test_compensated_gate_has_the_gates_value_and_takes_a_tensor_scale() -> None:
    e = torch.randn(50, generator=torch.Generator().manual_seed(0))
    for compensation in Compensation:
        assert torch.equal(hat.compensated_gate(e, 30.0, 400.0, compensation), hat.gate(e, 30.0))
        by_tensor = slope(e, torch.tensor(30.0), 400.0, compensation)
        torch.testing.assert_close(by_tensor, slope(e, 30.0, 400.0, compensation))


# ------------------------------------------------------------------------------------------------------ conditioning


def test_cumulative_attention() -> None:
    first, second = vector([0.0, 0.3, 1.0]), vector([0.2, 0.1, 0.5])
    assert torch.equal(hat.cumulative_attention(None, first), first)
    assert hat.cumulative_attention(first, second).tolist() == [0.2, 0.3, 1.0]
    flags = hat.cumulative_attention(torch.tensor([True, False]), torch.tensor([False, False]))
    assert flags.tolist() == [True, False]


SHARES = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


@given(st.lists(SHARES, min_size=1, max_size=4), st.lists(SHARES, min_size=1, max_size=4), st.integers(0, 2**31))
def test_conditioning_against_a_loop(outs: list[float], ins: list[float], seed: int) -> None:
    gradient = torch.randn(len(outs), len(ins), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = hat.condition_gradient(gradient, vector(outs).view(-1, 1), vector(ins).view(1, -1))
    for i, out in enumerate(outs):
        for j, into in enumerate(ins):
            assert found[i, j].item() == (1 - min(out, into)) * gradient[i, j].item()
    bias = hat.condition_gradient(gradient[:, 0], vector(outs))
    assert bias.tolist() == [(1 - out) * g for out, g in zip(outs, gradient[:, 0].tolist(), strict=True)]


def test_conditioning_clears_what_is_not_a_number() -> None:
    gradient = vector([math.inf, -math.inf, math.nan, 5.0, 5.0])
    for held in (vector([1, 1, 1, 1, 0]), torch.tensor([True, True, True, True, False])):
        found = hat.condition_gradient(gradient, held)
        assert found.tolist() == [0, 0, 0, 0, 5]
        assert not torch.signbit(found[:4]).any()


def test_conditioning_needs_an_attention() -> None:
    with pytest.raises(ValueError, match="at least one attention"):
        hat.condition_gradient(torch.ones(3))


# ---------------------------------------------------------------------------------------------------- regularisation


LAYERS = st.lists(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=4), min_size=1, max_size=3)


@given(LAYERS)
def test_regularisation_against_a_loop(layers: list[list[tuple[float, float]]]) -> None:
    above = below = 0.0
    for layer in layers:
        for a, earlier in layer:
            above += a * (1 - earlier)
            below += 1 - earlier
    attention = [vector([a for a, _ in layer]) for layer in layers]
    cumulative = [vector([b for _, b in layer]) for layer in layers]
    found = hat.attention_regularization(attention, cumulative)
    assert found.item() == pytest.approx(above / below if below else 0.0, rel=1e-12, abs=1e-15)
    assert torch.equal(found, hat.attention_regularization(torch.cat(attention), torch.cat(cumulative)))
    assert 0 <= found.item() <= 1 + 1e-12


def test_regularisation_before_the_first_task_and_when_all_is_used() -> None:
    a = vector([0.5, 1.0, 0.0]).requires_grad_()
    assert hat.attention_regularization(a).item() == 0.5
    full = hat.attention_regularization(a, torch.ones(3, dtype=torch.bool))
    assert full.item() == 0.0
    full.backward()
    assert a.grad is not None
    assert a.grad.tolist() == [0, 0, 0]
    assert hat.attention_regularization(torch.zeros(0)).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weight", [0.75, 5.0, 2.0**15])  # the paper's c, a large one, a scale of a GradScaler
def test_regularisation_of_a_full_network_has_no_gradient_however_it_is_weighed(
    dtype: torch.dtype, weight: float
) -> None:
    a = torch.tensor([0.5, 1.0, 0.0], dtype=dtype, requires_grad=True)
    (weight * hat.attention_regularization(a, torch.ones(3, dtype=torch.bool)).float()).backward()
    assert a.grad is not None
    assert a.grad.tolist() == [0, 0, 0]


def test_regularisation_takes_booleans() -> None:
    used = torch.tensor([True, False, False])
    assert hat.attention_regularization(vector([1.0, 1.0, 0.0]), used).item() == 0.5


# -------------------------------------------------------------------------------------------------- classes in turns


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_turned_logits_against_a_loop(turns: int, each: int, classes: int, samples: int, biased: bool) -> None:
    generator = torch.Generator().manual_seed(turns + 7 * each)
    features, weight, offsets = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((samples, turns * each), (classes, turns * each), (classes,))
    )
    bias = offsets if biased else None
    found = hat.turned_logits(features, weight, bias, turns)
    assert found.shape == (samples, turns, turns * classes)
    for n in range(samples):
        for s in range(turns):
            own = turns * features[n, s * each : (s + 1) * each]
            for c in range(classes):
                for r in range(turns):
                    said = weight[c, r * each : (r + 1) * each] @ own + (offsets[c] if biased else 0.0)
                    torch.testing.assert_close(found[n, s, turns * c + r], said)
    mean = found.unflatten(2, (classes, turns)).diagonal(dim1=1, dim2=3).mean(2)
    torch.testing.assert_close(mean, torch.nn.functional.linear(features, weight, bias))


# --------------------------------------------------------------------------------------------------------- contrast


@given(st.lists(st.integers(0, 2), max_size=7), st.floats(0.05, 2.0), st.integers(0, 99))
def test_supervised_contrast_against_a_loop(labels: list[int], temperature: float, seed: int) -> None:
    projected = torch.randn(len(labels), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z = [(row / row.norm()).tolist() for row in projected]
    terms = []
    for i, own in enumerate(labels):
        others = [a for a in range(len(labels)) if a != i]
        similar = {a: math.exp(sum(p * q for p, q in zip(z[i], z[a], strict=True)) / temperature) for a in others}
        positive = [a for a in others if labels[a] == own]
        if positive:
            terms.append(-sum(math.log(similar[p] / sum(similar.values())) for p in positive) / len(positive))
    expected = sum(terms) / len(terms) if terms else 0.0
    found = hat.supervised_contrast(projected, torch.tensor(labels, dtype=torch.int64), temperature)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_supervised_contrast_has_gradients_where_samples_are_alone() -> None:
    projected = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    hat.supervised_contrast(projected, torch.tensor([0, 0, 1, 2])).backward()
    assert projected.grad is not None
    assert projected.grad.isfinite().all()
    assert projected.grad.abs().sum() > 0


# -------------------------------------------------------------------------------------------------- forgetting ratio


def test_forgetting_ratio_by_hand() -> None:
    assert hat.forgetting_ratio(0.9, 0.5, 0.9) == 0.0
    assert hat.forgetting_ratio(0.5, 0.5, 0.9) == -1.0
    assert hat.forgetting_ratio(0.7, 0.5, 0.9) == pytest.approx(-0.5)
    assert hat.forgetting_ratio(0.95, 0.5, 0.9) == pytest.approx(0.125)
    assert hat.forgetting_ratio(0.3, 0.5, 0.9) == pytest.approx(-1.5)
    assert math.isnan(hat.forgetting_ratio(0.3, 0.5, 0.5))


def test_with_progress_goes_from_nought_to_one() -> None:
    assert list(hatrack.with_progress(["a", "b", "c"])) == [(0.0, "a"), (0.5, "b"), (1.0, "c")]
    assert list(hatrack.with_progress(["only"])) == [(1.0, "only")]
    assert list(hatrack.with_progress([])) == []
