"""Paths that settings, hooks, memory, precision or the number of samples decide on, beside shapes and modes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hatrack
from hatrack import HATNetwork, InputError, UnsupportedError
from hatrack.masks.calibration import Scorer
from support.changing_networks import KINDS, WIDTH, Condition, Mixing, Net, learn_batch, never, unexplained
from support.helpers import logits

UNUSUAL: dict[str, tuple[Condition, Callable[[Net], Tensor]]] = {
    "not contiguous": (lambda m, x: not x.is_contiguous(), lambda net: net(torch.randn(6, 8).t(), "a")),
    "gradients of inputs": (
        lambda m, x: x.requires_grad and not m.training,
        lambda net: net(torch.randn(8, 6, requires_grad=True), "a"),
    ),
    "autocast": (
        lambda m, x: torch.is_autocast_enabled("cpu"),
        lambda net: in_context(torch.autocast("cpu", torch.bfloat16), net),
    ),
    "inference mode": (
        lambda m, x: torch.is_inference_mode_enabled(),
        lambda net: in_context(torch.inference_mode(), net),
    ),
    "a setting": (lambda m, x: bool(m.mixed), lambda net: with_setting(net)),
    "many samples": (lambda m, x: len(x) > 7, lambda net: net(torch.randn(8, 6), "a")),
}


def in_context(context: contextlib.AbstractContextManager[Any], net: Net) -> Tensor:
    with context:
        return net(torch.randn(8, 6), "a")


def with_setting(net: Net) -> Tensor:
    net.backbone.mixed = True  # type: ignore[assignment]
    return net(torch.randn(8, 6), "a")


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_an_unusual_call_shows_is_refused_before_it_is_answered(name: str) -> None:
    where, call = UNUSUAL[name]
    torch.manual_seed(0)
    net = HATNetwork(Mixing(where), torch.zeros(1, 6))
    x = torch.randn(5, 6)
    learn_batch(net, "a", x)
    promised = logits(net, x, "a")
    net.eval()
    with pytest.raises(UnsupportedError, match="cannot be used"):
        call(net)
    net.backbone.mixed = False  # type: ignore[assignment]
    assert torch.equal(logits(net, x, "a"), promised)


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_calls_of_usual_networks_are_answered(name: str) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Mixing(never), torch.zeros(1, 6))
    learn_batch(net, "a", torch.randn(5, 6))
    net.eval()
    assert UNUSUAL[name][1](net).shape == (8, 2)


HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "before": lambda m: m.register_forward_pre_hook(lambda _, args: (args[0] + 1,)),
    "mixing before": lambda m: m.register_forward_pre_hook(lambda _, args: (unexplained(args[0]),)),
    "mixing after": lambda m: m.register_forward_hook(lambda _, args, out: unexplained(out)),
    "rolling after": lambda m: m.register_forward_hook(lambda _, args, out: out + out.roll(1, 1)),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_that_come_later_are_followed_too(name: str) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Mixing(never), torch.zeros(1, 6), s_max=50.0)
    x = torch.randn(5, 6)
    learn_batch(net, "a", x)
    HOOKS[name](net.backbone.out)
    if name != "before":
        with pytest.raises(UnsupportedError, match="cannot be used"):
            logits(net, x, "a")
        return
    with pytest.warns(UserWarning, match="hooks of out"):
        promised = logits(net, x, "a")
    learn_batch(net, "b", x, 1, lr=0.5)
    assert torch.equal(logits(net, x, "a"), promised)


def test_a_hook_that_only_looks_on_is_let_in() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Mixing(never), torch.zeros(1, 6))
    x, seen = torch.randn(5, 6), []
    learn_batch(net, "a", x)
    promised = logits(net, x, "a")
    net.backbone.out.register_forward_hook(lambda _, args, out: seen.append(out.shape))
    assert torch.equal(logits(net, x, "a"), promised)
    assert seen


def test_what_training_lets_pass_is_not_taken_for_known_in_evaluation() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Mixing(lambda m, x: x.dim() == 2 and x.shape[0] == 3), torch.zeros(1, 6))
    learn_batch(net, "a", torch.randn(5, 6))
    net.add_task("b", 2)
    net.train()(torch.randn(3, 6), "b")
    for _ in range(2):
        with pytest.raises(UnsupportedError, match="cannot be used"):
            net.eval()(torch.randn(3, 6), "a")


class InFours(nn.Module):
    """Runs on batches of multiples of four alone, and mixes units in long samples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.shift = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x) + self.shift).view(len(x) // 4, 4, *x.shape[1:-1], WIDTH).flatten(0, 1).mean(1)
        if x.shape[1] > 3:
            h = unexplained(h)
        return torch.relu(self.out(h))


def test_networks_that_do_not_run_on_two_samples_are_looked_at_with_all() -> None:
    torch.manual_seed(0)
    net = HATNetwork(InFours(), torch.zeros(4, 2, 6))
    learn_batch(net, "a", torch.randn(8, 2, 6))
    with pytest.raises(UnsupportedError, match="cannot be used"):
        logits(net, torch.randn(8, 5, 6), "a")


class EitherNorm(nn.Module):
    """Computes the same by one of two modules: gates are before modules."""

    def __init__(self, where: Condition) -> None:
        super().__init__()
        self.a, self.out, self.where = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), where
        self.one = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.other = nn.LayerNorm(WIDTH, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return torch.relu(self.out(self.one(h) if self.where(self, x) else self.other(h)))


@pytest.mark.parametrize("where", [lambda m, x: torch.is_grad_enabled(), lambda m, x: len(x) > 4])
def test_a_module_in_the_place_of_another_takes_another_path(where: Condition) -> None:
    torch.manual_seed(0)
    net = HATNetwork(EitherNorm(where), torch.zeros(2, 6), s_max=50.0)
    net.analyze(torch.zeros(8, 6))
    x = torch.randn(8, 6)
    learn_batch(net, "a", x)
    promised = [logits(net, x, "a"), logits(net, x[:2], "a"), net.eval()(x, "a").detach()]
    learn_batch(net, "b", x, 1)
    now = [logits(net, x, "a"), logits(net, x[:2], "a"), net.eval()(x, "a").detach()]
    assert all(map(torch.equal, now, promised))


class Chosen(nn.Module):
    """Permutes units by a table that the number of samples chooses, or by that number itself, before a sum."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.out, self.how = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), how
        self.tables = [torch.arange(WIDTH), torch.arange(WIDTH).roll(3)]

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        moved = h.roll(len(x) // 4, 1) if self.how == "number" else h[:, self.tables[int(len(x) > 4)]]
        return torch.relu(self.out(h + moved))


@pytest.mark.parametrize("how", ["number", "table"])
def test_constants_that_the_number_of_samples_chooses_make_another_path(how: str) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Chosen(how), torch.zeros(2, 6))
    learn_batch(net, "a", torch.randn(3, 6))
    with pytest.raises(UnsupportedError, match="cannot be used any more: units would be others"):
        logits(net, torch.randn(8, 6), "a")


class InHalfPrecision(nn.Module):
    """Reads units by a layer of its own under autocast alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.out = nn.Linear(6, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return torch.relu(self.out(self.norm(h) if torch.is_autocast_enabled("cpu") else h))


def test_precision_is_part_of_what_a_file_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = HATNetwork(InHalfPrecision(), torch.zeros(1, 6), s_max=50.0)
    with torch.autocast("cpu", torch.bfloat16):
        net.analyze(torch.zeros(2, 6))
    x = torch.randn(8, 6)
    learn_batch(net, "a", x)

    def answers(net: HATNetwork) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return logits(net, x, "a"), net.eval()(x[:3], "a").detach()

    promised = answers(net)
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", InHalfPrecision())
    assert [reader.module for reader in again.units.readers] == [reader.module for reader in net.units.readers]
    learn_batch(again, "b", x, 1)
    assert all(map(torch.equal, answers(again), promised))


class Reads(nn.Module):
    """Reads units by a norm for inputs of one length, and something else by it for those of another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x).mean(1))
        if x.shape[1] == 3:
            h = h * self.norm(x.mean((1, 2)).unsqueeze(1).expand(-1, WIDTH) * torch.arange(WIDTH))
        return torch.relu(self.out(self.norm(h) if x.shape[1] == 4 else h))


def test_units_that_are_read_in_new_places_must_not_change_any_kind_of_old_answer() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Reads(), torch.zeros(1, 2, 6))
    net.analyze(torch.zeros(2, 3, 6))
    samples = [torch.randn(4, n, 6) for n in (2, 3)]
    learn_batch(net, "a", samples[1])
    promised = [logits(net, x, "a") for x in samples]
    with contextlib.suppress(UnsupportedError):
        logits(net, torch.randn(4, 4, 6), "a")
    assert all(torch.equal(logits(net, x, "a"), old) for x, old in zip(samples, promised, strict=True))


def test_a_norm_that_only_other_lengths_reach_is_refused_by_its_name() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.out = nn.Linear(6, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x).mean(1))
            return torch.relu(self.out(self.norm(h) if x.shape[1] > 2 else h))

    torch.manual_seed(0)
    net = HATNetwork(Late(), torch.zeros(1, 2, 6))
    learn_batch(net, "a", torch.randn(4, 2, 6))
    with pytest.raises(UnsupportedError, match=r"a copy of their own of norm.*net\.analyze"):
        logits(net, torch.randn(4, 5, 6), "a")


def test_recognising_looks_at_calls_as_evaluation_does() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Mixing(lambda m, x: len(x) == 3), torch.zeros(1, 6))
    learn_batch(net, "a", torch.randn(5, 6))
    with pytest.raises(UnsupportedError, match="cannot be used"):
        net.train().infer(torch.randn(3, 6), Scorer.ENERGY, calibrated=False)


def test_inference_mode_makes_nothing_that_cannot_be_trained() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Mixing(never), torch.zeros(1, 6))
    x = torch.randn(5, 6)
    learn_batch(net, "a", x)
    promised = logits(net, x, "a")
    with torch.inference_mode():
        net.load_state_dict(net.state_dict())
        net.check()
        net.add_task("b", 2)
        net.forget("b")
    learn_batch(net, "b", x, 1)
    assert torch.equal(logits(net, x, "a"), promised)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_in_inference_mode_first_is_followed_as_elsewhere(kind: Any) -> None:
    torch.manual_seed(0)
    net = kind(Reads(), torch.zeros(1, 2, 6))
    samples = [torch.randn(4, n, 6) for n in (2, 5, 7)]
    learn_batch(net, "a", samples[0])
    net.eval()
    with torch.inference_mode():
        promised = [net(x, "a").clone() for x in samples]
        with pytest.raises(InputError, match="the input has shape"):
            net(torch.randn(4, 2, 5), "a")
    learn_batch(net, "b", samples[1], 1)
    net.eval()
    with torch.inference_mode():
        assert all(torch.equal(net(x, "a"), old) for x, old in zip(samples, promised, strict=True))


def test_values_that_are_too_wide_for_the_protection_are_refused() -> None:
    backbone = Mixing(never)
    backbone.wide = nn.Parameter(torch.zeros(3, dtype=torch.complex128))
    with pytest.raises(UnsupportedError, match="wide is of complex128"):
        HATNetwork(backbone, torch.zeros(1, 6))


WITHOUT_A_COMPILER = """
import sys, torch
from torch import nn
from hatrack import HATNetwork, WeightMaskedNetwork

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(9, 6), nn.Linear(6, 8)

    def forward(self, x):
        return torch.relu(self.out(self.table(x))).mean(1)

for kind in (HATNetwork, WeightMaskedNetwork):
    net = kind(Words(), torch.zeros(1, 4, dtype=torch.int64))
    net.add_task("a", 2)
    net(torch.zeros(3, 7, dtype=torch.int64), "a")
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""


@pytest.mark.slow
def test_attaching_and_asking_import_no_compiler() -> None:
    """It takes seconds, in every process."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_A_COMPILER], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


class KeepsAGraph(nn.Module):
    """Keeps what it has computed as an attribute, which cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x).mean(1))
        self.last = h
        return torch.relu(self.out(h))


def test_a_graph_that_a_module_keeps_does_not_stop_the_test_of_a_new_kind_of_call() -> None:
    torch.manual_seed(0)
    net = HATNetwork(KeepsAGraph(), torch.zeros(2, 4, 6))
    net.add_task("a", 2)
    net(torch.randn(3, 4, 6), "a").sum().backward()
    assert net.backbone.last.grad_fn is not None
    assert net(torch.randn(3, 9, 6), "a").shape == (3, 2)
