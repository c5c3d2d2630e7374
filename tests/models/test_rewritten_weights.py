"""Backbones that write into their own parameters in a forward pass: refused when attached, with the cause."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu
from torch.nn.utils.parametrizations import weight_norm

import hatrack

Write = Callable[[nn.Linear], object]


class Rewriting(nn.Module):
    """Network that writes into the weight of a layer in one mode."""

    def __init__(self, write: Write, mode: bool | None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
        self._write, self._mode = write, mode

    def forward(self, x: Tensor) -> Tensor:
        if self._mode is None or self.training is self._mode:
            self._write(self.first)
        return relu(self.second(relu(self.first(x))))


@torch.no_grad()
def divide(layer: nn.Linear) -> None:
    layer.weight.div_(layer.weight.norm(dim=1, keepdim=True))


def divide_data(layer: nn.Linear) -> None:
    layer.weight.data.div_(layer.weight.data.norm(dim=1, keepdim=True))


def clamp(layer: nn.Linear) -> None:
    layer.weight.data.clamp_(-0.3, 0.3)


@torch.no_grad()
def decay(layer: nn.Linear) -> None:
    layer.weight.mul_(0.999)
    layer.bias.copy_(0.5 * layer.bias)


WRITES: dict[str, Write] = {"divide": divide, "data": divide_data, "clamp": clamp, "decay": decay}
NETWORKS = [hatrack.HATNetwork, hatrack.WeightMaskedNetwork]


@pytest.mark.parametrize("mode", [None, True, False])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_writing_into_parameters_is_refused_and_undone(kind: Any, write: str, mode: bool | None) -> None:
    torch.manual_seed(0)
    backbone = Rewriting(WRITES[write], mode)
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(hatrack.UnsupportedError, match=r"writes into its parameters, first\.weight.*anew"):
        kind(backbone, torch.zeros(2, 6))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("kind", NETWORKS)
def test_untrained_parameters_count_as_well(kind: Any) -> None:
    backbone = Rewriting(decay, None)
    backbone.first.requires_grad_(False)
    with pytest.raises(hatrack.UnsupportedError, match=r"first\.weight, first\.bias"):
        kind(backbone, torch.zeros(2, 6))


class Anew(nn.Module):
    """Network that computes the weight of a layer anew in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.weight / self.first.weight.norm(dim=1, keepdim=True)
        return relu(self.second(relu(linear(x, weight, self.first.bias))))


def test_what_the_message_advises_is_let_in() -> None:
    for backbone in (Anew(), nn.Sequential(weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())):
        net = hatrack.HATNetwork(backbone, torch.zeros(2, 6))
        net.add_task("a", 2)
        net.consolidate("a")
        net.check()
