"""Calls that differ from the example: of other lengths and sizes, of one sample, in another mode, on another path."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import hatrack
from hatrack import HATNetwork, UnsupportedError, units
from support.changing_networks import unexplained
from support.helpers import assert_poison_harmless, logits
from support.marks import in_turn, slow_unless

WIDTH = 16


class Positions(nn.Module):
    """Adds a part of a table of positions, in one of several ways."""

    def __init__(self, part: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave, self.part = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), part
        self.pos = nn.Parameter(0.5 * torch.randn(1, 12, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.enter(x) + self.part(self.pos, x.shape[1]))
        return torch.relu(self.leave(h)).mean(1)


PARTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "slice": lambda pos, n: pos[:, :n],
    "narrow": lambda pos, n: pos.narrow(1, 0, n),
    "index_select": lambda pos, n: pos.index_select(1, torch.arange(n)),
    "flip": lambda pos, n: pos.flip(1)[:, :n],
    "split": lambda pos, n: pos.split([n, 12 - n], 1)[0],
}


class OverTime(nn.Module):
    """A recurrent cell written by hand, whose first state is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(6 + WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), WIDTH)
        for t in range(x.shape[1]):
            h = torch.tanh(self.c(torch.cat([x[:, t], h], 1)))
        return h


class SecondLayer(nn.Module):
    """Uses one more layer for long inputs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x).mean(1))
        if x.shape[1] > 5:
            h = torch.relu(self.b(h))
        return torch.relu(self.out(h))


class Centred(nn.Module):
    """Subtracts a number that is read of units, where a condition holds."""

    def __init__(self, where: Callable[[nn.Module, Tensor], bool]) -> None:
        super().__init__()
        self.a, self.out, self.where = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), where

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x).mean(1))
        if self.where(self, x):
            h = unexplained(h)
        return torch.relu(self.out(h))


def train_on_batches(net: Any, task: str, batches: Iterable[Tensor], lr: float = 0.05) -> None:
    """Learn a task with AdamW, a step per batch of eight, and consolidate it."""
    net.add_task(task, 2)
    optimizer = net.protect(torch.optim.AdamW(net.task_parameters(task), lr=lr, weight_decay=0.1))
    net.train()
    batches = list(batches)
    for step, x in enumerate(batches):
        net.anneal(step / (len(batches) - 1))
        optimizer.zero_grad()
        (F.cross_entropy(net(x, task), torch.arange(8) % 2) + 0.1 * net.regularization()).backward()
        optimizer.step()
    net.consolidate(task)


def train_on(net: Any, task: str, lengths: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = (torch.randn(8, lengths[step % len(lengths)], 6, generator=generator) for step in range(12))
    train_on_batches(net, task, batches, lr=0.02)


HOLD: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{name: (lambda part=part: Positions(part), 5) for name, part in PARTS.items()},
    "over time": (OverTime, 1),
    "over time, two steps": (OverTime, 2),
    "a second layer": (SecondLayer, 5),
}


FIRST = {"the example's length": (5,), "another": (10,), "two others": (3, 7)}


@pytest.mark.parametrize(
    ("name", "first"), slow_unless(lambda name, first: name == "slice", in_turn(HOLD, tuple(FIRST)))
)
def test_old_outputs_of_every_length_keep_their_bits(name: str, first: str, tmp_path: Path) -> None:
    build, length = HOLD[name]
    torch.manual_seed(0)
    net = HATNetwork(build(), torch.zeros(1, length, 6), s_max=50.0)
    if name == "a second layer":  # with which the others share their gates
        net.analyze(torch.zeros(1, 9, 6))
    train_on(net, "a", FIRST[first], 0)
    samples = {n: torch.randn(4, n, 6) for n in (1, 2, 5, 9, 12)}
    promised = {n: logits(net, x, "a") for n, x in samples.items()}
    alone = {n: logits(net, x[:1], "a") for n, x in samples.items()}
    for seed, task in enumerate(("b", "c"), 1):
        train_on(net, task, (4, 11, 1), seed)
        for n, x in samples.items():
            assert torch.equal(logits(net, x, "a"), promised[n]), (task, n)
            assert torch.equal(logits(net, x[:1], "a"), alone[n]), (task, n)
    net.check()
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", build())
    train_on(again, "d", (6,), 5)
    assert all(torch.equal(logits(again, x, "a"), promised[n]) for n, x in samples.items())


AT_ONCE: dict[str, Callable[[nn.Module, Tensor], bool]] = {
    "several samples": lambda m, x: len(x) > 1,
    "one sample": lambda m, x: len(x) == 1,
    "evaluation": lambda m, x: not m.training,
    "gradients": lambda m, x: torch.is_grad_enabled() and not m.training,
}


@pytest.mark.parametrize("where", AT_ONCE)
@pytest.mark.parametrize("samples", [1, 3])
def test_what_a_mode_or_a_number_of_samples_shows_is_refused_when_attaching(where: str, samples: int) -> None:
    backbone = Centred(AT_ONCE[where])
    with pytest.raises(UnsupportedError, match=r"values of the input or of units.*changing_networks\.py"):
        HATNetwork(backbone, torch.zeros(samples, 4, 6))
    HATNetwork(Centred(lambda m, x: False), torch.zeros(samples, 4, 6))


def test_what_a_length_shows_is_refused_at_the_first_such_call_and_old_answers_stay() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Centred(lambda m, x: x.shape[1] > 8), torch.zeros(2, 4, 6))
    train_on(net, "a", (4, 5), 0)
    x = torch.randn(4, 5, 6)
    promised = logits(net, x, "a")
    for _ in range(2):
        with pytest.raises(
            UnsupportedError, match=r"inputs \(N, 9, 6\) of float32 in evaluation mode .* cannot be used"
        ):
            logits(net, torch.randn(4, 9, 6), "a")
    train_on(net, "b", (6,), 1)
    assert torch.equal(logits(net, x, "a"), promised)


class Skipping(nn.Module):
    """Adds two layers for long inputs alone: their units are the same ones then."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, WIDTH), nn.Linear(6, WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).mean(1), self.b(x).mean(1)
        if x.shape[1] > 5:
            a = a + b
        return torch.relu(self.out(torch.relu(torch.cat([a, b], 1))))


