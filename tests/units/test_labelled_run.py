"""The labelled run as such: what it keeps in memory, and the path that it records on the way."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hatrack import HATNetwork
from hatrack.support.observers import Unobserved, observed_by
from hatrack.units import Path, Trace, analyze, follow, path_of
from hatrack.units.decisions import Way
from support.helpers import assert_poison_harmless, learn
from support.zoo import ZOO, Architecture


class Watched(nn.Module):
    """Layers in a row, which says which of their results are still there when the last is computed.

    Args:
        note: notes these results; a copy of the model, which is what is run, calls the same function.
    """

    def __init__(self, note: Callable[[list[weakref.ref[Tensor]]], None]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(5))
        self.note = note

    def forward(self, x: Tensor) -> Tensor:
        results = []
        for layer in self.layers:
            x = torch.relu(layer(x))
            results.append(weakref.ref(x))
        self.note(results)
        return x


def test_a_labelled_run_keeps_no_value_that_the_network_has_dropped() -> None:
    results, alive = list[weakref.ref[Tensor]](), list[bool]()

    def note(found: list[weakref.ref[Tensor]]) -> None:
        results.extend(found)
        alive.extend(result() is not None for result in found)

    model = Watched(note)
    gc.disable()  # which would also free what only refers to itself
    try:
        graph = analyze(model, torch.zeros(1, 6))
        assert alive == [False] * 4 + [True]
        assert all(result() is None for result in results)
    finally:
        gc.enable()
    assert [group.size for group in graph.groups] == [6] * 5


class ThroughNumpy(nn.Module):
    """Multiplies with a constant that torch sees for the first time when it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.from_numpy(torch.ones(8).numpy())
        return self.second(torch.relu(self.first(x)) * scale)


OTHERS = {
    "weight norm": Architecture(lambda: nn.Sequential(weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 5)), (6,)),
    "a constant of numpy": Architecture(ThroughNumpy, (6,)),
}


@pytest.mark.parametrize("name", ["resnet-basic", "vit-module", "words", "tied-weights", *OTHERS])
def test_the_path_that_a_labelled_run_records_is_the_one_of_a_run_by_itself(name: str) -> None:
    architecture = OTHERS.get(name) or ZOO[name]
    model, x = architecture.build(), architecture.samples(2, torch.Generator().manual_seed(0))
    paths: dict[Way, Path] = {}
    with torch.no_grad():
        follow(Trace(), model, x, paths=paths)
        assert paths == {(): path_of(model, x, training=False)}


class Functions(TorchFunctionMode):
    """Counts the functions that it sees."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Counts the operations that it sees."""

    count = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_what_two_observers_are_not_to_see_others_see() -> None:
    outer, functions, inner, operations = Functions(), Functions(), Functions(), Operations()
    x = torch.ones(2)
    with outer, observed_by(functions, operations):
        with pytest.raises(RuntimeError, match="expected"), Unobserved(functions, operations):
            torch.relu(x) @ torch.ones(3)
        assert (outer.count, functions.count, operations.count) == (3, 0, 0)
        torch.relu(x)
        assert (outer.count, functions.count, operations.count) == (4, 1, 1)
        with inner, Unobserved(functions, operations):  # it is not the last one that was entered
            torch.relu(x)
        assert (outer.count, functions.count, inner.count, operations.count) == (5, 2, 1, 1)


class Chosen(nn.Module):
    """Layers between which a place that depends on the number of samples is cut out, said as some type."""

    def __init__(self, said: Callable[[int], Any]) -> None:
        super().__init__()
        self.first, self.second, self.said = nn.Linear(3, 16), nn.Linear(8, 4), said

    def forward(self, x: Tensor) -> Tensor:
        start = self.said(8 if len(x) > 4 else 0)
        h = torch.relu(self.first(x))
        return self.second(h[:, start + np.arange(8)] if isinstance(start, np.ndarray) else h.narrow(1, start, 8))


@pytest.mark.parametrize(
    "said", [int, np.int64, np.int32, lambda k: np.array(k)], ids=["int", "int64", "int32", "array"]
)
def test_settings_of_any_type_make_another_path(said: Callable[[int], Any]) -> None:
    model = Chosen(said)
    few, more, many = (path_of(model, torch.zeros(samples, 3), training=False) for samples in (2, 4, 8))
    assert few.is_same(more)
    assert not few.is_same(many)


class Falling(nn.Module):
    """Network that falls back on another layer where the first one does not fit, with a branch inside or alone."""

    def __init__(self, nested: bool) -> None:
        super().__init__()
        self.inputs, self.out = nn.Linear(3, 8), nn.Linear(8, 6)
        misfit = nn.Linear(7, 8)
        self.misfit = nn.Sequential(nn.ReLU(), nn.Sequential(misfit)) if nested else misfit
        self.fits = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.inputs(x))
        try:
            h = self.misfit(h)
        except RuntimeError:
            h = self.fits(h)
        return torch.relu(self.out(torch.relu(h)))


@pytest.mark.parametrize("nested", [False, True])
def test_a_call_that_fails_and_is_caught_leaves_the_rest_followed(nested: bool) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Falling(nested), torch.zeros(2, 3))
    assert {group.name: group.size for group in net.units.groups} == {"inputs": 8, "fits": 8, "out": 6}
    samples = {task: learn(net, task, seed)[0] for seed, task in enumerate(("one", "two"))}
    assert_poison_harmless(net, samples)
