"""A slow oracle: change one entry at a time and see which tasks notice.

What some consolidated task notices must be protected. What is protected although no task notices it is room given away;
how much of it there is, and why, is recorded here for every network. ``python tests/test_oracle.py`` prints the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import Conditioning, HATNetwork
from support.helpers import CLASSES, mode
from support.marks import slow_unless
from support.unwatched import without_spots

CHANGES = (0.5, -0.5, 40.0, -40.0)


@dataclass(frozen=True)
class Small:
    """A network small enough for an oracle, and how many entries are protected that no task notices.

    Attributes:
        build: makes the backbone.
        shape: of a sample; None for tokens.
        cumulative: their number by parameter, over all seeds, under cumulative conditioning: those between units that
            one task uses only at the one end, and the other only at the other. Per task there are none.
        rounding: entries that tasks notice in their last bits alone, so that another machine may notice none of them.
        reason: why that is.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] | None
    cumulative: dict[str, int] = field(default_factory=dict)
    rounding: dict[str, int] = field(default_factory=dict)
    reason: str = ""


class Block(nn.Module):
    """A residual block, its norm before or after, its shortcut strided if need be."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, before: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.Conv2d(outputs, outputs, 1)
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs if before else outputs), nn.BatchNorm2d(outputs)
        self.before = before
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            return self.shortcut(x) + self.second(F.gelu(self.norm2(self.first(F.gelu(self.norm1(x))))))
        return F.softplus(self.shortcut(x) + self.norm2(self.second(F.gelu(self.norm1(self.first(x))))))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(1, 4, 2), nn.Linear(4, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.conv(x))
        return h.mean((2, 3)) * torch.sigmoid(self.up(F.gelu(self.down(h.mean((2, 3))))))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.tanh(self.first(x))
        b = torch.cat([a, torch.tanh(self.second(a))], dim=1)
        return torch.cat([b, torch.tanh(self.third(b))], dim=1)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 4, 1)
        self.up, self.out = nn.ConvTranspose2d(4, 3, 2, 2), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.tanh(self.down(x))
        h = torch.tanh(self.up(torch.tanh(self.deep(F.avg_pool2d(skip, 2)))))
        return torch.tanh(self.out(torch.cat([skip, h], 1))).mean((2, 3))


class HandAttention(nn.Module):
    def __init__(self, heads: int = 2, width: int = 4) -> None:
        super().__init__()
        self.lift, self.heads = nn.Linear(2, width), heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(1, 2).reshape(batch, length, width)).mean(1)


class ModuleAttention(nn.Module):
    def __init__(self, heads: int, width: int = 4) -> None:
        super().__init__()
        self.lift, self.attention = nn.Linear(2, width), nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        return self.attention(x, x, x, need_weights=False)[0].mean(1)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.hidden(self.words(x).mean(1)))


class Twice(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)
        self.third = nn.Linear(4, 4) if tied else self.second
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.third(torch.tanh(self.second(torch.tanh(self.first(x))))))


class Bare(nn.Module):
    """A factor per unit, a shift of the input, a scalar, and a token."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.out = nn.Linear(3, 4), nn.Linear(4, 3)
        self.shift, self.factor = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(4))
        self.scalar, self.token = nn.Parameter(torch.randn(())), nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), -1, -1), self.linear(x + self.shift)], dim=1) * self.factor
        return self.out(torch.tanh(h) * self.scalar).flatten(1)


def image(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def separable() -> nn.Module:
    return image(
        *(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 2, groups=4), nn.Tanh(), nn.Conv2d(4, 4, 1, groups=2), nn.Tanh()),
    )


def group_norm() -> nn.Module:
    return image(
        *(nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.Tanh()),
        *(nn.Conv2d(4, 4, 2), nn.InstanceNorm2d(4, affine=True), nn.Softplus()),
    )


def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 4), nn.RMSNorm(4))


TOKENS, IMAGE, VECTOR = (3, 2), (1, 4, 4), (3,)
NETWORKS = {
    "chain": Small(
        lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid()), VECTOR, {"2.weight": 18}
    ),
    "residual": Small(
        lambda: image(nn.Conv2d(1, 4, 1), Block(4, 4)), IMAGE, {"1.first.weight": 54, "1.second.weight": 6}
    ),
    "residual, strided": Small(
        lambda: image(nn.Conv2d(1, 3, 1), Block(3, 4, 2)),
        IMAGE,
        {"1.first.weight": 27, "1.second.weight": 7, "1.shortcut.weight": 2},
    ),
    "residual, norm first": Small(
        lambda: image(nn.Conv2d(1, 4, 1), Block(4, 4, before=True)),
        IMAGE,
        {"1.first.weight": 54, "1.second.weight": 6},
    ),
    "squeeze-excite": Small(SqueezeExcite, (1, 3, 3), {"down.weight": 8, "up.weight": 8}),
    "concatenation": Small(Dense, VECTOR, {"second.weight": 1, "third.weight": 6}),
    "u-net": Small(UNet, IMAGE, {"deep.weight": 3, "out.weight": 9, "up.weight": 4}),
    "depthwise and grouped": Small(separable, IMAGE, {"3.weight": 1}),
    "layer norm": Small(
        layer_norm,
        VECTOR,
        {"3.weight": 7},
        {"0.weight": 3, "0.bias": 1, "1.weight": 1, "1.bias": 1},
        "the last RMS norm of a task with one unit leaves only its sign",
    ),
    "group norm": Small(
        group_norm, IMAGE, {"3.weight": 24}, {"3.bias": 10}, "instance norm takes a bias before it out again"
    ),
    "attention by hand": Small(
        HandAttention,
        TOKENS,
        {"qkv.weight": 42, "out.weight": 8},
        {"qkv.bias": 12},
        "softmax takes a bias of all keys out again",
    ),
    "nn.MultiheadAttention": Small(
        lambda: ModuleAttention(2),
        TOKENS,
        {"attention.in_proj_weight": 24, "attention.out_proj.weight": 14},
        {"attention.in_proj_bias": 12},
        "softmax takes a bias of all keys out again",
    ),
    "nn.MultiheadAttention, one head": Small(
        lambda: ModuleAttention(1),
        TOKENS,
        {"attention.in_proj_weight": 34, "attention.out_proj.weight": 12},
        {"attention.in_proj_bias": 8},
        "softmax takes a bias of all keys out again",
    ),
    "embedding": Small(Words, None, {"hidden.weight": 9}),
    "called twice": Small(lambda: Twice(tied=False), VECTOR, {"second.weight": 4}),
    "tied weights": Small(lambda: Twice(tied=True), VECTOR, {"second.weight": 6}),
    "bare parameters": Small(Bare, (2, 3), {"out.weight": 2}),
}