def test_what_contradicts_the_masks_of_tasks_is_refused_with_a_remedy_that_works() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Skipping(), torch.zeros(2, 4, 6), s_max=50.0)
    train_on(net, "a", (4,), 0)
    x = torch.randn(4, 4, 6)
    promised = logits(net, x, "a")
    with pytest.raises(UnsupportedError, match=r"units would be others.*net\.analyze\(example\)"):
        logits(net, torch.randn(4, 9, 6), "a")
    assert torch.equal(logits(net, x, "a"), promised)
    other = HATNetwork(Skipping(), torch.zeros(2, 4, 6), s_max=50.0)
    other.analyze(torch.zeros(1, 9, 6))
    train_on(other, "a", (4, 9), 0)
    kept = {n: logits(other, torch.ones(3, n, 6), "a") for n in (4, 9)}
    train_on(other, "b", (4, 9), 1)
    assert all(torch.equal(logits(other, torch.ones(3, n, 6), "a"), each) for n, each in kept.items())


class LookedUp(nn.Module):
    """A table of the user's own, of which the input chooses rows."""

    def __init__(self, look_up: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.out = nn.Parameter(torch.randn(9, WIDTH)), nn.Linear(WIDTH, WIDTH)
        self.look_up = look_up

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.out(torch.relu(self.look_up(self.table, x)).mean(1)))


LOOK_UPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index": lambda table, x: table[x],
    "index_select": lambda table, x: table.index_select(0, x.flatten()).unflatten(0, x.shape),
    "embedding": lambda table, x: F.embedding(x, table),
    "a part": lambda table, x: F.embedding(x, table[:7]),
}


