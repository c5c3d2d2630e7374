"""State in whatever a module may keep it in: its moves are seen, restored, and refused where outputs depend on them."""

from __future__ import annotations

import copy
import itertools
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hatrack import HATNetwork, UnsupportedError, WeightMaskedNetwork
from hatrack.state.comparing import differences, is_same_tensor, state_of
from hatrack.state.movement import StateOf


class Called:
    """Object that can be called."""

    def __init__(self) -> None:
        self.level = 1.0

    def __call__(self) -> float:
        return self.level

    def raise_level(self) -> None:
        self.level *= 1.5


class Slotted:
    __slots__ = ("level",)

    def __init__(self) -> None:
        self.level = 1.0


class Part(nn.Module):
    """Module that another keeps in a list, where torch does not find it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.ones(()))
        self.steps = [1]


def closed_over() -> Callable[[float], float]:
    levels = [1.0]

    def level(factor: float) -> float:
        levels[0] *= factor
        return levels[0]

    return level


def raised(holder: Any) -> None:
    holder.kept = np.float32(holder.kept * 1.5)


def of_object(holder: Any) -> None:
    holder.kept.level *= 1.5


def of_part(holder: Any) -> None:
    holder.kept[0].level *= 1.5


Move = Callable[[Any], object]
KEPT: dict[str, tuple[Callable[[], Any], Move, Callable[[Any], Any]]] = {
    "number of NumPy": (lambda: np.float32(1.0), raised, lambda kept: kept),
    "bytes": (lambda: b"a", lambda holder: setattr(holder, "kept", holder.kept + b"a"), len),
    "array": (lambda: np.ones(1), lambda holder: holder.kept.__imul__(1.5), lambda kept: kept[0]),
    "array of objects": (
        lambda: np.array([[1.0]], dtype=object),
        lambda holder: holder.kept.__setitem__((0, 0), holder.kept[0, 0] * 1.5),
        lambda kept: kept[0, 0],
    ),
    "object that can be called": (Called, of_object, lambda kept: kept()),
    "method": (lambda: Called().raise_level, lambda holder: holder.kept(), lambda kept: kept.__self__.level),
    "partial function": (
        lambda: partial(Called.raise_level, Called()),
        lambda holder: holder.kept(),
        lambda kept: kept.args[0].level,
    ),
    "object with slots": (Slotted, of_object, lambda kept: kept.level),
    "module in a tuple": (lambda: (Part(),), of_part, lambda kept: float(kept[0].level)),
    "list in a list": (
        lambda: {"a": [[1.0]]},
        lambda holder: holder.kept["a"][0].append(1.0),
        lambda k: len(k["a"][0]),
    ),
    "tensor in a queue": (
        lambda: deque([torch.ones(1)]),
        lambda holder: holder.kept[0].mul_(1.5),
        lambda kept: float(kept[0]),
    ),
    "counter": (itertools.count, lambda holder: next(holder.kept), lambda kept: 1 + next(copy.copy(kept))),
    "random numbers": (lambda: random.Random(0), lambda holder: holder.kept.random(), lambda k: copy.copy(k).random()),
    "random numbers of NumPy": (
        lambda: np.random.default_rng(0),
        lambda holder: holder.kept.random(),
        lambda kept: copy.deepcopy(kept).random(),
    ),
}


class Holder(nn.Module):
    """Two layers, between them a factor that training moves, kept as an attribute of some kind."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 6)
        self.name = name
        self.kept = KEPT[name][0]()

    def forward(self, x: Tensor) -> Tensor:
        _, move, level = KEPT[self.name]
        if self.training:
            move(self)
        return torch.relu(self.second(torch.relu(self.first(x)) * float(level(self.kept))))


def moved(holder: Holder, other: Holder) -> list[str]:
    return list(differences(state_of(holder), state_of(other)))


@pytest.mark.parametrize("name", KEPT)
def test_a_copy_is_the_same_until_it_moves(name: str) -> None:
    holder = Holder(name)
    other = copy.deepcopy(holder)
    assert moved(holder, other) == []
    KEPT[name][1](other)
    assert moved(holder, other) == ["kept"]


@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
@pytest.mark.parametrize("name", KEPT)
def test_outputs_that_depend_on_it_are_refused(name: str, kind: Any) -> None:
    torch.manual_seed(0)  # of few outputs, all may be off
    with pytest.raises(UnsupportedError, match="running the backbone changes kept, and its outputs depend on that"):
        kind(Holder(name), torch.zeros(2, 3))


HIDDEN = {"counter", "random numbers", "random numbers of NumPy"}
"""Kinds of state that lie in no attribute, and cannot be put back in place."""


@pytest.mark.parametrize("name", [name for name in KEPT if name not in HIDDEN])
def test_a_record_puts_it_back_in_place(name: str) -> None:
    holder = Holder(name)
    before, kept = copy.deepcopy(holder), holder.kept
    record = StateOf(holder)
    for _ in range(2):
        KEPT[name][1](holder)
        holder.register_buffer("new", torch.ones(1))
        holder.other = 1
        record.put_back()
        assert holder.kept is kept
        assert moved(before, holder) == []
        assert not holder._buffers


def test_functions_are_compared_by_what_they_enclose() -> None:
    one, other = closed_over(), closed_over()
    assert list(differences({"f": one}, {"f": other})) == []
    other(2.0)
    assert list(differences({"f": one}, {"f": other})) == ["f"]
    assert list(differences({"f": one}, {"f": len})) == ["f"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64])
def test_tensors_are_compared_by_their_bits(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, float("nan"), float("inf")]).to(dtype)
    assert is_same_tensor(x, x.clone())
    assert not is_same_tensor(x, -x)
    largest = torch.finfo(dtype).max
    assert not is_same_tensor(x[2:], torch.full((1,), largest, dtype=dtype))
    assert not is_same_tensor(torch.zeros(1, dtype=dtype), -torch.zeros(1, dtype=dtype))
    assert is_same_tensor(torch.ones(3, 4, dtype=dtype).T, torch.ones(4, 3, dtype=dtype))


def test_values_that_are_equal_but_not_the_same_are_told_apart() -> None:
    pairs = [(0.0, -0.0), (1, True), (np.zeros(2, "f4"), np.zeros(2, "f8")), (np.float32(1), np.float64(1))]
    assert [list(differences({"v": one}, {"v": other})) for one, other in pairs] == [["v"]] * len(pairs)
    same = [(float("nan"), float("nan")), ({(1, 2)}, {(1, 2)}), (np.array([np.nan]), np.array([np.nan]))]
    assert [list(differences({"v": one}, {"v": other})) for one, other in same] == [[]] * len(same)
