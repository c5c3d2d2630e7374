"""Gradients of convolutions without what is frozen, and without channels that are 0: what is free gets its gradient."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork
from hatrack.gating.gates import ActiveTask
from hatrack.gating.partial_gradients import PartialGradient, PartialGradientSwitch, partial_gradient_for
from support.helpers import logits

SHAPE = (2, 9, 8)

Make = Callable[..., torch.optim.Optimizer]


def outer(rows: float, columns: float, shape: tuple[int, ...] = (40, 30, 3, 2)) -> Tensor:
    """Frozen entries of a weight whose first channels are frozen."""
    o, i, *window = shape
    frozen = (torch.arange(o) < rows * o)[:, None] & (torch.arange(i) < columns * i)[None]
    return frozen.view(o, i, *[1] * len(window)).expand(shape).contiguous()


@pytest.mark.parametrize(
    ("frozen", "rows", "columns"),
    [
        (outer(0.0, 0.0), None, None),
        (outer(0.25, 1.0), None, None),
        (outer(0.5, 1.0), 20, None),  # a layer that reads the input
        (outer(1.0, 1.0), 0, None),
        (outer(0.9, 0.9), 4, 3),
        (outer(0.75, 0.75), 10, 7),
        (outer(0.7, 0.7), 40, None),  # all but channels that are 0
        (outer(0.5, 0.5), None, None),
        (torch.zeros(0, 3, 2, 2, dtype=torch.bool), None, None),
    ],
)
def test_what_is_computed_follows_from_what_is_frozen(frozen: Tensor, rows: int | None, columns: int | None) -> None:
    found = partial_gradient_for(frozen)
    if rows is None:
        assert found is None
        return
    assert found is not None
    assert len(found.rows) == rows
    assert (None if found.columns is None else len(found.columns)) == columns
    one = frozen.clone()
    one[0, 0, 0, 0] = False  # a single free entry keeps its row or its column
    found = partial_gradient_for(one)
    assert found is None or 0 in found.rows or (found.columns is not None and 0 in found.columns)


def on_plain_and_partial(
    layer: nn.Module, frozen: Tensor, x: Tensor, of: Tensor, *, look: bool = True
) -> tuple[list[Tensor], list[Tensor]]:
    """Result and gradients of the layer as torch computes them, and with a partial gradient."""
    weight = layer.get_parameter("weight")
    partial = partial_gradient_for(frozen)
    rows = torch.arange(len(weight)) if partial is None else partial.rows
    columns = None if partial is None else partial.columns
    switch = PartialGradientSwitch("", layer, {"": PartialGradient(rows, columns, weight)}, ActiveTask())
    found = []
    for forward in (type(layer).forward.__get__(layer), switch.forward):
        given = x.clone().requires_grad_()
        result = forward(given)
        parameters = [*layer.parameters()]
        gradients = torch.autograd.grad(result, [given, *parameters], of, create_graph=not look)
        found.append([result.detach(), *(gradient.detach() for gradient in gradients)])
    return found[0], found[1]


@example(1, 12, 10, 3, 1, 1, 0.9, 0.5, torch.float64, True, 0)
@example(2, 12, 10, 3, 2, 1, 0.9, 0.0, torch.float32, False, 1)
@given(
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(1, 10),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_free_entries_get_their_gradients_under_any_masks(
    axes: int,
    outputs: int,
    inputs: int,
    window: int,
    stride: int,
    padding: int,
    share: float,
    live: float,
    dtype: torch.dtype,
    bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    layer = kind(inputs, outputs, window, stride, padding, bias=bias).to(dtype)
    x = torch.randn(3, inputs, *[5] * axes, dtype=dtype)
    of = torch.randn_like(layer(x))
    x *= (torch.rand(inputs) < live).view(-1, *[1] * axes)
    of *= (torch.rand(outputs) < live).view(-1, *[1] * axes)
    used_outputs, used_inputs = torch.rand(outputs) < share, torch.rand(inputs) < share
    weight = layer.weight
    frozen = (used_outputs[:, None] & used_inputs).view(outputs, inputs, *[1] * axes).expand_as(weight)
    plain, partial = on_plain_and_partial(layer, frozen, x, of)
    assert torch.equal(plain[0], partial[0]), "the forward pass is another one"
    close = {"rtol": 0, "atol": 1e-12 if dtype is torch.float64 else 1e-3}
    torch.testing.assert_close(partial[1], plain[1], **close)
    torch.testing.assert_close(partial[2][~frozen], plain[2][~frozen], **close)
    rest, whole = partial[2][frozen], plain[2][frozen]
    assert ((rest == 0) | torch.isclose(rest, whole, **close)).all()
    for one, other in zip(partial[3:], plain[3:], strict=True):
        torch.testing.assert_close(one, other, **close)


def test_channels_that_are_0_are_left_out_unless_gradients_are_differentiated() -> None:
    layer = nn.Conv2d(6, 8, 3)
    x, of = torch.randn(2, 6, 5, 5), torch.randn(2, 8, 3, 3)
    x[:, :4], of[:, :5] = 0.0, 0.0
    x[1, 2, 0, 0] = of[1, 3, 1, 1] = -1e-30  # in a single place of one sample
    frozen = torch.zeros(8, 6, 3, 3, dtype=torch.bool)
    plain, partial = on_plain_and_partial(layer, frozen, x, of)
    torch.testing.assert_close(partial, plain)
    assert (partial[2][3] != 0).any()
    assert (partial[2][:, 2] != 0).any()
    with torch.no_grad():
        layer.weight[4] = float("inf")  # times 0 is not a number; that it is left out shows in the input's gradient
    plain, partial = on_plain_and_partial(layer, frozen, x, of)
    assert plain[1].isnan().any()
    assert partial[1].isfinite().all()
    _, partial = on_plain_and_partial(layer, frozen, x, of, look=False)
    assert partial[1].isnan().any(), "a second derivative would miss what is 0"


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.ConvTranspose2d(4, 4, 3),
        type("Own", (nn.Conv2d,), {})(4, 4, 3),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    ],
)
def test_other_convolutions_are_left_as_they_are(layer: nn.Module) -> None:
    assert not PartialGradientSwitch.fits(layer)


class Residual(nn.Module):
    """Two convolutions with norms beside a shortcut, then a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(12, 10, 2, stride=2)
        self.dense = nn.Linear(10 * 4 * 4, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        h = F.relu(self.norm2(self.conv2(h)) + h)
        return F.relu(self.dense(F.relu(self.conv3(h)).flatten(1)))


@functools.cache
def original() -> HATNetwork:
    torch.manual_seed(0)
    net = HATNetwork(Residual(), torch.zeros(2, *SHAPE), s_max=100.0)
    on = torch.rand(net.units.num_units, generator=torch.Generator().manual_seed(2)) < 0.85
    net.add_task("first", 3, embedding=torch.where(on, 1.0, -1.0))
    net.consolidate("first")
    net.add_task("second", 3)
    return net


def full_network() -> tuple[HATNetwork, Tensor, Tensor]:
    """A network of which one task holds most, with a second one in training."""
    net = copy.deepcopy(original())
    torch.manual_seed(1)
    x, y = torch.randn(24, *SHAPE), torch.randint(0, 3, (24,))
    return net, x, y


def gradients(net: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_gradients_are_those_of_the_plain_layers(progress: float) -> None:
    net, x, y = full_network()
    net.double()
    plain_net = copy.deepcopy(net)
    plain_net.masking.attachment.partial_gradients.clear()
    found, losses = [], []
    for each in (net, plain_net):
        each.anneal(progress)
        losses.append(F.cross_entropy(each(x.double(), "second"), y) + each.regularization())
        found.append(gradients(each, losses[-1]))
    assert {"conv1", "conv2", "conv3"} <= net.masking.attachment.partial_gradients.keys(), "no gradient was partial"
    assert torch.equal(*losses)
    assert found[0].keys() == found[1].keys()
    frozen = net.protected()
    for name, value in found[0].items():
        free = ~frozen[name] if name in frozen else torch.ones_like(value, dtype=torch.bool)
        torch.testing.assert_close(value[free], found[1][name][free], rtol=0, atol=1e-13)
    assert not found[0]["backbone.conv1.weight"][frozen["backbone.conv1.weight"]].any()


@pytest.mark.parametrize(
    ("make", "precision"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), torch.float32),
        (lambda p: torch.optim.SGD(p, lr=0.1), torch.bfloat16),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1), torch.float32),
        (lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1), torch.float32),
    ],
    ids=["sgd", "sgd-bfloat16", "momentum", "adamw"],
)
def test_old_outputs_stay_and_new_tasks_learn(make: Make, precision: torch.dtype) -> None:
    net, x, y = full_network()
    promised = logits(net, x, "first")
    with torch.enable_grad():
        with_graph = net.eval()(x, "first").detach()
    optimizer = net.protect(make(net.task_parameters("second")))
    net.train()
    losses = []
    for step in range(12):
        net.anneal(step % 4 / 3)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            loss = F.cross_entropy(net(x, "second").float(), y)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[3]
    assert torch.equal(logits(net, x, "first"), promised)
    assert torch.equal(net.eval()(x, "first").detach(), with_graph)
    net.consolidate("second")
    net.check()


def test_second_derivatives_are_those_of_the_plain_layers() -> None:
    net, x, y = full_network()
    net.double()
    x = x.double().requires_grad_()
    net.anneal(1.0)
    found = []
    for _ in range(2):
        (slope,) = torch.autograd.grad(F.cross_entropy(net.eval()(x, "second"), y), x, create_graph=True)
        found.append(gradients(net, slope.square().sum()))
        net.masking.attachment.partial_gradients.clear()
    for name, frozen in net.protected().items():
        if name in found[0] and "conv" in name:
            torch.testing.assert_close(found[0][name][~frozen], found[1][name][~frozen], rtol=0, atol=1e-13)