@pytest.mark.parametrize("name", LOOK_UPS)
def test_rows_that_the_example_does_not_choose_are_protected_like_those_that_it_does(name: str) -> None:
    torch.manual_seed(0)
    net = HATNetwork(LookedUp(LOOK_UPS[name]), torch.zeros(2, 3, dtype=torch.int64), s_max=50.0)
    x = torch.randint(0, 7, (8, 3))
    promised = {}
    for task in ("a", "b", "c"):
        train_on_batches(net, task, [x for _ in range(8)])
        promised[task] = logits(net, x, task)
        assert all(torch.equal(logits(net, x, each), kept) for each, kept in promised.items())
        assert not net.protected()["backbone.table"].all(), "whole rows are frozen, though tasks use some units"


class Choosing(nn.Module):
    """Makes the same calls in every mode, but hands on another of two values, or reduces along another axis."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.a, self.b, self.by = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), by

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if self.by == "axis":
            return torch.relu(self.b(h.softmax(1 if self.training else 2))).mean(1)
        mixed = h.softmax(2)
        return torch.relu(self.b(h if self.training else mixed)).mean(1)


@pytest.mark.parametrize("by", ["axis", "value"])
def test_modes_that_make_the_same_calls_with_other_things(by: str) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Choosing(by), torch.zeros(2, 4, 6))
    assert any(reader.module == "a" for reader in net.units.readers), "evaluation mixes units behind this layer"
    net.add_task("a", 2)
    net.consolidate("a")
    assert_poison_harmless(net, {"a": torch.randn(3, 4, 6)})
    few, many = (
        units.path_of(Choosing(by), torch.zeros(2, 4, 6), training=True),
        units.path_of(Choosing(by), torch.zeros(2, 4, 6), training=False),
    )
    assert few.is_same(few)
    assert not few.is_same(many)
    assert few.is_same(units.path_of(Choosing(by), torch.zeros(9, 4, 6), training=True))


@pytest.mark.parametrize("from_", [3, 17])
def test_what_a_number_of_samples_shows_is_refused_at_the_first_such_call(from_: int) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Centred(lambda m, x: len(x) >= from_), torch.zeros(2, 4, 6))
    net.add_task("a", 2)
    net.consolidate("a")
    promised = logits(net, torch.ones(2, 4, 6), "a")
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=r"inputs \(N = 20, 4, 6\) .* cannot be used"):
            logits(net, torch.randn(20, 4, 6), "a")
        with pytest.raises(UnsupportedError, match="cannot be used"), torch.no_grad():
            net.eval().infer(torch.randn(20, 4, 6), hatrack.Scorer.ENERGY, calibrated=False)
    assert torch.equal(logits(net, torch.ones(2, 4, 6), "a"), promised)


def test_layers_for_many_samples_alone_are_protected() -> None:
    class More(SecondLayer):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x).mean(1))
            return torch.relu(self.out(torch.relu(self.b(h)) if len(x) > 6 else h))

    torch.manual_seed(0)
    net = HATNetwork(More(), torch.zeros(2, 4, 6), s_max=50.0)
    net.analyze(torch.zeros(8, 4, 6))
    train_on(net, "a", (4,), 0)  # batches of eight
    samples = {n: torch.randn(n, 4, 6) for n in (1, 3, 8, 11)}
    promised = {n: logits(net, x, "a") for n, x in samples.items()}
    train_on(net, "b", (4,), 1)
    assert all(torch.equal(logits(net, x, "a"), promised[n]) for n, x in samples.items())


class Hidden(nn.Module):
    """Keeps a layer where torch does not see it, and uses it for long inputs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, WIDTH)
        self.layers = [nn.Linear(WIDTH, WIDTH)]

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x).mean(1))
        return torch.relu(self.layers[0](h)) if x.shape[1] > 5 else h


class Listed(Hidden):
    """Reaches a layer that torch knows by a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.b = self.layers[0]


class Enclosed(Hidden):
    """Reaches a layer that torch knows by a function that holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.b = self.layers[0]
        self.layers = [lambda h: self.b(h)]


