"""Truth values that a network reads of its input: both ways are followed, or the call is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack import HATNetwork
from hatrack.errors import UnsupportedError
from support.helpers import assert_poison_harmless

WIDTH = 8


class Ways(nn.Module):
    """A network whose further layers depend on truth values of its input."""

    def __init__(self, choose: Callable[[nn.ModuleList, Tensor, Tensor], Tensor], layers: int = 3) -> None:
        super().__init__()
        self.enter, self.choose = nn.Linear(6, WIDTH), choose
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.choose(self.layers, x, self.enter(x).relu()).relu()


def first_or_second(layers: nn.ModuleList, x: Tensor, h: Tensor) -> Tensor:
    return layers[0](h) if (x > 0).all() else layers[1](h)


def nested(layers: nn.ModuleList, x: Tensor, h: Tensor) -> Tensor:
    if x[0, 0] > 0:
        return layers[0](h) if (x[:, 1] > 0).any() else layers[1](h)
    return layers[2](h)


def item(layers: nn.ModuleList, x: Tensor, h: Tensor) -> Tensor:
    return layers[0](h) if (x > 0).all().item() else layers[1](h)


def refusing(layers: nn.ModuleList, x: Tensor, h: Tensor) -> Tensor:
    if (x > 100).any():
        raise ValueError(f"too large: {x.max()}")
    assert not (x < -100).any()
    return layers[0](h)


def skipping(layers: nn.ModuleList, x: Tensor, h: Tensor) -> Tensor:
    return h if bool((x != 0).all()) else layers[0](h)


def refusing_in_a_line(layers: nn.ModuleList, x: Tensor, h: Tensor) -> Tensor:
    if (x > 100).any():
        raise ValueError("too large")
    return layers[0](h)


CHOICES: dict[str, tuple[Any, set[str]]] = {
    "first or second": (first_or_second, {"layers.0", "layers.1"}),
    "nested": (nested, {"layers.0", "layers.1", "layers.2"}),
    "item": (item, {"layers.0", "layers.1"}),
    "refusing": (refusing, {"layers.0"}),
    "refusing in a line": (refusing_in_a_line, {"layers.0"}),
    "skipping": (skipping, {"layers.0"}),
}


@pytest.mark.parametrize("name", CHOICES)
def test_every_way_is_followed_whatever_the_example_is(name: str) -> None:
    choose, wanted = CHOICES[name]
    for example in (torch.zeros(2, 6), torch.ones(2, 6)):
        torch.manual_seed(0)
        net = HATNetwork(Ways(choose), example)
        found = {part for group in net.units.groups for part in group.name.split("+")}
        assert {part for part in found if part.startswith("layers")} == wanted
        inputs = [sign * (torch.rand(5, 6) + 0.1) for sign in (1, -1)] + [torch.randn(5, 6)]
        for task in ("a", "b"):
            net.add_task(task, 2)
            net.consolidate(task)
        for x in inputs:
            assert_poison_harmless(net, {"a": x, "b": x})


def test_old_tasks_keep_their_outputs_on_a_way_that_training_does_not_take() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Ways(first_or_second), torch.zeros(2, 6))
    old, new = torch.rand(6, 6) + 0.1, -torch.rand(6, 6)
    net.add_task("old", 3)
    net.consolidate("old")
    net.eval()
    before = [net(x, "old").clone() for x in (old, new)]
    net.train()
    net.add_task("new", 3)
    optimizer = net.protect(torch.optim.AdamW(net.task_parameters("new"), lr=0.1, weight_decay=0.1))
    for _ in range(5):
        for x in (old, new):
            optimizer.zero_grad()
            net(x, "new").square().sum().backward()
            optimizer.step()
    net.eval()
    assert all(torch.equal(net(x, "old"), said) for x, said in zip((old, new), before, strict=True))


def of_units(layers: nn.ModuleList, x: Tensor, h: Tensor) -> Tensor:
    return layers[0](h) if h[0, 0] > 0 else layers[1](h)


def of_weights(layers: nn.ModuleList, x: Tensor, h: Tensor) -> Tensor:
    return layers[0](h) if (x.sum() + layers[2].bias[0]) > 0 else layers[1](h)


def many(layers: nn.ModuleList, x: Tensor, h: Tensor) -> Tensor:
    for value in x.flatten():
        h = layers[0](h) if value > 0 else h
    return h


def endless(layers: nn.ModuleList, x: Tensor, h: Tensor) -> Tensor:
    while (x > 0).any():
        x = x - 1
    return layers[0](h)


def failing(layers: nn.ModuleList, x: Tensor, h: Tensor) -> Tensor:
    return layers[0](h[(x[:, 0] > 0).sum() :]) if False else (layers[0](h) if not (x > 9).any() else h[100])


@pytest.mark.parametrize("choose", [of_units, of_weights, many, endless, failing])
def test_ways_that_cannot_all_be_followed_are_refused(choose: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"values of the input or of units.*same_on_every_path.*test_decisions"):
        HATNetwork(Ways(choose), torch.zeros(2, 6))
