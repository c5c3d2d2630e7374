"""Calls that are legal torch and easy to overlook: each is explained, or refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork, UnsupportedError
from support.helpers import assert_poison_harmless


class Model(nn.Module):
    def __init__(self, function: Callable[[Model, Tensor], Tensor], modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def linears(**widths: int) -> dict[str, nn.Module]:
    return {name: nn.Linear(4, width) for name, width in widths.items()}


def comparison_reshaped(m: Model, x: Tensor) -> Tensor:
    on = (m.a(x) > 0).unsqueeze(1).flatten(1)
    return torch.where(on, m.b(x), torch.ones(()))


def comparisons_concatenated(m: Model, x: Tensor) -> Tensor:
    on = torch.cat([m.a(x) > 0, torch.ones(len(x), 1, dtype=torch.bool)], dim=1)
    return torch.where(on, m.b(x), torch.ones(()))


def grouped_queries(m: Model, x: Tensor) -> Tensor:
    q, k = m.a(x).view(len(x), 3, 4, 2).transpose(1, 2), m.b(x).view(len(x), 3, 2, 2).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, k, enable_gqa=True).transpose(1, 2).flatten(1)


def short_transpose(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    return ((h @ h.mT).softmax(-1) @ m.b(x)).flatten(1)


def masked_by_units(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.attention(h, h, h, need_weights=False, key_padding_mask=m.b(x)[..., 0] > 1)[0].flatten(1)


def biased_by_units(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.attention(h, h, h, need_weights=False, attn_mask=m.b(x).repeat_interleave(2, 0))[0].flatten(1)


def spread_without_correction(m: Model, x: Tensor) -> Tensor:
    return m.b(x)[:, 0] * m.a(x).std(False)


def normalized(m: Model, x: Tensor) -> Tensor:
    return m.norm(m.a(x)).flatten(1)


def mixture(m: Model, x: Tensor) -> Tensor:
    share = torch.softmax(m.weights[0], dim=0)
    return share[0] * m.a(x) + share[1] * m.b(x)


def larger_of_two(m: Model, x: Tensor) -> Tensor:
    return torch.max(m.a(x), m.b(x)).clip(-1, 1)


def largest_position(m: Model, x: Tensor) -> Tensor:
    return torch.hstack([m.a(x).max(dim=1).values, m.b(x).min(1)[0]])


TOKENS, VECTOR = (3, 4), (4,)
CASES: dict[str, tuple[Callable[[Model, Tensor], Tensor], Callable[[], dict[str, nn.Module]], tuple[int, ...]]] = {
    "a comparison is reshaped": (comparison_reshaped, lambda: linears(a=8, b=8), VECTOR),
    "comparisons are concatenated": (comparisons_concatenated, lambda: linears(a=7, b=8), VECTOR),
    "queries share keys": (grouped_queries, lambda: linears(a=8, b=4), TOKENS),
    "mT": (short_transpose, lambda: linears(a=6, b=8), TOKENS),
    "units mask keys": (
        masked_by_units,
        lambda: linears(a=8, b=1) | {"attention": nn.MultiheadAttention(8, 2, batch_first=True)},
        TOKENS,
    ),
    "units bias scores": (
        biased_by_units,
        lambda: linears(a=8, b=3) | {"attention": nn.MultiheadAttention(8, 2, batch_first=True)},
        TOKENS,
    ),
    "std(False)": (spread_without_correction, lambda: linears(a=1, b=8), TOKENS),
    "the larger of two": (larger_of_two, lambda: linears(a=8, b=8), VECTOR),
    "the largest over positions": (largest_position, lambda: linears(a=8, b=8), TOKENS),
    "a learned mixture": (mixture, lambda: linears(a=8, b=8) | {"weights": nn.ParameterList([torch.zeros(2)])}, VECTOR),
    "batch norm of tokens with statistics of the batch": (
        normalized,
        lambda: linears(a=8) | {"norm": nn.BatchNorm1d(3, track_running_stats=False)},
        TOKENS,
    ),
    "batch norm of tokens": (normalized, lambda: linears(a=8) | {"norm": nn.BatchNorm1d(3)}, TOKENS),
}


@pytest.mark.filterwarnings("ignore:all .* are coupled into a single unit")
@pytest.mark.parametrize("name", CASES)
def test_what_is_explained_is_exact(name: str) -> None:
    function, modules, shape = CASES[name]
    torch.manual_seed(0)
    net = HATNetwork(Model(function, modules()), torch.zeros(2, *shape))
    samples = {}
    for task in ("a", "b"):
        net.add_task(task, 2)
        net.consolidate(task)
        samples[task] = 3 * torch.randn(6, *shape)
    if net.units.num_units > 1:  # a single unit is always on, and leaves nothing to poison
        assert_poison_harmless(net, samples)


def both_ways(m: Model, x: Tensor) -> Tensor:
    return (m.norm(m.a(x)) + m.norm(m.a(x).transpose(1, 2)).transpose(1, 2)).flatten(1)


def test_a_norm_called_with_units_along_different_axes_is_refused() -> None:
    modules = {"a": nn.Linear(4, 4), "norm": nn.LayerNorm([4, 4])}
    with pytest.raises(UnsupportedError, match="another axis"):
        HATNetwork(Model(both_ways, modules), torch.zeros(2, 4, 4))


def plain_swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * s * (1 + x * (1 - s))


def test_a_scripted_function_is_refused_by_name_and_line() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        swish = torch.jit.trace(plain_swish, torch.zeros(2, 8))
    backbone = Model(lambda m, x: m.b(swish(m.a(x))), {"a": nn.Linear(4, 8), "b": nn.Linear(8, 8)})
    with pytest.raises(UnsupportedError, match=r"aten\.sigmoid.*\(at test_odd_calls\.py:\d+\)"):
        HATNetwork(backbone, torch.zeros(2, 4))


def test_an_autograd_function_of_ones_own_is_followed() -> None:
    backbone = Model(lambda m, x: m.b(Swish.apply(m.a(x))), {"a": nn.Linear(4, 8), "b": nn.Linear(8, 8)})
    assert [group.size for group in HATNetwork(backbone, torch.zeros(2, 4)).units.groups] == [8, 8]


@pytest.mark.filterwarnings("ignore:all .* are coupled into a single unit")
def test_units_of_which_the_largest_tells_what_to_choose_are_read() -> None:
    torch.manual_seed(0)
    backbone = Model(
        lambda m, x: m.c(x) + m.b(x).gather(1, m.a(x).max(dim=1, keepdim=True).indices), linears(a=8, b=8, c=8)
    )
    net = HATNetwork(backbone, torch.zeros(2, 4))
    assert {group.name: group.size for group in net.units.groups} == {"a": 8, "c": 8}, "what is chosen is always on"
    for task in ("a", "b"):
        net.add_task(task, 2)
        net.consolidate(task)
    assert_poison_harmless(net, {task: 3 * torch.randn(6, 4) for task in ("a", "b")})


def test_a_layer_that_collapses_into_one_unit_is_announced() -> None:
    def mixing(trace: Any, call: Any) -> Tensor:
        labels = trace.labels(call.args[0])
        return trace.coupling.merge(labels, -1).expand(labels.shape)

    backbone = nn.Sequential(nn.Linear(4, 24), nn.Identity(), nn.Linear(24, 8))
    with pytest.warns(UserWarning, match="all 24 outputs of 0 are coupled into a single unit"):
        net = HATNetwork(backbone, torch.zeros(2, 4), rules={"1": mixing})
    assert "1 of 24 outputs" in str(net.units)
    assert "all 24 outputs of 0 are coupled into a single unit" in str(net.units)


class Own(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {"value": x.relu()}


def failing(error: type[Exception]) -> Callable[..., Any]:
    def explain(trace: Any, call: Any) -> Any:
        raise error("no such thing")

    return explain


RULES: dict[str, tuple[Callable[..., Any], str]] = {
    **{e.__name__: (failing(e), "no such thing") for e in (ValueError, IndexError, RuntimeError, KeyError, TypeError)},
    "AssertionError": (failing(AssertionError), "AssertionError"),
    "another shape": (lambda trace, call: torch.zeros(3, dtype=torch.int64), "labels of shape"),
    "nothing": (lambda trace, call: None, "NoneType"),
    "one for a dictionary": (lambda trace, call: trace.labels(call.args[0]), "result that is a dict"),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("samples", [1, 2])
def test_a_rule_that_fails_is_no_network_that_fails(name: str, samples: int) -> None:
    explain, message = RULES[name]
    own = Own() if "dictionary" in name else nn.Identity()
    backbone = Model(lambda m, x: m.own(m.a(x)), {"a": nn.Linear(4, 8), "own": own})
    with pytest.raises(UnsupportedError, match=f"own: its rule does not fit this call .*{message}"):
        HATNetwork(backbone, torch.zeros(samples, 4), rules={"own": explain})


def test_a_rule_that_fails_for_some_inputs_alone_refuses_these() -> None:
    def explain(trace: Any, call: Any) -> Tensor:
        assert call.output.shape[-1] == 8
        return trace.labels(call.args[0])

    function: Any = torch.Tensor.relu
    backbone = Model(lambda m, x: m.a(x).mT.relu().mT.mean(1), {"a": nn.Linear(4, 8)})
    net = HATNetwork(backbone, torch.zeros(2, 8, 4), rules={function: explain})
    net.add_task("a", 2)
    with pytest.raises(UnsupportedError, match=r"inputs \(N, 5, 4\).*relu: its rule does not fit this call"):
        net.eval()(torch.zeros(2, 5, 4), "a")


def products_by_name(m: Model, x: Tensor) -> Tensor:
    h, k = m.a(x), m.b(x)
    scores = torch.matmul(other=k.mT, input=h)
    return (torch.bmm(input=scores, mat2=h) + torch.bmm(scores, mat2=h)).flatten(1)


def test_products_by_name() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Model(products_by_name, linears(a=8, b=8)), torch.zeros(2, 3, 4))
    assert [group.size for group in net.units.groups] == [8, 8]
    net.add_task("a", 2)
    net.consolidate("a")
    assert_poison_harmless(net, {"a": torch.randn(4, 3, 4)})


def applied(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Model, Tensor], Tensor]:
    return lambda m, x: function(m.a(x), m.b(x)).flatten(1)


Function = Callable[[Tensor, Tensor], Tensor]
ALIKE: dict[str, tuple[Function, Function]] = {
    "mean(axis, keepdims)": (lambda g, h: g.mean(axis=1, keepdims=True), lambda g, h: g.mean(1, True)),
    "sum(axis)": (lambda g, h: torch.sum(g, axis=1), lambda g, h: g.sum(1)),
    "sum(axes)": (lambda g, h: torch.sum(g, axis=(1,)), lambda g, h: g.sum(1)),
    "sum(x)": (lambda g, h: torch.sum(x=g, dim=1), lambda g, h: g.sum(1)),
    "var(axis)": (lambda g, h: g.var(axis=1), lambda g, h: g.var(1)),
    "std(axis)": (lambda g, h: torch.std(g, axis=1, keepdims=True), lambda g, h: g.std(1)),
    "amax(axis)": (lambda g, h: g.amax(axis=1), lambda g, h: g.amax(1)),
    "max(axis)": (lambda g, h: g.max(axis=1, keepdims=True)[0], lambda g, h: g.max(1)[0]),
    "logsumexp(axis)": (lambda g, h: g.logsumexp(axis=1), lambda g, h: g.logsumexp(1)),
    "softmax(axis)": (lambda g, h: g.softmax(axis=1), lambda g, h: g.softmax(1)),
    "cumsum(axis)": (lambda g, h: g.cumsum(axis=1), lambda g, h: g.cumsum(1)),
    "stack(axis)": (lambda g, h: torch.stack((g, h), axis=3), lambda g, h: torch.stack((g, h), 3)),
    "cat(axis)": (lambda g, h: torch.cat((g, h), axis=1), lambda g, h: torch.cat((g, h), 1)),
    "unbind(axis)": (lambda g, h: g.unbind(axis=1)[0], lambda g, h: g[:, 0]),
    "squeeze(axis)": (lambda g, h: g[:, :1].squeeze(axis=1), lambda g, h: g[:, 0]),
    "add(x1, x2)": (lambda g, h: torch.add(x1=g, x2=h), lambda g, h: g + h),
    "multiply": (torch.multiply, torch.mul),
    "subtract": (lambda g, h: g.subtract(h), torch.sub),
    "divide": (torch.divide, torch.div),
    "true_divide": (torch.true_divide, torch.div),
    "multiply_": (lambda g, h: g.multiply_(h), torch.mul),
    "clamp_ between units": (lambda g, h: g.clamp_(min=h), lambda g, h: torch.maximum(g, h)),
    "arctan2": (torch.arctan2, torch.atan2),
    "greater": (lambda g, h: torch.where(torch.greater(g, h), g, h), torch.maximum),
    "negative": (lambda g, h: torch.negative(g), lambda g, h: -g),
    "absolute": (lambda g, h: g.absolute(), lambda g, h: abs(g)),
    "arctan": (lambda g, h: torch.arctan(g), lambda g, h: g.atan()),
    "data": (lambda g, h: g.data, lambda g, h: g.detach()),
    "moveaxis": (lambda g, h: g.moveaxis(1, 2), lambda g, h: g.mT),
    "ravel": (lambda g, h: g.ravel().view(g.shape), lambda g, h: g),
    "concatenate": (lambda g, h: torch.concatenate((g, h), axis=2), lambda g, h: torch.cat((g, h), 2)),
    "bits": (lambda g, h: g.view(torch.int32).view(dtype=torch.float32), lambda g, h: g),
    "pad by names": (lambda g, h: F.pad(input=g, pad=(0, 1), value=1.0), lambda g, h: F.pad(g, (0, 1), value=1.0)),
    "out=": (lambda g, h: torch.add(g, 1, out=torch.empty_like(h)), lambda g, h: g + 1),
    "hooks and gradients": (lambda g, h: asked(g), lambda g, h: g),
}


def asked(h: Tensor) -> Tensor:
    assert h.grad_fn is None or h.requires_grad
    if h.requires_grad:
        h.register_hook(lambda gradient: gradient)
        h.retain_grad()
    return h if h.grad is None and not h._backward_hooks else h.view_as(h)


@pytest.mark.filterwarnings("ignore:all .* are coupled into a single unit")
@pytest.mark.parametrize("name", ALIKE)
def test_another_name_for_the_same_finds_the_same_units(name: str) -> None:
    torch.manual_seed(0)
    nets = [HATNetwork(Model(applied(each), linears(a=6, b=6)), torch.zeros(2, 3, 4)) for each in ALIKE[name]]
    groups = [[(group.name, group.size) for group in net.units.groups] for net in nets]
    assert groups[0] == groups[1]
    net = nets[0]
    for task in ("a", "b"):
        net.add_task(task, 2)
        net.consolidate(task)
    assert_poison_harmless(net, {task: 3 * torch.randn(6, 3, 4) for task in ("a", "b")})


def test_parts_of_numbers_are_refused() -> None:
    backbone = Model(applied(lambda g, h: g.view(torch.int16).float()), linears(a=6, b=6))
    with pytest.raises(UnsupportedError, match="parts of numbers"):
        HATNetwork(backbone, torch.zeros(2, 3, 4))


def shy(m: Model, x: Tensor) -> Tensor:
    """Fails where it is watched, as code that is compiled does, or that looks at the stack of modes."""
    if x.dim() > 2 and torch.overrides._get_current_function_mode_stack():
        raise m.error("somebody is watching")
    return m.a(x.flatten(1)[:, :4])


@pytest.mark.parametrize("error", [RuntimeError, TypeError, KeyError])
def test_a_network_that_fails_only_while_it_is_followed_is_refused(error: type[Exception]) -> None:
    backbone = Model(shy, linears(a=6))
    backbone.error = error
    with pytest.raises(UnsupportedError, match=r"runs by itself, but not while it is followed.*somebody is watching"):
        HATNetwork(backbone, torch.zeros(2, 3, 4))
    backbone = Model(shy, linears(a=6))
    backbone.error = error
    net = HATNetwork(backbone, torch.zeros(2, 4))
    net.add_task("a", 2)
    with pytest.raises((UnsupportedError, error)):
        net.eval()(torch.zeros(2, 3, 4), "a")


def out_of_a_part(g: Tensor, h: Tensor) -> Tensor:
    whole = torch.zeros(len(g), 12)
    torch.exp(g, out=whole[:, :6])
    return whole


def whole_of_a_part(g: Tensor, h: Tensor) -> Tensor:
    whole = torch.zeros(len(g), 12)
    part = whole[:, :6]
    whole.add_(torch.cat([g, h], 1))
    return part


def out_of_a_whole(g: Tensor, h: Tensor) -> Tensor:
    whole = torch.zeros(len(g), 12)
    part = whole.unflatten(1, (2, 6))
    torch.cat([g, h], 1, out=whole)
    return part.flatten(1)


def by_another_name(g: Tensor, h: Tensor) -> Tensor:
    whole = torch.zeros(len(g), 6)
    other = whole.detach()
    whole += g
    return other


def parts_of_a_whole(g: Tensor, h: Tensor) -> Tensor:
    whole = g.new_empty(len(g), 12)
    first, middle = whole[:, :6], whole[:, 3:9]
    first.copy_(g)
    whole[:, 6:].copy_(h)
    return middle + 1


def test_only_parameters_and_bits_may_not_be_written_to_by_a_view() -> None:
    def function(g: Tensor, h: Tensor) -> Tensor:
        whole = torch.zeros(len(g), 6)
        bits = whole.view(torch.uint8)
        whole += g
        return h + bits[:, :6]

    with pytest.raises(UnsupportedError, match=r"in place that has the same memory.*new value.*test_odd_calls"):
        HATNetwork(Model(applied(function), linears(a=6, b=6)), torch.zeros(2, 4))


@pytest.mark.parametrize(
    "function",
    [
        out_of_a_part,
        whole_of_a_part,
        out_of_a_whole,
        by_another_name,
        parts_of_a_whole,
        lambda g, h: torch.add(g, 1, out=torch.zeros(len(g), 6)),
        lambda g, h: torch.zeros(len(g), 6).add_(g),
        lambda g, h: g.view(-1, 6).mul_(2).relu_() + g,
        lambda g, h: g.unsqueeze(1).mul_(torch.ones(6)).add_(1).flatten(1),
    ],
)
def test_what_is_changed_in_place_and_keeps_its_units_is_exact(function: Function) -> None:
    torch.manual_seed(3)
    net = HATNetwork(Model(applied(function), linears(a=6, b=6)), torch.zeros(2, 4))
    for task in ("a", "b"):
        net.add_task(task, 2)
        net.consolidate(task)
    assert_poison_harmless(net, {task: 3 * torch.randn(6, 4) for task in ("a", "b")})
