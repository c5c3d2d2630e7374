"""Functions without a rule: what depends on what is found out by running them on other values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork, UnsupportedError
from hatrack.support.inputs import tensors_in
from hatrack.units.coupling import UNGATED
from hatrack.units.rules.probing import ProbeError, probe
from hatrack.units.rules.registry import RuleBook
from hatrack.units.trace import Call, Trace
from support.helpers import assert_poison_harmless
from support.marks import examples

Function = Callable[..., Any]

MOVING: dict[str, Function] = {
    "unfold": lambda g: g.unfold(1, 2, 1),
    "as_strided": lambda g: g.as_strided((2, 2, 6), (18, 6, 1)),
    "gather": lambda g: g.gather(2, torch.tensor([5, 0, 3]).expand(2, 3, 3)),
    "take_along_dim": lambda g: g.take_along_dim(torch.tensor([2, 0, 0]).view(1, 3, 1), 1),
    "tril": lambda g: g.tril(),
    "rot90": lambda g: g.rot90(1, (1, 2)),
    "diagonal": lambda g: g.diagonal(dim1=1, dim2=2),
    "index_add": lambda g: torch.zeros(2, 2, 6).index_add(1, torch.tensor([0, 1, 0]), g),
    "scatter": lambda g: torch.zeros(2, 3, 8).scatter(2, torch.tensor([7, 5, 3, 1, 0, 2]).expand(2, 3, 6), g),
    "F.unfold": lambda g: F.unfold(g.transpose(1, 2).unsqueeze(3), (2, 1)),
    "fold": lambda g: F.fold(g.transpose(1, 2), (3, 1), (1, 1)),
    "masked_scatter": lambda g: g.masked_scatter(torch.tensor([True, False, False]).view(3, 1), torch.zeros(36)),
}
WITHIN: dict[str, Function] = {
    "i0e": torch.special.i0e,
    "signbit": torch.signbit,
    "fft over tokens": lambda g: torch.fft.rfft(g, dim=1),
    "sort over tokens": lambda g: g.sort(1),
    "topk over tokens": lambda g: g.topk(2, 1),
    "median over tokens": lambda g: g.median(1),
    "cummax over tokens": lambda g: g.cummax(1),
    "prod over tokens": lambda g: g.prod(1),
    "local pooling": lambda g: F.lp_pool1d(g.transpose(1, 2), 2.0, 2),
    "grid_sample": lambda g: F.grid_sample(
        g.transpose(1, 2).unsqueeze(3),
        torch.linspace(-1, 1, 16).view(1, 4, 2, 2).expand(2, 4, 2, 2),
        align_corners=True,
    ),
}
MIXING: dict[str, Function] = {
    "fft over units": lambda g: torch.fft.fft(g, dim=2),
    "cdist": lambda g: torch.cdist(g, g),
    "pairs": lambda g: torch.view_as_complex(g.unflatten(2, (3, 2))),
    "overlapping blocks": lambda g: F.fold(g.transpose(1, 2), (1, 4), (1, 2)),
    "neighbours": lambda g: F.local_response_norm(g.transpose(1, 2), 3),
    "argmax over units": lambda g: g.argmax(2),
    "sort over units": lambda g: g.sort(2)[0],
}


def traced(*operands: tuple[Tensor, Tensor]) -> Trace:
    """Make a trace that knows some values with their labels, of 24 units."""
    trace = Trace()
    trace.coupling.open_units("units", 24)
    for value, labels in operands:
        trace.remember(value, labels.expand(value.shape), always=True)
    return trace


def dependence(function: Function, values: list[Tensor], which: int, labels: Tensor, unit: int) -> Tensor:
    """Return the entries of the results that depend on a unit, found by changing this one alone."""
    generator = torch.Generator().manual_seed(unit)
    found: list[Tensor] = []
    for attempt in range(12):
        given = [torch.randn(value.shape, generator=generator) for value in values]
        other = given[which].clone()
        drawn = torch.randn(other.shape, generator=generator)
        other[labels.expand(other.shape) == unit] = torch.nan if attempt == 0 else 0.0
        if attempt:
            other += drawn * (labels.expand(other.shape) == unit)
        results = [list(tensors_in(function(*each))) for each in (given, [*given[:which], other, *given[which + 1 :]])]
        found.append(
            torch.cat([((a != b) & ~(a.isnan() & b.isnan())).flatten() for a, b in zip(*results, strict=True)])
        )
    return torch.stack(found).any(0)


def require_sound(function: Function, operands: list[tuple[Tensor, Tensor]]) -> tuple[Trace, Tensor]:
    """Probe a function, and require that every entry has the unit of all that it depends on."""
    trace = traced(*operands)
    values = [value for value, _ in operands]
    output = function(*values)
    labels = probe(trace, Call(function, "function", tuple(values), {}, output))
    found = torch.cat([trace.coupling.roots(each).flatten() for each in tensors_in(labels)])
    always = trace.coupling.root(UNGATED)
    for which, (_, its) in enumerate(operands):
        for unit in set(its.flatten().tolist()) - {UNGATED}:
            depending = dependence(function, values, which, its, unit)
            root = trace.coupling.root(unit)
            assert root == always or bool((found[depending] == root).all()), (which, unit)
    return trace, found


@pytest.mark.parametrize("name", [*MOVING, *WITHIN])
def test_what_mixes_no_units_keeps_all_of_them(name: str) -> None:
    function = {**MOVING, **WITHIN}[name]
    units = 1 + torch.arange(6)
    trace, _ = require_sound(function, [(torch.randn(2, 3, 6), units)])
    assert [trace.coupling.root(unit) for unit in units.tolist()] == units.tolist()


@pytest.mark.parametrize("name", MOVING)
def test_what_moves_entries_moves_their_labels_exactly(name: str) -> None:
    entries = 1 + torch.arange(18).view(1, 3, 6)
    trace, found = require_sound(MOVING[name], [(torch.randn(2, 3, 6), entries)])
    if name != "index_add":  # which adds entries
        assert [trace.coupling.root(unit) for unit in range(1, 19)] == list(range(1, 19))
        moved = torch.cat([each.flatten() for each in tensors_in(MOVING[name](entries.expand(2, 3, 6).float()))])
        assert torch.equal(found, moved.long())


@pytest.mark.parametrize("name", MIXING)
def test_units_that_meet_where_no_gate_can_be_are_coupled(name: str) -> None:
    trace, _ = require_sound(MIXING[name], [(torch.randn(2, 3, 6), 1 + torch.arange(6))])
    left = {trace.coupling.root(unit) for unit in range(1, 7)}
    assert len(left) == (3 if name in ("pairs", "overlapping blocks") else 1)


BINARY: dict[str, Function] = {
    "copysign": torch.copysign,
    "heaviside": torch.heaviside,
    "remainder": lambda g, h: torch.remainder(g, h),
    "dist of rows": lambda g, h: torch.cdist(g, h),
    "tensordot": lambda g, h: torch.tensordot(g, h, dims=([1, 2], [1, 2])),
    "outer": lambda g, h: torch.kron(g, h),
    "masked": lambda g, h: g.masked_scatter(torch.eye(3, 6) > 0, h),
    "index_copy": lambda g, h: g.index_copy(1, torch.tensor([2, 0, 1]), h),
    "fft product": lambda g, h: torch.fft.irfft(torch.fft.rfft(g, dim=1) * torch.fft.rfft(h, dim=1), n=3, dim=1),
    "swapped": lambda g, h: (h, g.flip(1)),
}


@settings(max_examples=examples(40), deadline=None)
@given(
    name=st.sampled_from([*MOVING, *WITHIN, *MIXING, *BINARY]),
    patterns=st.lists(st.lists(st.integers(0, 24), min_size=18, max_size=18), min_size=2, max_size=2),
)
@pytest.mark.slow
def test_any_labels_are_sound(name: str, patterns: list[list[int]]) -> None:
    function = {**MOVING, **WITHIN, **MIXING, **BINARY}[name]
    count = 2 if name in BINARY else 1
    require_sound(
        function, [(torch.randn(2, 3, 6), torch.tensor(pattern).view(1, 3, 6)) for pattern in patterns[:count]]
    )


RULED: dict[str, Function] = {
    "add": torch.add,
    "maximum": torch.maximum,
    "relu": lambda g, h: torch.relu(g),
    "where": lambda g, h: torch.where(g > 0, g, h),
    "permute": lambda g, h: g.permute(0, 2, 1),
    "cat": lambda g, h: torch.cat([g, h], 1),
    "roll": lambda g, h: g.roll(2, 2),
    "mean over tokens": lambda g, h: g.mean(1),
    "softmax over tokens": lambda g, h: g.softmax(1),
    "max over tokens": lambda g, h: g.max(1),
    "matmul": lambda g, h: g @ h.mT,
    "attention": lambda g, h: F.scaled_dot_product_attention(g, h, h),
    "pooling": lambda g, h: F.avg_pool1d(g.mT, 2),
    "einsum": lambda g, h: torch.einsum("bti,bsi->bts", g, h),
    "pad": lambda g, h: F.pad(g, (1, 1), mode="circular"),
    "glu": lambda g, h: F.glu(g, -1),
}


@pytest.mark.parametrize("name", RULED)
def test_it_finds_what_the_rules_say(name: str) -> None:
    units = torch.arange(6)
    values = [torch.randn(2, 3, 6), torch.randn(2, 3, 6)]
    found = []
    rules = RuleBook(nn.Identity(), {})
    for by_rule in (True, False):
        trace = traced((values[0], 1 + units), (values[1], 7 + units))

        class Run(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                kwargs = kwargs or {}
                output = func(*args, **kwargs)
                rule = rules.for_function(func) if by_rule else None  # noqa: B023
                call = Call(func, func.__name__, args, kwargs, output)
                trace.remember(output, (rule or probe)(trace, call), always=True)  # noqa: B023
                return output

        with Run():
            output = RULED[name](*values)
        labels = [trace.coupling.roots(trace.labels(each)).flatten() for each in tensors_in(output)]
        found.append((torch.cat(labels), trace.coupling.roots(torch.arange(13))))
    assert torch.equal(found[0][1], found[1][1]), "other units are coupled"
    assert torch.equal(found[0][0], found[1][0])


class Applied(nn.Module):
    """A function of two layers, and a layer that reads what comes of it."""

    def __init__(self, function: Function, width: int = 6) -> None:
        super().__init__()
        self.function = function
        self.a, self.b, self.c = nn.Linear(4, width), nn.Linear(4, width), nn.Linear(width, 5)
        self.table = nn.Parameter(torch.randn(7, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.function(self.a(x), self.b(x), x, self.table)).mean(1)


def put(g: Tensor, h: Tensor, x: Tensor, p: Tensor) -> Tensor:
    whole = g.new_zeros(g.shape)
    whole[:, 1:] = h[:, 1:]
    whole[:, :1] = g[:, :1]
    return whole


def put_where(g: Tensor, h: Tensor, x: Tensor, p: Tensor) -> Tensor:
    whole = g.clone()
    whole[x[..., 0] > 0] = 2.0
    return whole


def copied(g: Tensor, h: Tensor, x: Tensor, p: Tensor) -> Tensor:
    return torch.empty_like(g).copy_(h)


def position(x: Tensor) -> Tensor:
    return (x[..., :1] > 0).long() + (x[..., 1:2] > 0).long()


WHOLE: dict[str, tuple[Function, int]] = {
    "item assignment": (put, 6),
    "assignment by a mask of the input": (put_where, 12),
    "copy_": (copied, 12),
    "gather of tokens that the input chooses": (lambda g, h, x, p: g.gather(1, position(x).expand_as(g)), 12),
    "take_along_dim likewise": (lambda g, h, x, p: g.take_along_dim(position(x), 1), 12),
    "scatter_add to tokens that the input chooses": (
        lambda g, h, x, p: g.scatter_add(1, position(x).expand_as(g), h),
        6,
    ),
    "gather of units that the input chooses": (lambda g, h, x, p: g.gather(2, position(x).expand_as(g)), 7),
    "a distance to learned vectors": (lambda g, h, x, p: torch.cdist(x[..., :1] * p[:1], p[:6]), 12),
    "embedding_bag": (
        lambda g, h, x, p: g + F.embedding_bag((x > 0).long().flatten(0, 1), p).unflatten(0, x.shape[:2]),
        12,
    ),
    "bilinear": (lambda g, h, x, p: g + F.bilinear(x[..., :2], x[..., 2:], p[:, :4].view(7, 2, 2))[..., :6], 12),
}


@pytest.mark.filterwarnings("ignore:all .* are coupled into a single unit")
@pytest.mark.parametrize("name", WHOLE)
def test_networks_keep_the_law_and_their_units(name: str) -> None:
    function, count = WHOLE[name]
    torch.manual_seed(0)
    net = HATNetwork(Applied(function), torch.zeros(2, 3, 4))
    assert sum(group.size for group in net.units.groups if {*"ab"} & {*group.name.split("+")}) == count
    samples = {task: 3 * torch.randn(6, 3, 4) for task in ("a", "b")}
    for task in samples:
        net.add_task(task, 2)
        net.consolidate(task)
    assert_poison_harmless(net, samples)


def test_a_mixing_function_at_the_start_of_a_module_reads_what_it_is_given() -> None:
    class Spectral(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x, dim=-1).real

    torch.manual_seed(0)
    net = HATNetwork(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Spectral(), nn.Linear(6, 5)), torch.zeros(2, 4))
    assert [group.size for group in net.units.groups] == [6, 5]
    assert [reader.module for reader in net.units.readers] == ["2", "3", ""]
    samples = {task: 3 * torch.randn(6, 4) for task in ("a", "b")}
    for task in samples:
        net.add_task(task, 2)
        net.consolidate(task)
    assert_poison_harmless(net, samples)


def test_probing_leaves_the_random_numbers_alone() -> None:
    backbone = Applied(lambda g, h, x, p: torch.special.i0e(g))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    HATNetwork(backbone, torch.zeros(2, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)


REFUSED: dict[str, Function] = {
    "another size for other values": lambda g, h, x, p: torch.special.i0e(g[: len(g)]).to_sparse().to_dense(),
    "memory outside of the value": lambda g, h, x, p: g[:, 1:].as_strided((2, 3, 6), (18, 6, 1), 0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_probed_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"there is no rule.*test_probing.py:\d+"):
        HATNetwork(Applied(REFUSED[name]), torch.zeros(2, 3, 4))


def test_a_function_that_writes_beside_its_result_is_refused() -> None:
    def function(value: Tensor, other: Tensor) -> Tensor:
        other.zero_()
        return 2 * value

    value, other = torch.randn(3), torch.randn(3)
    trace = traced((value, 1 + torch.arange(3)))
    with pytest.raises(ProbeError, match="changes a value beside its result"):
        probe(trace, Call(function, "function", (value, other), {}, value))
