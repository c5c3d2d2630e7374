"""State that is no parameter: every task's own where it is a buffer, refused or harmless where it is an attribute."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hatrack
from hatrack import GuaranteeError, HATNetwork, UnsupportedError, WeightMaskedNetwork
from support.changing_networks import WIDTH, Condition, learn_batch, unexplained
from support.helpers import logits
from support.marks import slow_but, slow_unless

KINDS = [HATNetwork, WeightMaskedNetwork]


class Stateful(nn.Module):
    """Two layers, and some state that a forward pass moves."""

    def __init__(self, state: str) -> None:
        super().__init__()
        self.first, self.second, self.state = nn.Linear(6, 20), nn.Linear(20, 12), state
        self.query = nn.Parameter(torch.randn(1, 20))
        self.kept: Any = None
        self.table: dict[int, Tensor] = {}
        self.calls, self.seen = 0, []
        self.plain = torch.zeros(20)
        self.register_buffer("mean", torch.zeros(20))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        if self.training:
            new = h.detach().mean(0)
            match self.state:
                case "buffer in place":
                    self.mean.lerp_(new, 0.1)
                case "buffer replaced":
                    self.mean = 0.9 * self.mean + 0.1 * new
                case "attribute":
                    self.plain = 0.9 * self.plain + 0.1 * new
                case "attribute in place":
                    self.plain.lerp_(new, 0.1)
        match self.state:
            case "counter":
                self.calls += 1
            case "counter buffer":
                self.count += 1
            case "list":
                self.seen.append(len(x))
        out = torch.relu(self.second(h - self.mean - self.plain))
        constant = self.second(self.query * 1.0)
        if self.state == "kept in evaluation" and not self.training:
            if self.kept is None:
                self.kept = constant
            return out + self.kept
        if self.state == "table in evaluation" and not self.training:
            return out + self.table.setdefault(0, constant)
        return out + constant


OWN = ["buffer in place", "buffer replaced", "counter buffer"]
HARMLESS = ["counter", "list"]
REFUSED = ["attribute", "attribute in place", "kept in evaluation", "table in evaluation"]


def learn_stateful(net: Any, task: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    net.add_task(task, 2)
    optimizer = net.protect(torch.optim.Adam(net.task_parameters(task), lr=1e-2))
    net.train()
    for step in range(6):
        x = 3 * torch.randn(16, 6, generator=generator) + seed
        net.anneal(step / 5)
        optimizer.zero_grad()
        F.cross_entropy(net(x, task), torch.arange(16) % 2).backward()
        optimizer.step()
    net.consolidate(task)
    return torch.randn(9, 6, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", slow_but(["buffer in place", "counter"], [*OWN, *HARMLESS]))
def test_old_outputs_keep_their_bits(kind: Any, state: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = kind(Stateful(state), torch.zeros(1, 6))
    samples, promised = {}, {}
    for seed, task in enumerate("abc"):
        samples[task] = learn_stateful(net, task, seed)
        promised[task] = logits(net, samples[task], task)
        assert all(torch.equal(logits(net, samples[t], t), kept) for t, kept in promised.items())
    net.check()
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", Stateful(state))
    for each in (net, again):
        assert all(torch.equal(logits(each, samples[t], t), kept) for t, kept in promised.items())
        small = each.extract("a", samples["a"])
        torch.testing.assert_close(small(samples["a"]), promised["a"], rtol=0, atol=1e-5)
    net.forget("b")
    assert torch.equal(logits(net, samples["c"], "c"), promised["c"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_has_its_own_and_moves_no_other(kind: Any) -> None:
    torch.manual_seed(0)
    backbone = Stateful("buffer in place")
    net = kind(backbone, torch.zeros(1, 6))
    learn_stateful(net, "a", 0)
    learn_stateful(net, "b", 5)
    first, second = (state.moving.values[0] for state in net.tasks)
    assert not torch.equal(first, second)
    assert first.any()
    assert not backbone.mean.any(), "the backbone's own is what tasks start from"
    assert any(value is second for value in net.task_buffers("b"))
    before = first.clone()
    net.train()
    net(torch.randn(5, 6), "a")
    assert torch.equal(first, before), "a consolidated task was asked in training mode"


@pytest.mark.parametrize("state", REFUSED)
def test_state_that_outputs_depend_on_is_refused_with_the_remedy(state: str) -> None:
    backbone = Stateful(state)
    with pytest.raises(UnsupportedError, match=r"running the backbone changes .*register_buffer"):
        HATNetwork(backbone, torch.zeros(1, 6))
    assert backbone.kept is None
    assert not backbone.table
    assert not backbone.plain.any()
    backbone.state = "nothing"
    HATNetwork(backbone, torch.zeros(1, 6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", [*OWN, *HARMLESS])
def test_attaching_leaves_the_state_as_it_was(kind: Any, state: str) -> None:
    backbone = Stateful(state)
    kind(backbone, torch.zeros(1, 6))
    assert (backbone.calls, backbone.seen, int(backbone.count)) == (0, [], 0)
    assert not backbone.mean.any()


class Keeping(nn.Module):
    """Moves a mean that is kept in one of several ways, which the result depends on."""

    def __init__(self, kept: str, when: Condition) -> None:
        super().__init__()
        self.a, self.out, self.kept, self.when = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), kept, when
        self.plain, self.helper, self.array = torch.zeros(6), SimpleNamespace(mean=torch.zeros(6)), np.zeros(6)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, :6]
        if self.when(self, x):
            match self.kept:
                case "attribute":
                    self.plain = 0.9 * self.plain + 0.1 * x.detach().mean(0)
                case "helper":
                    self.helper.mean = 0.9 * self.helper.mean + 0.1 * x.detach().mean(0)
                case "array":
                    self.array[:] = 0.9 * self.array + 0.1
        shift = self.plain + self.helper.mean + torch.as_tensor(self.array).float()
        return torch.relu(self.out(torch.relu(self.a(x - shift))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", ["attribute", "helper", "array"])
def test_state_that_moves_is_seen_with_an_example_of_zeros(kept: str, kind: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"running the backbone changes (plain|helper|array), and its outputs"):
        kind(Keeping(kept, lambda m, x: m.training), torch.zeros(1, 6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", ["attribute", "helper", "array"])
def test_state_that_only_some_calls_move_is_refused_at_such_a_call(kept: str, kind: Any) -> None:
    torch.manual_seed(0)
    net = kind(Keeping(kept, lambda m, x: len(x) > 4), torch.zeros(1, 6))
    x = torch.randn(4, 6)
    learn_batch(net, "a", x)
    promised = logits(net, x, "a")
    with pytest.raises(UnsupportedError, match="running the backbone changes"):
        logits(net, torch.randn(7, 6), "a")
    assert torch.equal(logits(net, x, "a"), promised)


class Table(nn.Module):
    """Keeps a table of positions as a buffer, which is computed anew for inputs that are longer than it."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("pos", torch.zeros(1, 1, WIDTH), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        if self.pos.shape[1] < x.shape[1]:
            self.pos = torch.arange(x.shape[1]).view(1, -1, 1).sin().expand(1, -1, WIDTH).clone()
        return torch.relu(self.out(torch.relu(self.a(x) + self.pos[:, : x.shape[1]]))).mean(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("persistent", slow_unless(lambda persistent: persistent, [True, False]))
def test_tables_that_grow_with_the_input_are_no_state(persistent: bool, kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = kind(Table(persistent), torch.zeros(1, 5, 6))
    samples = [torch.randn(4, n, 6) for n in (5, 9)]
    learn_batch(net, "a", samples[0])
    promised = [logits(net, x, "a") for x in samples]
    learn_batch(net, "b", torch.randn(4, 12, 6), 1)
    net.check()
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", Table(persistent))
    for each in (net, again):
        assert all(torch.equal(logits(each, x, "a"), old) for x, old in zip(samples, promised, strict=True))


class Reached(nn.Module):
    """Reaches a layer with a moving buffer by a list, or by a bound method, that was made with the original."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)
            self.register_buffer("mean", torch.zeros(WIDTH))

        def forward(self, h: Tensor) -> Tensor:
            h = torch.relu(self.layer(h))
            if self.training:
                self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
            return h - self.mean

    def __init__(self, by: str) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, WIDTH), self.Counting()
        self.steps: Any = {"list": [self.c], "dictionary": {"c": self.c}, "method": self.c.forward}[by]

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        step = self.steps
        return step[0](h) if isinstance(step, list) else step["c"](h) if isinstance(step, dict) else step(h)


@pytest.mark.parametrize("by", ["list", "dictionary"])
def test_layers_that_are_reached_in_other_ways_have_twins_too(by: str) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Reached(by), torch.zeros(2, 6))
    x = torch.randn(8, 6)
    learn_batch(net, "a", x)
    promised = logits(net, x, "a")
    learn_batch(net, "b", 3 * torch.randn(8, 6), 1)
    assert torch.equal(logits(net, x, "a"), promised)


class Switching(nn.Module):
    """Mixes units once a state that some calls move has come far enough."""

    def __init__(self, state: str, when: Condition) -> None:
        super().__init__()
        self.a, self.out, self.state, self.when = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), state, when
        self.started, self.calls = False, 0
        self.register_buffer("flag", torch.zeros((), dtype=torch.bool))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x)) + 1.0
        match self.state:
            case "truth value":
                switched = self.started
            case "counter":
                switched = self.calls > 4
            case "flag buffer":
                switched = bool(self.flag)
            case _:
                switched = int(self.count) > 4
        if self.when(self, x):
            self.move()
        return torch.relu(self.out(unexplained(h) if switched else h))

    def move(self) -> None:
        match self.state:
            case "truth value":
                self.started = True
            case "counter":
                self.calls += 1
            case "flag buffer":
                self.flag.fill_(True)
            case _:
                self.count += 1


WHEN: dict[str, Condition] = {
    "in training": lambda m, x: m.training,
    "many samples": lambda m, x: len(x) > 7,
    "always": lambda m, x: True,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("state", ["truth value", "counter", "flag buffer", "counter buffer"])
def test_a_path_that_moving_state_decides_on_is_refused_or_every_tasks_own(state: str, when: str, kind: Any) -> None:
    torch.manual_seed(0)
    x, many = torch.randn(5, 6), torch.randn(9, 6)
    own = kind is WeightMaskedNetwork and "buffer" in state and when == "in training"
    try:
        net = kind(Switching(state, WHEN[when]), torch.zeros(1, 6))
        learn_batch(net, "a", x)
        promised = logits(net, x, "a")
        learn_batch(net, "b", many, 1, lr=0.5)
        logits(net, many, "a")
    except (UnsupportedError, GuaranteeError):
        assert not own
    else:
        assert kind is WeightMaskedNetwork
        assert "buffer" in state
        assert torch.equal(logits(net, x, "a"), promised)


class Caching(nn.Module):
    """Keeps a number that it has computed from its weights, for every number of samples or once."""

    def __init__(self, once: bool) -> None:
        super().__init__()
        self.a, self.b, self.once = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), once
        self.cache: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = 0 if self.once else len(x)
        if key not in self.cache:
            self.cache[key] = self.a.weight.detach().norm()
        return torch.relu(self.b(torch.relu(self.a(x) / self.cache[key])))


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
def test_what_is_kept_of_weights_is_refused(kind: Any, once: bool) -> None:
    with pytest.raises(UnsupportedError, match=r"running the backbone changes .*cache.*compute it anew in every pass"):
        kind(Caching(once), torch.zeros(2, 6))