def consolidated(name: str, conditioning: Conditioning, seed: int) -> tuple[HATNetwork, Tensor]:
    """A network with two tasks, each of which uses about half of every group, and samples."""
    torch.manual_seed(seed)
    small = NETWORKS[name]
    x = torch.randint(0, 5, (8, 6)) if small.shape is None else 2 * torch.randn(12, *small.shape).double()
    net = HATNetwork(small.build().double(), x, conditioning=conditioning)
    # The masks that the figures were counted with: a task's units are drawn before its head, in the order in which the
    # network itself once drew them.
    units = torch.randn(net.units.num_units)
    for task in ("a", "b"):
        net.add_task(task, CLASSES)
        embedding = net.tasks[-1].embedding.data
        units, _ = embedding.clone(), embedding.copy_(units)
        net.consolidate(task)
    return net, x


def noticed(net: HATNetwork, x: Tensor) -> dict[str, Tensor]:
    """By parameter of the backbone, True where some task's logits change with that entry alone."""
    tasks = net.task_names
    found = {}
    with torch.no_grad(), mode(net, False), without_spots():
        clean = [net(x, task) for task in tasks]
        for name, parameter in net.backbone.named_parameters(prefix="backbone"):
            flat = parameter.data.view(-1)
            moves = torch.zeros(len(flat), dtype=torch.bool)
            for index in range(len(flat)):
                kept = flat[index].clone()
                for change in CHANGES:
                    flat[index] = kept + change
                    if any(not torch.equal(net(x, task), logits) for task, logits in zip(tasks, clean, strict=True)):
                        moves[index] = True
                        break
                flat[index] = kept
            found[name] = moves.view(parameter.shape)
    return found


def in_vain(name: str, conditioning: Conditioning) -> tuple[Counter[str], int]:
    """By parameter, how many entries are protected although no task notices them; and how many are protected at all.

    Raises:
        AssertionError: something that a task notices is free.
    """
    wasted, total = Counter[str](), 0
    for seed in range(3):
        net, x = consolidated(name, conditioning, seed)
        protected = net.protected()
        for parameter, moves in noticed(net, x).items():
            assert not (moves & ~protected[parameter]).any(), f"{parameter} is free in part, and matters"
            wasted[parameter.removeprefix("backbone.")] += int((protected[parameter] & ~moves).sum())
            total += int(protected[parameter].sum())
    return +wasted, total


QUICK = {"chain": Conditioning.CUMULATIVE, "layer norm": Conditioning.PER_TASK}


@pytest.mark.parametrize(
    ("name", "conditioning"),
    slow_unless(
        lambda name, conditioning: QUICK.get(name) is conditioning,
        [(name, conditioning) for name in NETWORKS for conditioning in Conditioning],
    ),
)
def test_all_that_matters_is_protected_and_little_else(name: str, conditioning: Conditioning) -> None:
    small = NETWORKS[name]
    wasted, _ = in_vain(name, conditioning)
    known = Counter(small.cumulative if conditioning is Conditioning.CUMULATIVE else {})
    assert known <= wasted <= known + Counter(small.rounding)


def test_the_oracle_sees_what_is_wrongly_free() -> None:
    net, x = consolidated("chain", Conditioning.CUMULATIVE, 0)
    moves = noticed(net, x)
    assert all(bool(moves[name].any()) for name in moves), "every layer of a chain matters"
    assert not all(bool(moves[name].all()) for name in moves), "what no task uses does not"


def table() -> str:
    """Return a table in Markdown of how much is protected in vain."""
    lines = ["| network | protected in vain: cumulative | per task | noticed in rounding only |", "|---|---|---|---|"]
    for name, small in NETWORKS.items():
        cells = [say(*in_vain(name, conditioning)) for conditioning in Conditioning]
        rounding = f"{sum(small.rounding.values())}: {small.reason}" if small.rounding else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {rounding} |")
    return "\n".join(lines)


def say(wasted: Counter[str], total: int) -> str:
    parameters = ", ".join(f"{name} {count}" for name, count in wasted.items())
    return f"{wasted.total()} of {total} ({wasted.total() / total:.0%}){': ' + parameters if parameters else ''}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
