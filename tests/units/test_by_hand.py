"""Operations without a rule are refused with a way out, and are exact when a rule is given by hand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hatrack
from hatrack import GuaranteeError, HATNetwork, InputError, UnsupportedError, units
from hatrack.errors import HatrackError
from hatrack.units import Role
from support.helpers import assert_poison_harmless, learn, logits

SEQUENCE = (4, 6)


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.first = nn.Linear(6, 20)
        self.memory = kind(20, 16, num_layers=2, dropout=0.1, batch_first=True)
        self.last = nn.Linear(32, 20)

    def forward(self, x: Tensor) -> Tensor:
        sequence, state = self.memory(torch.relu(self.first(x)))
        state = state[0] if isinstance(state, tuple) else state
        return torch.relu(self.last(torch.cat([sequence.mean(1), state[-1]], dim=-1)))


class Doubled(torch.autograd.Function):
    """A detour through another library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(2 * x.numpy())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(x) * self.scale


class Spectral(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x, dim=-1).real


class TwoInputs(nn.Module):
    """A layer of two inputs, one of them by name, with an operation that has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24, 12))

    def forward(self, x: Tensor, *, other: Tensor) -> Tensor:
        return torch.cdist(x, self.weight) - torch.cdist(other, self.weight)


class UsesTwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = nn.Linear(6, 12), nn.Linear(6, 12), TwoInputs()
        self.left_wide, self.right_wide = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left_wide(self.left(x).relu()), self.right_wide(self.right(x).relu())
        return torch.tanh(self.both(left, other=right))


class Nonlinear(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0e(x)


def dense_around(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), layer, nn.Linear(20, 20), nn.ReLU())


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Mapping[Any, units.Rule]]] = {
    "lstm by name": (Recurrent, SEQUENCE, {"memory": units.shared_layer()}),
    "gru by type": (lambda: Recurrent(nn.GRU), SEQUENCE, {nn.GRU: units.shared_layer()}),
    "a detour through numpy": (lambda: dense_around(Hidden()), (6,), {"2": units.unit_by_unit()}),
    "a mixing function in a module": (lambda: dense_around(Spectral()), (6,), {Spectral: units.shared_layer()}),
    "inputs by name": (UsesTwoInputs, (6,), {"both": units.shared_layer()}),
    "a function": (lambda: dense_around(Nonlinear()), (6,), {torch.special.i0e: units.unit_by_unit()}),
}


REFUSED = ("a detour through numpy",)
"""Cases that need their rule; others are understood without it, and then are finer."""


@pytest.mark.parametrize("case", CASES)
def test_refused_without_the_rule_and_exact_with_it(case: str) -> None:
    build, shape, rules = CASES[case]
    torch.manual_seed(0)
    if case in REFUSED:
        with pytest.raises((UnsupportedError, GuaranteeError)):
            HATNetwork(build(), torch.zeros(2, *shape))
    net = HATNetwork(build(), torch.zeros(2, *shape), rules=rules)
    samples, promised = {}, {}
    for number in range(3):
        task = f"task {number}"
        samples[task], _ = learn(net, task, number)
        promised[task] = logits(net, samples[task], task)
        for earlier, kept in promised.items():
            assert torch.equal(logits(net, samples[earlier], earlier), kept), earlier
    assert_poison_harmless(net, samples)


class Sparse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to_sparse().to_dense()


def test_the_refusal_names_the_layer_the_line_and_the_remedy() -> None:
    with pytest.raises(UnsupportedError) as refusal:
        HATNetwork(nn.Sequential(OrderedDict(first=nn.Linear(6, 4), memory=Sparse())), torch.zeros(2, 6))
    message = str(refusal.value)
    assert "there is no rule for this operation" in message
    assert "@hatrack.units.rule" in message
    assert "'memory' (Sparse)" in message
    assert "rules={'memory': hatrack.units.shared_layer()}" in message
    assert "test_by_hand.py:" in message
    assert "\n" not in message


def test_a_layer_by_hand_is_trained_by_the_first_task_alone() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Recurrent(), torch.zeros(2, *SEQUENCE), rules={"memory": units.shared_layer()})
    memory = [p for name, p in net.backbone.named_parameters() if name.startswith("memory")]
    assert all(
        net.units.roles[f"backbone.memory.{name}"] is Role.WHOLE for name, _ in net.backbone.memory.named_parameters()
    )
    before = [p.detach().clone() for p in memory]
    learn(net, "first")
    assert all(not torch.equal(p, b) for p, b in zip(memory, before, strict=True))
    before = [p.detach().clone() for p in memory]
    learn(net, "second", 1)
    assert all(torch.equal(p, b) for p, b in zip(memory, before, strict=True))


def test_rules_are_given_again_when_loading(tmp_path: Path) -> None:
    rules = {"memory": units.shared_layer()}
    torch.manual_seed(0)
    net = HATNetwork(Recurrent(), torch.zeros(2, *SEQUENCE), rules=rules)
    x, _ = learn(net, "a")
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", Recurrent(), rules=rules)
    assert torch.equal(logits(again, x, "a"), logits(net, x, "a"))
    with pytest.raises(HatrackError):
        hatrack.load(tmp_path / "net.hat", Recurrent())


def test_wrong_rules() -> None:
    with pytest.raises(InputError, match=r"module 'memroy'.*memory"):
        HATNetwork(Recurrent(), torch.zeros(2, *SEQUENCE), rules={"memroy": units.shared_layer()})
    with pytest.raises(InputError, match=r"must be a function, such as hatrack.units.shared_layer\(\)"):
        HATNetwork(Recurrent(), torch.zeros(2, *SEQUENCE), rules={"memory": "shared"})  # type: ignore[dict-item]
    with pytest.raises(UnsupportedError, match="does not have the shape of its first input"):
        HATNetwork(Recurrent(), torch.zeros(2, *SEQUENCE), rules={"memory": units.unit_by_unit()})
    with pytest.raises(GuaranteeError, match="a rule for one of its operations must be wrong"):
        HATNetwork(dense_around(Spectral()), torch.zeros(2, 6), rules={"2": units.unit_by_unit()})
    inside = nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20))
    with pytest.raises(UnsupportedError, match="statistics of '1' inside it would move"):
        HATNetwork(dense_around(inside), torch.zeros(2, 6), rules={"2": units.shared_layer()})
