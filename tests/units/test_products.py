"""Products of values, and layers written as products: in whatever notation, the units are the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork
from support.helpers import assert_poison_harmless

WIDTH, TOKENS = 12, 3


class Layer(nn.Module):
    """A layer that is written as a function of its weight (in, out), its bias, and what it is given."""

    def __init__(self, function: Callable[..., Tensor], *shape: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape[-1]))
        self.function = function

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(self.w, self.b, *values)


class Two(nn.Module):
    """Two layers, the second of which is written by hand, and a third one that reads it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.a, self.layer, self.c = nn.Linear(4, WIDTH), layer, nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.layer(self.a(x).relu()).relu()).mean(1)


def conv1d(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """A dense layer as GPT-2 has it."""
    return torch.addmm(b, x.view(-1, x.shape[-1]), w).view(*x.shape[:-1], -1)


LAYERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "addmm": conv1d,
    "addmm by names": lambda w, b, x: torch.addmm(input=b, mat2=w, mat1=x.flatten(0, 1)).view(len(x), TOKENS, -1),
    "@": lambda w, b, x: x @ w + b,
    "matmul": lambda w, b, x: torch.matmul(x, w) + b,
    "mm": lambda w, b, x: torch.mm(x.flatten(0, 1), w).unflatten(0, (len(x), TOKENS)) + b,
    "einsum": lambda w, b, x: torch.einsum("bti,io->bto", x, w) + b,
    "einsum, the weight first": lambda w, b, x: torch.einsum("io,bti->bto", w, x) + b,
    "einsum with an ellipsis": lambda w, b, x: torch.einsum("...i, io -> ...o", x, w) + b,
    "einsum with numbers": lambda w, b, x: torch.einsum(x, [0, 1, 2], w, [2, 3], [0, 1, 3]) + b,
    "einsum without a result": lambda w, b, x: torch.einsum("bti,iu", [x, w]) + b,
}


def exact(net: HATNetwork, *shape: int) -> None:
    for task in ("a", "b"):
        net.add_task(task, 2)
        net.consolidate(task)
    assert_poison_harmless(net, {task: 3 * torch.randn(6, *shape) for task in ("a", "b")})


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_written_as_a_product_has_units_of_its_own(name: str) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Two(Layer(LAYERS[name], WIDTH, 10)), torch.zeros(2, TOKENS, 4))
    assert [group.size for group in net.units.groups] == [WIDTH, 10, 6]
    assert {reader.module for reader in net.units.readers} == {"layer", "c", ""}
    uses = net.units.uses["backbone.layer.w"]
    assert len(uses) == 1
    assert len(uses[0].sides) == 2, "held where a task uses both ends"
    exact(net, TOKENS, 4)


def test_a_weight_of_several_axes_writes_as_many_units_as_entries_for_an_input() -> None:
    layer = Layer(lambda w, b, x: torch.einsum("bti,iho->btho", x, w).flatten(2), WIDTH, 2, 5)
    torch.manual_seed(0)
    net = HATNetwork(Two(layer), torch.zeros(2, TOKENS, 4))
    assert [group.size for group in net.units.groups] == [WIDTH, 10, 6]
    exact(net, TOKENS, 4)


def test_a_weight_that_mixes_tokens_passes_units_on() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, WIDTH)
            self.layer = Layer(lambda w, b, x: torch.einsum("btc,ts->bsc", x, w), TOKENS, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.a(x)).flatten(1)

    torch.manual_seed(0)
    net = HATNetwork(Mixer(), torch.zeros(2, TOKENS, 4))
    assert [group.size for group in net.units.groups] == [WIDTH]
    exact(net, TOKENS, 4)


def test_a_product_in_the_same_module_is_gated_where_its_factor_comes_from() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.w = nn.Linear(4, WIDTH), nn.Parameter(torch.randn(WIDTH, 10))

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).relu() @ self.w

    torch.manual_seed(0)
    net = HATNetwork(Bare(), torch.zeros(2, 4))
    assert [group.size for group in net.units.groups] == [WIDTH, 10]
    exact(net, 4)


