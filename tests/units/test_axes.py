"""Choice of the axis that counts units, where tokens differ from each other and outnumber channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork, units
from support.helpers import assert_poison_harmless
from support.marks import slow_unless

WIDTH, HEADS = 12, 2


class LayerNorm(nn.LayerNorm):
    """A layer norm that computes in a way of its own, as timm's does."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class ByHand(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / x.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()


class Normalized(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Transformer(nn.Module):
    """A vision transformer with a class token and a table of positions."""

    def __init__(self, size: int, norm: Callable[[int], nn.Module], attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, 1 + (size // 2) ** 2, WIDTH))
        self.norm, self.attention, self.norm_after = norm(WIDTH), attention(), norm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 18), nn.GELU(), nn.Linear(18, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        x = x + self.attention(self.norm(x))
        return (x + self.mlp(self.norm_after(x)))[:, 0]


def sizes(graph: units.UnitGraph) -> list[int]:
    return sorted(group.size for group in graph.groups)


@pytest.mark.parametrize(
    "norm", slow_unless(lambda norm: norm is ByHand, [nn.LayerNorm, LayerNorm, ByHand, Normalized])
)
@pytest.mark.parametrize("attention", [Attention, Fused])
def test_more_tokens_than_channels_leave_as_many_units(
    norm: Callable[[int], nn.Module], attention: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    few, many = (HATNetwork(Transformer(n, norm, attention), torch.zeros(2, 3, n, n)) for n in (4, 8))
    assert sizes(few.units) == sizes(many.units)
    assert {WIDTH, 18} <= set(sizes(many.units))
    for task in ("a", "b"):
        many.add_task(task, 2)
        many.consolidate(task)
    assert_poison_harmless(many, {task: torch.randn(5, 3, 8, 8) for task in ("a", "b")})


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("tokens", [3, 40])
def test_norms_over_tokens_and_channels_read_channels(own: bool, tokens: int) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.token = nn.Linear(4, WIDTH), nn.Parameter(torch.randn(1, 1, WIDTH))
            self.norm = (LayerNorm if own else nn.LayerNorm)([tokens + 1, WIDTH])

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(torch.cat([self.token.expand(len(x), -1, -1), self.enter(x)], 1)).mean(1)

    graph = units.analyze(Both(), torch.zeros(2, tokens, 4))
    assert sum(sizes(graph)) == WIDTH
