"""Idioms of public networks of tokens that were refused, or had all outputs of a layer as one unit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork
from support.helpers import assert_poison_harmless, learn, logits

WIDTH, HEADS, TOKENS = 24, 6, 5


class Attention(nn.Module):
    """Attention whose queries and keys go through a function, and whose result is scaled by another one."""

    def __init__(self, turn: Callable[[Tensor], Tensor], scale: Callable[[Attention, Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.qkv, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.first, self.second = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        self.norm = nn.LayerNorm(4, elementwise_affine=False)
        self.turn, self.scale = turn, scale

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).relu()
        q, k, v = self.qkv(h).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        return self.out(self.scale(self, attended).transpose(1, 2).flatten(2)).mean(1)


def by_complex_numbers(x: Tensor) -> Tensor:
    angles = torch.arange(TOKENS).view(-1, 1) * torch.tensor([1.0, 0.1])
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones(TOKENS, 2), angles)
    return torch.view_as_real(turned).flatten(-2)


def in_parts(x: Tensor) -> Tensor:
    turned = x.new_empty(x.shape)
    turned[..., :2].copy_(x[..., :2])
    turned[..., 2:].copy_(-x[..., 2:])
    return turned


def as_it_is(m: Attention, x: Tensor) -> Tensor:
    return x


def learned(m: Attention, x: Tensor) -> Tensor:
    return x * torch.exp(torch.sum(m.first * m.second, dim=-1))


def set_to_itself(m: Attention, x: Tensor) -> Tensor:
    m.first.data = m.first.to(x.dtype)
    return x * m.first


def normalized(m: Attention, x: Tensor) -> Tensor:
    return m.norm(x)


def written_by_mask(m: Attention, x: Tensor) -> Tensor:
    result = torch.zeros_like(x)
    result[:, torch.arange(HEADS) > 2] = x[:, 3:]
    return result


CASES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Attention, Tensor], Tensor]]] = {
    "positions by complex numbers": (by_complex_numbers, as_it_is),
    "positions written in parts": (in_parts, as_it_is),
    "a scale computed from parameters": (torch.clone, learned),
    "a parameter whose data are set to itself": (torch.clone, set_to_itself),
    "a norm within each head": (torch.clone, normalized),
    "heads written by a mask": (torch.clone, written_by_mask),
}


@pytest.mark.parametrize("name", CASES)
def test_heads_are_units_and_the_law_holds(name: str) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Attention(*CASES[name]), torch.zeros(2, TOKENS, 6))
    sizes = {group.name.partition("+")[0]: group.size for group in net.units.groups}
    assert (sizes["enter"], sizes["out"]) == (WIDTH, WIDTH)
    assert sizes["qkv"] == (3 * WIDTH if "complex" in name else HEADS), "what is mixed in a way of its own is read"
    samples, promised = {}, {}
    for number, task in enumerate(("a", "b")):
        samples[task], _ = learn(net, task, number)
        promised[task] = logits(net, samples[task], task)
    assert torch.equal(logits(net, samples["a"], "a"), promised["a"])
    assert_poison_harmless(net, samples)


class Experts(nn.Module):
    """Mixture of experts, of which a router chooses two for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, WIDTH, 10)), nn.Parameter(torch.randn(4, 10, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        share, which = self.router(x).softmax(-1).topk(2, -1)
        hidden = torch.einsum("bti,eio->bteo", x, self.up).relu()
        each = torch.einsum("bteo,eoi->btei", hidden, self.down)
        chosen = each.gather(2, which.unsqueeze(-1).expand(*which.shape, WIDTH))
        return (chosen * share.unsqueeze(-1)).sum(2)


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.experts, self.last = nn.Linear(6, WIDTH), Experts(), nn.Linear(WIDTH, 14)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.experts(self.first(x).relu())).mean(1).relu()


def test_what_a_router_chooses_is_exact() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Routed(), torch.zeros(2, TOKENS, 6))
    sizes = {group.name: group.size for group in net.units.groups}
    assert sizes == {"first": WIDTH, "experts.down": WIDTH, "last": 14}, "router and hidden units are always on"
    samples = {task: learn(net, task, number)[0] for number, task in enumerate(("a", "b"))}
    assert_poison_harmless(net, samples)


class Own(nn.Module):
    """Attention that is given its weights, in a module of one's own."""

    def __init__(self, separate: bool) -> None:
        super().__init__()
        self.enter, self.leave, self.separate = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 14), separate
        self.projections = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])
        self.weight, self.out = nn.Parameter(torch.randn(3 * WIDTH, WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).relu().transpose(0, 1)
        weights = {f"{name}_proj_weight": each.weight for name, each in zip("qkv", self.projections, strict=True)}
        attended, _ = F.multi_head_attention_forward(
            h, h, h, WIDTH, HEADS, None if self.separate else self.weight,
            torch.cat([each.bias for each in self.projections]), None, None, False, 0.0, self.out.weight, self.out.bias,
            training=self.training, use_separate_proj_weight=self.separate, **(weights if self.separate else {}),
        )  # fmt: skip
        return self.leave(attended.relu()).mean(0)


@pytest.mark.parametrize("separate", [True, False])
def test_attention_that_is_given_its_weights_is_a_layer(separate: bool) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Own(separate), torch.zeros(2, TOKENS, 6))
    sizes = {group.name.partition("+")[0]: group.size for group in net.units.groups}
    assert sizes == {"enter": WIDTH, "out.weight": WIDTH, "leave": 14}
    samples = {task: learn(net, task, number)[0] for number, task in enumerate(("a", "b"))}
    assert_poison_harmless(net, samples)
