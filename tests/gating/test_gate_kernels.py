"""Kernels for a GPU compute what the equations say."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hatrack import functional
from hatrack.functional import Compensation, GateFunction, compensated_gate
from hatrack.gating import gate_kernels
from hatrack.gating.gate_kernels import GATE, GRADIENT, LIMITS, gate_in_training
from support.cpu_kernels import COMPILER, compiled

E = torch.cat([torch.linspace(-6, 6, 4001), torch.tensor([0.0, -0.0, 1e-30, float("nan")])])
SCALES = (1 / 400, 0.3, 1.0, 8.3, 20.0, 100.0, 400.0, 800.0)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="there is no compiler for C++ on this machine"),
]


def test_gates_are_those_of_the_equation(tmp_path: Path) -> None:
    kernel = compiled(GATE, "hat_gate", 1, 2, tmp_path)
    for scale in SCALES:
        found = torch.tensor(kernel([E.tolist()], [scale, functional.GATE_FLUSH]))
        expected = functional.gate(E, scale)
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=0.0, equal_nan=True)
        assert torch.equal(found == 0, expected == 0)
        assert torch.equal(found == 1, expected == 1)


@pytest.mark.parametrize("s_max", [1.0, 50.0, 400.0])
def test_slopes_are_those_of_the_equation(s_max: float, tmp_path: Path) -> None:
    kernel = compiled(GRADIENT, "hat_gradient", 2, 5, tmp_path)
    gradient = torch.randn(len(E), generator=torch.Generator().manual_seed(0))
    for scale in (s for s in SCALES if s <= s_max):
        e = E.clone().requires_grad_()
        compensated_gate(e, scale, s_max, Compensation.EXACT).backward(gradient)
        found = torch.tensor(kernel([gradient.tolist(), E.tolist()], [scale, s_max, *LIMITS.values()]))
        torch.testing.assert_close(found, e.grad, rtol=2e-5, atol=0.0, equal_nan=True)


def test_numbers_reach_the_kernels_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's jiterator has it: the tensors first, then the numbers in the order in which they were named."""

    def create(code: str, **numbers: float) -> Callable[..., Tensor]:
        name = "hat_gradient" if code is GRADIENT else "hat_gate"
        tensors = 2 if code is GRADIENT else 1
        kernel = compiled(code, name, tensors, len(numbers), tmp_path)

        def run(*given: Tensor, **changed: float) -> Tensor:
            assert set(changed) == set(numbers)
            return torch.tensor(kernel([each.tolist() for each in given], [changed[name] for name in numbers]))

        return run

    monkeypatch.setattr(torch.cuda.jiterator, "_create_jit_fn", create)
    monkeypatch.setattr(gate_kernels, "_compiled", functools.cache(gate_kernels._compiled.__wrapped__))
    found, expected = E[:-1].clone().requires_grad_(), E[:-1].clone().requires_grad_()
    scale = torch.tensor(20.0, dtype=torch.float64)
    gates = gate_kernels._FusedGate.apply(found, scale, 400.0), compensated_gate(expected, scale, 400.0)
    torch.testing.assert_close(*gates, rtol=2e-6, atol=0.0)
    for gate in gates:
        gate.sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=2e-5, atol=0.0)


@pytest.mark.parametrize("function", GateFunction)
def test_other_devices_and_gates_are_left_to_torch(function: GateFunction) -> None:
    found, expected = E[:-1].clone().requires_grad_(), E[:-1].clone().requires_grad_()
    gate_in_training(found, 20.0, 400.0, Compensation.EXACT, function).sum().backward()
    compensated_gate(expected, 20.0, 400.0, Compensation.EXACT, function).sum().backward()
    assert torch.equal(found.grad, expected.grad)