def test_where_no_gate_can_stand_what_is_contracted_is_always_on() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.w = nn.Linear(4, WIDTH), nn.Parameter(torch.randn(WIDTH, 10))
            self.shift = nn.Parameter(torch.randn(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return (self.a(x) + self.shift).relu() @ self.w

    torch.manual_seed(0)
    net = HATNetwork(Bare(), torch.zeros(2, 4))
    assert {group.name: group.size for group in net.units.groups} == {"w": 10}
    exact(net, 4)


class Heads(nn.Module):
    """Queries, keys and values ``(N, heads, tokens, 2)``, and a function of them."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.out, self.function = nn.Linear(4, 36), nn.Linear(WIDTH, 6), function

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.a(x).unflatten(2, (3, 6, 2)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(self.function(q, k, v).transpose(1, 2).flatten(2)).mean(1)


def by_matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1) @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)


def by_dots(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("...qk,...kd->...qd", torch.einsum("...qd,...kd->...qk", q, k).softmax(-1), v)


def by_order(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).transpose(1, 2)


def by_baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.baddbmm(q.new_zeros(1, 1, 1), q.flatten(0, 1), k.flatten(0, 1).mT, beta=1.0, alpha=0.7)
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view(q.shape)


def by_three(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhqd,bhkd,bhke->bhqe", q, k, v)


@pytest.mark.parametrize("function", [by_matmul, by_einsum, by_dots, by_order, by_baddbmm, by_three])
def test_attention_in_any_notation_has_a_unit_per_head(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Heads(function), torch.zeros(2, TOKENS, 4))
    assert [group.size for group in net.units.groups] == [6, 6]
    exact(net, TOKENS, 4)


@pytest.mark.parametrize("heads", [1, 6])
def test_keys_that_all_heads_share_are_read_where_they_are_written(heads: int) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.kv, self.out = nn.Linear(4, WIDTH), nn.Linear(4, 2 * WIDTH // heads), nn.Linear(WIDTH, 6)

        def forward(self, x: Tensor) -> Tensor:
            q = self.q(x).unflatten(2, (heads, -1)).transpose(1, 2)
            k, v = (each.unsqueeze(1).expand(q.shape) for each in self.kv(x).chunk(2, -1))
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)

    torch.manual_seed(0)
    net = HATNetwork(Shared(), torch.zeros(2, TOKENS, 4))
    assert {group.name: group.size for group in net.units.groups} == {"q": WIDTH, "kv": 2 * WIDTH // heads, "out": 6}
    exact(net, TOKENS, 4)


@pytest.mark.parametrize(
    "norm",
    [
        lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True),
        lambda x: torch.linalg.vector_norm(x, 2, -1, True),
        lambda x: torch.linalg.norm(x, dim=-1, keepdim=True),
    ],
)
def test_a_vector_norm_reads_as_a_norm_does(norm: Callable[[Tensor], Tensor]) -> None:
    layer = Layer(lambda w, b, x: F.linear(x / (1 + norm(x)), w), 10, WIDTH)
    torch.manual_seed(0)
    net = HATNetwork(Two(layer), torch.zeros(2, TOKENS, 4))
    assert [group.size for group in net.units.groups] == [WIDTH, 10, 6]
    exact(net, TOKENS, 4)


def test_a_diagonal_is_a_product_too() -> None:
    torch.manual_seed(0)
    backbone = Heads(lambda q, k, v: torch.einsum("...tt,...td->...td", q @ k.mT, v))
    net = HATNetwork(backbone, torch.zeros(2, TOKENS, 4))
    assert [group.size for group in net.units.groups] == [WIDTH, 6], "queries and keys are always on"
    exact(net, TOKENS, 4)


TURNED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "@ of a transpose": lambda w, b, x: x @ w.t() + b[0],
    "linear": lambda w, b, x: F.linear(x, w.t().T, b.new_zeros(10)),
    "linear of a matrix that is turned": lambda w, b, x: F.linear(x, w.transpose(0, 1).mT),
    "addmm": lambda w, b, x: torch.addmm(b[:1], x.flatten(0, 1), w.mT).view(*x.shape[:-1], -1),
    "einsum": lambda w, b, x: torch.einsum("bti,io->bto", x, w.permute(1, 0)),
}


@pytest.mark.parametrize("name", TURNED)
def test_a_weight_may_have_its_axes_turned(name: str) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Two(Layer(TURNED[name], 10, WIDTH)), torch.zeros(2, TOKENS, 4))
    assert [group.size for group in net.units.groups if "layer.b" not in group.name] == [WIDTH, 10, 6]
    (use,) = net.units.uses["backbone.layer.w"]
    assert [side.shape for side in use.sides] == [(10, 1), (1, WIDTH)]
    exact(net, TOKENS, 4)


def test_a_weight_that_is_turned_and_used_in_another_way_is_exact() -> None:
    layer = Layer(lambda w, b, x: F.linear(x, w.t().reshape(WIDTH, 10).mT * 2), 10, WIDTH)
    torch.manual_seed(0)
    net = HATNetwork(Two(layer), torch.zeros(2, TOKENS, 4))
    assert [group.size for group in net.units.groups] == [WIDTH, 10, 6]
    exact(net, TOKENS, 4)


def test_experts_write_the_same_units_and_their_router_is_always_on() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.router = nn.Parameter(torch.randn(3, 10, WIDTH)), nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            rows = x.flatten(0, 1)
            share, which = self.router(rows).softmax(-1).max(-1)
            which, order = which.sort()
            starts = torch.histc(which.float(), 3, 0, 2).cumsum(0, dtype=torch.int32)
            mixed = F.grouped_mm(rows[order], self.w.transpose(1, 2), offs=starts) * share[order, None]
            return torch.zeros(len(rows), 10).index_add(0, order, mixed).view(*x.shape[:-1], -1)

    torch.manual_seed(0)
    net = HATNetwork(Two(Experts()), torch.zeros(2, TOKENS, 4))
    assert {group.name: group.size for group in net.units.groups} == {"a": WIDTH, "layer.w": 10, "c": 6}
    (use,) = net.units.uses["backbone.layer.w"]
    assert [side.shape for side in use.sides] == [(1, 10, 1), (1, 1, WIDTH)]
    exact(net, TOKENS, 4)


def test_products_with_vectors() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.scores = nn.Linear(4, WIDTH), nn.Parameter(torch.randn(TOKENS))

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).mT @ torch.ones(TOKENS)

    torch.manual_seed(0)
    net = HATNetwork(Weighted(), torch.zeros(2, TOKENS, 4))
    assert [group.size for group in net.units.groups] == [WIDTH]
    exact(net, TOKENS, 4)
