"""Steps leave nothing to Python's collector of cycles: what they used is free at once, and may be used by the next."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack import HATNetwork, WeightMaskedNetwork


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(4, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states = self.recurrent(x)[0]
        features: Tensor = self.attention(states, states, states)[0].mean(1)
        return features


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8))


@contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def tensors_in_cycles(act: Callable[[], Any]) -> list[str]:
    """Return the kinds of tensors, modules and graphs that only the collector would free."""
    act()  # what is kept on purpose from a first call is kept now
    with without_collector():
        act()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return [
            type(each).__name__
            for each in gc.garbage
            if isinstance(each, (Tensor, nn.Module)) or type(each).__name__.endswith("Backward")
        ]


@pytest.mark.parametrize("network", [HATNetwork, WeightMaskedNetwork])
@pytest.mark.parametrize(("build", "shape"), [(convolutional, (3, 2, 4, 4)), (Recurrent, (3, 5, 4))])
def test_no_tensor_waits_for_the_collector(
    network: Any, build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    net, x = network(build(), torch.zeros(shape)), torch.randn(shape)
    net.add_task("old", 2)
    net.consolidate("old")
    net.add_task("new", 2)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("new"), lr=0.1, momentum=0.9))

    def step() -> None:
        net.train()
        net.anneal(0.5)
        optimizer.zero_grad()
        (net(x, "new").square().mean() + net.regularization()).backward()
        optimizer.step()

    def answer() -> None:
        with torch.no_grad():
            net.eval()(x, "old")

    for act in (step, answer, lambda: net.extract("old")):
        assert not tensors_in_cycles(act)


def test_a_cycle_is_seen() -> None:
    def leave() -> None:
        held: list[Any] = [torch.zeros(1)]
        held.append(held)

    assert tensors_in_cycles(leave) == ["Tensor"]
