"""Cheap dropout does to a tensor what torch's does: entries become 0 by a probability, and the mean stays."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hatrack
from hatrack.backbones import AlexNet, Dropout
from hatrack.support import dropout

LARGE = (16, 8, 16, 17)
"""Shape of a tensor that is large enough."""


def dropped(x: Tensor, p: float, seed: int = 0, kind: type[nn.Dropout] = Dropout) -> Tensor:
    torch.manual_seed(seed)
    layer = kind(p)
    found: Tensor = layer(x)
    return found


@given(
    p=st.floats(0.004, 0.996),
    seed=st.integers(0, 2**31),
    form=st.sampled_from(["contiguous", "channels last", "transposed", "every second", "broadcast"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_entries_are_0_or_scaled_and_as_many_as_was_asked_for(
    p: float, seed: int, form: str, dtype: torch.dtype
) -> None:
    x = torch.rand(*LARGE, generator=torch.Generator().manual_seed(seed)).add(1).to(dtype)
    if form == "channels last":
        x = x.to(memory_format=torch.channels_last)
    elif form == "transposed":
        x = x.transpose(1, 3)
    elif form == "every second":
        x = torch.cat([x, x], 1)[:, ::2]
    elif form == "broadcast":
        x = x[:, :1].expand(*LARGE)
    y = dropped(x, p, seed)
    levels = round(p * 65536)
    scale = torch.tensor(65536 / (65536 - levels), dtype=torch.float64).to(dtype)
    kept = y != 0
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert torch.equal(y[kept], (x * scale)[kept])
    share = float(kept.double().mean())
    assert abs(share - (1 - levels / 65536)) < 6 * math.sqrt(p * (1 - p) / x.numel())
    assert torch.equal(dropped(x, p, seed), y)
    assert not torch.equal(dropped(x, p, seed + 1), y)


def test_entries_are_dropped_apart() -> None:
    kept = (dropped(torch.ones(2**18), 0.5) != 0).double() - 0.5
    for distance in (1, 2, 3, 4, 8, 1024):
        assert abs(float((kept[distance:] * kept[:-distance]).mean())) < 6 * 0.25 / 2**9


def test_gradients_pass_where_values_do() -> None:
    x = torch.rand(LARGE).add(1).requires_grad_()
    y = dropped(x, 0.3)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad * x.detach(), y.detach())
    scaled = torch.rand(LARGE, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(dropped(scaled, 0.3).square().sum(), scaled, create_graph=True)[0].requires_grad


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(torch.rand(8, 16), id="few entries"),
        pytest.param(torch.rand(LARGE, device="meta"), id="another device"),
        pytest.param(nn.Parameter(torch.rand(LARGE)), id="another kind of tensor"),
        pytest.param(torch.rand(LARGE).to_sparse(), id="another layout"),
        pytest.param(torch.rand(LARGE).to(torch.complex64), id="complex numbers"),
    ],
)
def test_elsewhere_it_is_torchs_own(x: Tensor) -> None:
    def said(kind: type[nn.Dropout]) -> Tensor | str:
        try:
            return dropped(x, 0.5, kind=kind)
        except (RuntimeError, NotImplementedError) as error:
            return type(error).__name__

    mine, own = said(Dropout), said(nn.Dropout)
    if isinstance(mine, str) or isinstance(own, str) or mine.is_meta:
        assert type(mine) is type(own)
    else:
        assert torch.equal(mine.to_dense(), own.to_dense())


@pytest.mark.parametrize("p", [0.0, 0.001, 0.999, 1.0])
def test_at_the_ends_it_is_torchs_own(p: float) -> None:
    x = torch.rand(LARGE)
    assert torch.equal(dropped(x, p), dropped(x, p, kind=nn.Dropout))


def test_function_transforms_tracing_and_evaluation_go_on() -> None:
    layer, x = Dropout(0.5), torch.rand(LARGE)
    assert torch.func.vmap(layer, randomness="different")(x).shape == x.shape
    assert layer.eval()(x) is x
    inplace, y = Dropout(0.5, inplace=True), x.clone()
    assert inplace(y) is y


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripts_have_torchs_own() -> None:
    script, x = torch.jit.script(nn.Sequential(Dropout(0.5))), torch.rand(LARGE)
    torch.manual_seed(0)
    assert torch.equal(script(x), dropped(x, 0.5, kind=nn.Dropout))
    assert torch.equal(script.eval()(x), x)


def test_a_checkpoint_drops_the_same_again() -> None:
    layer, x = Dropout(0.5), torch.rand(LARGE, requires_grad=True)
    y = checkpoint(lambda z: layer(z) * z, x, use_reentrant=False)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, 2 * torch.where(y != 0, 2 * x.detach(), 0.0))


def test_a_network_with_it_keeps_the_law_and_is_extracted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "ENTRIES_WORTH", 1)
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    net = hatrack.HATNetwork(AlexNet(width=0.05), x[:1])
    said = None
    for task in ("first", "second"):
        net.add_task(task, num_classes=2)
        optimizer = net.protect(torch.optim.SGD(net.task_parameters(task), lr=0.1))
        net.train()
        for progress in (0.0, 1.0):
            net.anneal(progress)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x, task), y).backward()
            optimizer.step()
        net.consolidate(task)
        net.eval()
        said = net(x, "first") if said is None else said
    assert torch.equal(net(x, "first"), said)
    assert torch.allclose(net.extract("first")(x), said, atol=1e-5)
    assert torch.equal(copy.deepcopy(net)(x, "first"), said)
