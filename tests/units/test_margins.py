"""Positions that belong to no unit beside positions that do: margins, tokens, and labels that stand for each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork, UnsupportedError
from hatrack.units import Role
from support.helpers import assert_poison_harmless


class Model(nn.Module):
    def __init__(self, function: Callable[[Model, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def padded(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 8, 1), nn.ConstantPad2d(1, -1.0), *layers, nn.Flatten())


def first_token(model: Model, x: Tensor) -> Tensor:
    return model.norm(F.pad(model.linear(x), (0, 0, 1, 0)))[:, 0]


def mean_with_margin(model: Model, x: Tensor) -> Tensor:
    return F.pad(model.linear(x), (0, 0, 1, 0)).mean(1)


def softmax_with_margin(model: Model, x: Tensor) -> Tensor:
    return F.pad(model.linear(x), (0, 0, 1, 0)).softmax(1)[:, 0]


TOKENS, IMAGE = (3, 4), (2, 4, 4)
BACKBONES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "group norm": (lambda: padded(nn.GroupNorm(2, 8)), IMAGE),
    "layer norm": (lambda: padded(nn.LayerNorm([8, 6, 6])), IMAGE),
    "instance norm": (lambda: padded(nn.InstanceNorm2d(8, affine=True)), IMAGE),
    "batch norm": (lambda: padded(nn.BatchNorm2d(8)), IMAGE),
    "prelu": (lambda: padded(nn.PReLU(8)), IMAGE),
    "depthwise": (lambda: padded(nn.Conv2d(8, 8, 3, groups=8)), IMAGE),
    "token": (lambda: Model(first_token, linear=nn.Linear(4, 8), norm=nn.LayerNorm(8)), TOKENS),
    "mean": (lambda: Model(mean_with_margin, linear=nn.Linear(4, 8)), TOKENS),
    "softmax": (lambda: Model(softmax_with_margin, linear=nn.Linear(4, 8)), TOKENS),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_margin_belongs_to_the_units_that_reach_it(name: str) -> None:
    torch.manual_seed(0)
    build, shape = BACKBONES[name]
    net = HATNetwork(build(), torch.zeros(2, *shape))
    samples = {}
    for task in ("a", "b"):
        net.add_task(task, 2)
        net.consolidate(task)
        samples[task] = torch.randn(6, *shape)
    assert_poison_harmless(net, samples)


class Tokens(nn.Module):
    """A class token and positions, coupled by the layer norm, and then the mean over all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 8), nn.LayerNorm(8)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), -1, -1), self.linear(x)], dim=1) + self.positions
        return self.norm(h).mean(1)


def test_coupled_units_are_one_unit_to_a_reduction() -> None:
    net = HATNetwork(Tokens(), torch.zeros(2, *TOKENS))
    assert [group.size for group in net.units.groups] == [8]


def test_a_factor_per_channel_meets_a_margin() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.factor = nn.Conv2d(2, 8, 1), nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (F.pad(self.conv(x), (1, 1, 1, 1), value=1.0) * self.factor).flatten(1)

    net = HATNetwork(Scaled(), torch.zeros(2, *IMAGE))
    assert [(group.name, group.size) for group in net.units.groups] == [("conv+factor", 8)]


def test_glu_is_a_product_of_two_halves() -> None:
    net = HATNetwork(nn.Sequential(nn.Linear(4, 12), nn.GLU(), nn.Linear(6, 5)), torch.zeros(2, 4))
    assert [(group.name, group.size) for group in net.units.groups] == [("0", 6), ("2", 5)]


def test_what_one_value_picks_of_another_is_refused() -> None:
    def pick(model: Model, x: Tensor) -> Tensor:
        h = model.linear(x)
        return h[model.other(x) > 0].view(1, -1)

    with pytest.raises(UnsupportedError, match="which computations follow would depend on values"):
        HATNetwork(Model(pick, linear=nn.Linear(4, 8), other=nn.Linear(4, 8)), torch.zeros(2, 4))


def test_a_view_takes_part_in_a_skip_connection_in_place() -> None:
    def skip(model: Model, x: Tensor) -> Tensor:
        first, second = model.linear(x), model.other(x)
        part = second[:, :8]
        part += first
        return part

    net = HATNetwork(Model(skip, linear=nn.Linear(4, 8), other=nn.Linear(4, 8)), torch.zeros(2, 4))
    assert [group.size for group in net.units.groups] == [8]


def test_units_of_different_layers_are_coupled_by_what_runs_through_both() -> None:
    class TokenAndPatches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.out = nn.Linear(4, 8), nn.Linear(8, 5)
            self.token, self.factor = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            h = torch.cat([self.token.expand(len(x), -1, -1), self.linear(x)], dim=1)
            return self.out((h * self.factor).mean(1))

    net = HATNetwork(TokenAndPatches(), torch.zeros(2, *TOKENS))
    assert [group.size for group in net.units.groups] == [8, 5]
    assert net.units.roles["backbone.factor"] is Role.PER_UNIT


def test_a_depthwise_convolution_of_the_input_has_units_of_its_own() -> None:
    net = HATNetwork(nn.Sequential(nn.Conv2d(2, 8, 3, groups=2), nn.ReLU(), nn.Flatten()), torch.zeros(2, *IMAGE))
    assert [group.size for group in net.units.groups] == [8]
    assert net.units.roles["backbone.0.weight"] is Role.MIXING
