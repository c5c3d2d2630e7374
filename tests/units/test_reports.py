"""What is said of a network: all causes of a refusal, and a table that stays short."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork, UnsupportedError, units


class Strange(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(-1).values


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, x) @ x


class Both(nn.Module):
    """A block with two parts that are not understood."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.strange, self.odd = nn.Linear(8, 8), nn.Linear(8, 8), Strange(), Odd()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.strange(self.a(x))) + self.odd(x)


def refusing(trace: units.Trace, call: units.Call) -> Tensor:
    raise trace.refuse(call, f"{type(call.target).__name__} of {call.name!r} is not understood")


RULES = {Strange: refusing, Odd: refusing}


def test_all_that_is_not_understood_is_reported_once() -> None:
    backbone = nn.Sequential(nn.Linear(4, 8), *(Both() for _ in range(3)))
    with pytest.raises(UnsupportedError) as refused:
        units.analyze(backbone, torch.zeros(2, 4), rules=RULES)
    assert [line.partition(" (at")[0] for line in str(refused.value).splitlines()] == [
        "2 things are not understood:",
        "- 1.strange: Strange of '1.strange' is not understood",
        "- 1.odd: Odd of '1.odd' is not understood",
    ]
    assert str(refused.value).count("2 more like it") == 2


def test_all_layers_that_move_by_themselves_are_reported() -> None:
    backbone = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 8)), nn.Embedding(4, 4, max_norm=1.0))
    with pytest.raises(UnsupportedError, match=r"(?s)^2 things.*\n- 0: spectral norm.*\n- 1: max_norm"):
        units.analyze(backbone, torch.zeros(2, 4))


def test_one_cause_is_reported_in_one_line() -> None:
    with pytest.raises(UnsupportedError, match=r"^1: Strange of '1' is not understood") as refused:
        units.analyze(nn.Sequential(nn.Linear(4, 8), Strange()), torch.zeros(2, 4), rules=RULES)
    assert "\n" not in str(refused.value)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(self.norm(x))))


class Deep(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.enter, self.layers = nn.Linear(4, 8), nn.Sequential(*(Block() for _ in range(depth)))
        self.unused = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.enter(x))


def test_the_table_folds_blocks_and_shortens_names() -> None:
    text = str(units.analyze(Deep(30), torch.zeros(2, 4)))
    assert len(text.splitlines()) < 25
    assert max(map(len, text.splitlines())) < 160
    assert "enter + 30 more" in text
    assert "30 × layers.0–29.up" in text
    assert "30 × layers.0–29.norm.weight" in text
    assert "whole, unused" in text


def test_the_table_says_what_is_frozen_at_once_and_where() -> None:
    net = HATNetwork(Deep(1), torch.zeros(2, 4), rules={"layers.0": units.shared_layer()})
    text = str(net.units)
    assert "whole 90.2 %" in text
    assert "are frozen with the first task, since they belong to no unit: backbone.layers.0.up, " in text


def test_unused_parameters_are_noted_and_frozen() -> None:
    model = nn.Sequential(Deep(1))
    graph = units.analyze(model, torch.zeros(2, 4))
    assert set(graph.unused) == {"0.unused.weight", "0.unused.bias"}
    assert {graph.roles[name] for name in graph.unused} == {units.Role.WHOLE}
    net = HATNetwork(Deep(1), torch.zeros(2, 4))
    net.add_task("a", 2)
    net.consolidate("a")
    assert net.protected()["backbone.unused.weight"].all()
