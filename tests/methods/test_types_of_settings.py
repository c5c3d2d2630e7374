"""Settings of another type than they say are refused: a text for a member would be taken for another member."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from hatrack import Adaptive, Growth, HATNetwork, HATSettings, InputError, Learner
from hatrack.masks import Embedding
from hatrack.methods import METHODS
from hatrack.support.ranges import require_types
from hatrack.train import TrainingSettings
from support.toys import make

HOLDERS = (TrainingSettings, Embedding, Adaptive)


def choices(kind: Any) -> Iterator[tuple[str, str]]:
    """Give the fields of a data class that are members of an enumeration, and the text of one."""
    for name, hint in typing.get_type_hints(kind).items():
        for each in (hint, *typing.get_args(hint)):
            if isinstance(each, type) and issubclass(each, enum.Enum):
                yield name, str(next(iter(each)).value)


@pytest.mark.parametrize(("kind", "name", "text"), [(kind, *choice) for kind in HOLDERS for choice in choices(kind)])
def test_a_text_is_no_member(kind: Any, name: str, text: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be a"):
        kind(**{name: text})


@pytest.mark.parametrize(
    ("method", "name", "text"), [(m, *choice) for m in METHODS for choice in choices(METHODS[m].settings_type)]
)
def test_a_method_takes_no_text_for_a_member(method: str, name: str, text: str) -> None:
    with pytest.raises(InputError, match=f"{name} (must be a|as they are)"):  # which AdaHAT says of all conditionings
        make(method, "conv", **{name: text})


@pytest.mark.parametrize("name", ["compensation", "conditioning", "gate_function", "regularizer", "batch_norms"])
def test_a_network_takes_no_text_for_a_member(name: str) -> None:
    wrong: dict[str, Any] = {name: "per-task"}
    with pytest.raises(InputError, match=f"{name} must be a"):
        HATNetwork(nn.Linear(3, 4), torch.zeros(2, 3), **wrong)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *((TrainingSettings, wrong) for wrong in ({"lr": "0.1"}, {"weight_decay": True}, {"epochs": None})),
        *((Growth, wrong) for wrong in ({"share": "0.1"}, {"threshold": None})),
    ],
)
def test_numbers_are_numbers(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"must be a (whole )?number"):
        kind(**wrong)


def numbers(kind: Any) -> Iterator[str]:
    """Give the fields of a data class that are numbers, or None."""
    for name, hint in typing.get_type_hints(kind).items():
        if {hint, *typing.get_args(hint)} & {int, float}:
            yield name


@pytest.mark.parametrize(("method", "name"), [(m, name) for m in METHODS for name in numbers(METHODS[m].settings_type)])
def test_a_method_takes_no_text_for_a_number(method: str, name: str) -> None:
    with pytest.raises(InputError, match=name):
        make(method, "conv", **{name: "0.5"})


@pytest.mark.parametrize(("method", "name"), [(m, name) for m in METHODS for name in numbers(METHODS[m].settings_type)])
@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), float("-inf")])
def test_a_method_takes_no_number_that_nothing_can_be_meant_by(method: str, name: str, wrong: float) -> None:
    with pytest.raises(InputError, match=name):
        make(method, "conv", **{name: wrong})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in (TrainingSettings, *(method.settings_type for method in METHODS.values()))
        for name, hint in typing.get_type_hints(kind).items()
        if hint is int
    ],
)
def test_what_is_counted_is_a_whole_number(kind: Any, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} must be a whole number, not \d+\.5"):
        require_types(dataclasses.replace(kind(), **{name: getattr(kind(), name) + 0.5}))


def test_types_that_are_known_within_a_function_alone_are_not_looked_at() -> None:
    class Kind(enum.Enum):
        ONE = "one"

    @dataclasses.dataclass(frozen=True)
    class Own:
        kind: Kind = Kind.ONE

    require_types(Own())


def test_a_learner_refuses_them_before_it_attaches_anything() -> None:
    wrong: Any = {"regularizer": "weighted-l1"}
    backbone = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.raises(InputError, match=r"regularizer must be a Regularization \(Regularization\.WEIGHTED_L1"):
        Learner(backbone, (3,), settings=HATSettings(**wrong))
    Learner(backbone, (3,))