def test_layers_that_are_in_a_plain_list_too_are_masked() -> None:
    torch.manual_seed(0)
    net = hatrack.WeightMaskedNetwork(Listed(), torch.zeros(2, 4, 6))
    x = torch.randn(3, 9, 6)
    train_on(net, "a", (9,), 0)
    promised = logits(net, x, "a")
    train_on(net, "b", (9, 4), 1)
    assert torch.equal(logits(net, x, "a"), promised)


@pytest.mark.parametrize("build", [Hidden, Enclosed])
def test_masks_of_weights_that_another_length_goes_past_are_refused(build: Any) -> None:
    net = hatrack.WeightMaskedNetwork(build(), torch.zeros(2, 4, 6))
    net.add_task("a", 2)
    assert net(torch.randn(3, 5, 6), "a").shape == (3, 2)
    with pytest.raises(UnsupportedError, match="reached past the masks"):
        net(torch.randn(3, 9, 6), "a")


class Cells(nn.Module):
    """Layers whose weights are computed from others, or that take numbers for categories."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.table, self.q = kind, nn.Embedding(11, 6), nn.Parameter(torch.randn(4, 6))
        self.a, self.b = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH)
        if kind == "weight norm":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                nn.utils.weight_norm(self.a)
        if kind == "pruned":
            prune.l1_unstructured(self.a, "weight", 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x.long()).mean(1) if self.kind == "categories" else x.mean(1)
        h = self.a(h)
        if self.kind == "a parameter as the input":
            h = h + self.a(self.q).mean(0)
        return torch.relu(self.b(torch.relu(h)))


@pytest.mark.parametrize("kind", ["weight norm", "pruned", "categories", "a parameter as the input"])
def test_odd_layers_keep_the_law(kind: str) -> None:
    torch.manual_seed(0)
    shape = (4,) if kind == "categories" else (4, 6)
    net = HATNetwork(Cells(kind), torch.zeros(2, *shape), s_max=50.0)
    draw = (
        (lambda n: torch.randint(0, 11, (n, 4)).float()) if kind == "categories" else (lambda n: torch.randn(n, 4, 6))
    )
    x = draw(8)
    promised = {}
    for task in ("a", "b", "c"):
        train_on_batches(net, task, [draw(8) for _ in range(6)])
        promised[task] = logits(net, x, task)
        assert all(torch.equal(logits(net, x, each), kept) for each, kept in promised.items())
    net.forget("b")
    assert torch.equal(logits(net, x, "c"), promised["c"])


@pytest.mark.parametrize("rules", [None, {"table": units.shared_layer()}])
def test_tables_that_rescale_themselves_are_refused_whatever_is_said_of_them(rules: Any) -> None:
    backbone = Cells("categories")
    backbone.table = nn.Embedding(11, 6, max_norm=1.0)
    with pytest.raises(UnsupportedError, match="table: max_norm rescales entries while they are looked up"):
        HATNetwork(backbone, torch.zeros(2, 4), rules=rules)


class ByValue(nn.Module):
    """Chooses its path by a value, in one of several ways."""

    def __init__(self, reads: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.out, self.reads = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), reads

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        self.reads(x, h)
        return torch.relu(self.out(h))


READS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "bool of weights": lambda x, h: bool((x[0, 0] + h[0, 0] > 0).any()),
    "many bools": lambda x, h: [bool(each > 0) for each in x.flatten()],
    "float": lambda x, h: float(x.sum()),
    "int": lambda x, h: int(x.sum()),
    "index": lambda x, h: range(x.long().sum()),
    "item": lambda x, h: x.mean().item(),
    "tolist": lambda x, h: x.tolist(),
    "nonzero": lambda x, h: x.nonzero(),
    "where": lambda x, h: torch.where(x > 0),
    "mask": lambda x, h: x[x > 0],
    "masked_select": lambda x, h: x.masked_select(x > 0),
    "equal": lambda x, h: torch.equal(x, x),
    "a unit": lambda x, h: bool(h[0, 0] > 0),
    "a unit's item": lambda x, h: h[0, 0].item(),
}


@pytest.mark.parametrize("name", READS)
def test_paths_that_values_decide_on_are_refused_unless_vouched_for(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"values of the input or of units.*same_on_every_path.*test_signatures"):
        HATNetwork(ByValue(READS[name]), torch.zeros(2, 6))
    net = HATNetwork(ByValue(READS[name]), torch.zeros(2, 6), rules={ByValue: units.same_on_every_path()})
    net.add_task("a", 2)
    assert net(torch.randn(3, 6), "a").shape == (3, 2)


def test_shapes_constants_and_choices_by_where_are_no_values() -> None:
    def fine(x: Tensor, h: Tensor) -> None:
        assert x.shape[1] == 6
        assert len(x) > 0
        assert bool(torch.ones(3).any())
        assert float(torch.zeros_like(h).sum()) == 0
        torch.where(x > 0, x, -x)

    HATNetwork(ByValue(fine), torch.zeros(2, 6))


def test_a_parameter_that_no_call_reaches_is_frozen_with_the_first_task() -> None:
    backbone = nn.Sequential(nn.Linear(6, WIDTH), nn.ReLU())
    backbone.register_parameter("unused", nn.Parameter(torch.ones(3)))
    net = HATNetwork(backbone, torch.zeros(2, 6))
    assert not net.protected()["backbone.unused"].any()
    net.add_task("a", 2)
    net.consolidate("a")
    assert net.protected()["backbone.unused"].all()


def test_layers_that_are_not_initialised_and_empty_parameters() -> None:
    with pytest.raises(UnsupportedError, match=r"0\.weight is not initialised yet; run the backbone once"):
        HATNetwork(nn.Sequential(nn.LazyLinear(4)), torch.zeros(2, 6))
    backbone = Positions(PARTS["slice"])
    backbone.register_parameter("no_tokens", nn.Parameter(torch.empty(1, 0, WIDTH)))
    backbone.part = lambda pos, n: torch.cat([backbone.no_tokens, pos[:, :n]], 1)
    HATNetwork(backbone, torch.zeros(2, 5, 6))


def test_attaching_and_asking_leave_the_random_numbers_alone() -> None:
    backbone = nn.Sequential(nn.Linear(6, WIDTH), nn.Dropout(0.5), nn.ReLU())
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    HATNetwork(backbone, torch.zeros(2, 6))
    assert torch.equal(torch.rand(3), expected)


class Attending(nn.Module):
    """Attention with dropout in training alone, whose rate is given in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, WIDTH) for _ in range(3))
        self.out, self.how = nn.Linear(WIDTH, WIDTH), how

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(len(x), -1, 4, WIDTH // 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        rate = 0.1 if self.training else 0.0
        if self.how == "in order":
            h = F.scaled_dot_product_attention(q, k, v, None, rate)
        elif self.how == "in training alone" and not self.training:
            h = F.scaled_dot_product_attention(q, k, v)
        else:
            h = F.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        return torch.relu(self.out(h.transpose(1, 2).flatten(2).mean(1)))


@pytest.mark.parametrize("how", ["named", "in order", "in training alone"])
def test_a_rate_of_dropout_in_attention_makes_no_other_path(how: str) -> None:
    backbone = Attending(how)
    paths = [units.path_of(backbone, torch.randn(2, 5, 6), training) for training in (True, False)]
    assert paths[0].is_same(paths[1])
    HATNetwork(backbone, torch.zeros(1, 5, 6))


class ByGradient(nn.Module):
    """Adds the gradient of an energy with respect to the input, where gradients are recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out, self.runs = nn.Linear(6, WIDTH), nn.Linear(6, WIDTH), 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        if torch.is_grad_enabled():
            with torch.enable_grad():
                given = x.detach().requires_grad_()
                torch.autograd.grad((given.tanh() * given).sum(), given)
        return torch.relu(self.out(x)) + torch.relu(self.a(x))


def test_networks_that_compute_gradients_of_their_own_are_followed() -> None:
    backbone = ByGradient()
    net = HATNetwork(backbone, torch.zeros(1, 6))
    assert backbone.runs == 0
    x = torch.randn(8, 6)
    train_on_batches(net, "a", [x for _ in range(4)])
    promised = logits(net, x, "a")
    train_on_batches(net, "b", [x for _ in range(4)])
    assert torch.equal(logits(net, x, "a"), promised)


PAIRS: dict[str, Callable[[nn.Module, Tensor], bool]] = {
    "several in evaluation": lambda m, x: len(x) > 1 and not m.training,
    "one in evaluation": lambda m, x: len(x) == 1 and not m.training,
    "gradients in evaluation": lambda m, x: torch.is_grad_enabled() and not m.training,
    "no gradients": lambda m, x: not torch.is_grad_enabled(),
    "one without gradients": lambda m, x: len(x) == 1 and not torch.is_grad_enabled(),
}


@pytest.mark.parametrize("where", PAIRS)
@pytest.mark.parametrize("samples", [1, 3])
def test_what_two_facts_of_a_call_show_is_refused_when_attaching(where: str, samples: int) -> None:
    with pytest.raises(UnsupportedError, match="values of the input or of units"):
        HATNetwork(Centred(PAIRS[where]), torch.zeros(samples, 4, 6))


class Rare(nn.Module):
    """Adds two layers, whose units are the same ones then, in a kind of call that attaching does not look at."""

    def __init__(self, where: Callable[[nn.Module, Tensor], bool]) -> None:
        super().__init__()
        self.a, self.b, self.out, self.where = nn.Linear(6, WIDTH), nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), where

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x).mean(1))
        return torch.relu(self.out(h + torch.relu(self.b(x).mean(1)) if self.where(self, x) else h))


def test_combinations_that_attaching_does_not_look_at_are_followed_at_their_first_call() -> None:
    for where, samples, training in (
        (lambda m, x: len(x) == 1 and m.training, 1, True),
        (lambda m, x: len(x) > 1 and torch.is_grad_enabled() and not m.training, 3, False),
    ):
        torch.manual_seed(0)
        net = HATNetwork(Rare(where), torch.zeros(2, 4, 6), s_max=50.0)
        assert not any("b" in group.name.split("+") for group in net.units.groups)
        net.train(training).add_task("first", 2)
        x = torch.randn(samples, 4, 6)
        with pytest.raises(UnsupportedError, match="cannot be used"):
            net(x, "first")
        other = HATNetwork(Rare(where), torch.zeros(2, 4, 6), s_max=50.0)
        other.train(training)
        other.masking.admit(x, [], other.change)
        assert any("b" in group.name.split("+") for group in other.units.groups)


class Evaluated(nn.Module):
    """Two layers that note how they are called, and do something that several samples show, or that moves."""

    def __init__(self, what: str, notes: list[tuple[Tensor, bool]]) -> None:
        super().__init__()
        self.first, self.second, self.what = nn.Linear(6, 20), nn.Linear(20, 12), what
        self.register_buffer("count", torch.zeros(()))
        self.register_forward_pre_hook(lambda module, args: notes.append((args[0], module.training)))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        if self.what == "counts" and not self.training:
            self.count += 1
        if self.what == "tells their number" and len(x) > 1:
            h = torch.relu(h * 2)
        return torch.relu(self.second(h))


@pytest.mark.parametrize(("what", "are_needed"), [("", False), ("tells their number", True), ("counts", True)])
def test_several_samples_of_the_example_are_evaluated_where_random_ones_do_not_do(what: str, are_needed: bool) -> None:
    notes: list[tuple[Tensor, bool]] = []
    net = HATNetwork(Evaluated(what, notes), torch.zeros(1, 6))
    evaluated = {(len(x), "random" if x.any() else "example") for x, training in notes if not training}
    assert (2, "random") in evaluated
    assert ((2, "example") in evaluated) is are_needed
    assert net.masking.own_state.names == (("count",) if what == "counts" else ())
    assert [str(each) for each in net.masking.calls.followed] == [
        "inputs (1, 6) of float32 in evaluation mode without gradients",
        "inputs (N, 6) of float32 in evaluation mode without gradients",
        "inputs (N, 6) of float32 in training mode with gradients",
        "inputs (1, 6) of float32 in evaluation mode with gradients",
    ]
