"""Functions that mix units, with weights of one's own: exact behind a gate at their module's input, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from hatrack import HATNetwork, UnsupportedError
from support.helpers import assert_poison_harmless


class Function(nn.Module):
    """Calls a function with a parameter and its arguments."""

    def __init__(self, function: Callable[..., Tensor], *shape: int) -> None:
        super().__init__()
        self.function, self.p = function, nn.Parameter(torch.randn(shape)) if shape else None

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(self.p, *args)


class Twice(nn.Module):
    """Gives one value for two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 12)
        self.inner = Function(lambda p, one, other: one * F.normalize(one, dim=1) + other.relu())

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.inner(h, h)


class Shared(nn.Module):
    """One module with a function that reads, for two values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(4, 12)
        self.mix = Function(lambda p, x: x.sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.mix(self.a(x)), self.mix(self.b(x))
        return one * one.mean(1, keepdim=True) + other.flip(1)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(4, 24), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x).view(-1, 6, 4)).flatten(1)


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 12), *layers)


def standardized(p: Tensor, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(p, dim=1, keepdim=True)
    return F.linear(x, (p - mean) / torch.sqrt(variance + 1e-5))


def padded_with_ones(p: Tensor, x: Tensor) -> Tensor:
    return F.conv1d(F.pad(x.unsqueeze(-1), (1, 1), value=1.0), p).flatten(1)


def joined_to_ones(p: Tensor, x: Tensor) -> Tensor:
    return F.conv1d(torch.cat([x.unsqueeze(-1), torch.ones(len(x), 12, 1)], dim=-1), p).flatten(1)


class After(nn.Module):
    """Reads where the module is done whose input it was."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.inner = nn.Linear(4, 12), Function(lambda p, x: F.layer_norm(x, (12,)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.inner(h) * h.mean(1, keepdim=True)


EXACT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "linear": (lambda: sequence(Function(lambda p, x: F.linear(x, p), 9, 12)), 21),
    "scaled linear": (lambda: sequence(Function(lambda p, x: F.linear(x, p * 0.5), 9, 12)), 21),
    "standardized rows": (lambda: sequence(Function(standardized, 9, 12)), 21),
    "layer norm": (lambda: sequence(Function(lambda p, x: F.layer_norm(x, (12,), p), 12)), 12),
    "norm by hand": (lambda: sequence(Function(lambda p, x: p * x / x.pow(2).mean(-1, keepdim=True).sqrt(), 12)), 12),
    "a norm, then linear": (lambda: sequence(Function(lambda p, x: F.linear(F.layer_norm(x, (12,)), p), 9, 12)), 21),
    "running sums, then linear": (lambda: sequence(Function(lambda p, x: F.linear(x.cumsum(1), p), 9, 12)), 21),
    "ones as padding": (lambda: sequence(Function(padded_with_ones, 9, 12, 3)), 21),
    "ones joined to it": (lambda: sequence(Function(joined_to_ones, 9, 12, 2)), 21),
    "one value twice": (Twice, 12),
    "a shared module": (Shared, 6),
    "after the module whose input it was": (After, 12),
    "a norm within heads": (Heads, 6),
    "maxout": (lambda: sequence(Function(lambda p, x: x.view(-1, 4, 3).amax(2))), 4),
    "weight norm": (lambda: sequence(weight_norm(nn.Linear(12, 9))), 21),
    "weight norm along inputs": (lambda: sequence(weight_norm(nn.Linear(12, 9), dim=1), nn.ReLU()), 21),
    "one norm for all": (lambda: sequence(weight_norm(nn.Linear(12, 9), dim=None)), 21),
    "orthogonal": (lambda: sequence(orthogonal(nn.Linear(12, 12))), 24),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_and_as_fine_as_can_be(name: str) -> None:
    build, units = EXACT[name]
    torch.manual_seed(0)
    net = HATNetwork(build(), torch.zeros(2, 4))
    assert net.units.num_units == units
    samples = {}
    for task in ("a", "b"):
        net.add_task(task, 2)
        net.consolidate(task)
        samples[task] = 3 * torch.randn(6, 4)
    assert_poison_harmless(net, samples)


def test_weight_norm_holds_whole_rows_since_each_entry_is_in_its_norm() -> None:
    torch.manual_seed(0)
    net = HATNetwork(sequence(nn.ReLU(), weight_norm(nn.Linear(12, 9))), torch.zeros(2, 4))
    net.add_task("a", 2)
    net.consolidate("a")
    used, held = net.masks("a")["2"], net.protected()
    assert 0 < used.sum() < 9
    assert torch.equal(held["backbone.2.parametrizations.weight.original1"], used[:, None].expand(9, 12))
    assert torch.equal(held["backbone.2.parametrizations.weight.original0"], used[:, None])


def joined(p: Tensor, x: Tensor) -> Tensor:
    h = x + p
    return h / h.norm(dim=1, keepdim=True)


def changed(p: Tensor, x: Tensor) -> Tensor:
    x.sigmoid_()
    return x / x.norm(dim=1, keepdim=True)


def changed_through_a_view(p: Tensor, x: Tensor) -> Tensor:
    x.view(-1, 12).add_(p)
    return x / x.norm(dim=1, keepdim=True)


def decided(p: Tensor, x: Tensor) -> Tensor:
    return x if x.mean(1).sqrt().sum() > 0 else -x


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sequence(Function(joined, 12)), "norm: it mixes several units where no gate can stand"),
        (lambda: sequence(Function(changed)), "changes its input in place"),
        (lambda: sequence(Function(changed_through_a_view, 12)), "where no gate can stand"),
        (lambda: sequence(Function(decided)), "__bool__"),
        (lambda: sequence(spectral_norm(nn.Linear(12, 9))), "1: spectral norm estimates anew"),
        (lambda: sequence(nn.utils.spectral_norm(nn.Linear(12, 9))), "1: spectral norm estimates anew"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_no_gate_can_make_exact_is_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        HATNetwork(build(), torch.zeros(2, 4))
