"""Deep copies of modules, which have tables of their own, empty ones included."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from hatrack.support.copies import deep_copy


class Holder(nn.Module):
    """Layer with containers among its attributes, of which it shares one with its part."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.empty: list[Any] = []
        self.table: dict[str, Any] = {"inside": []}
        self.names: set[str] = set()
        self.part.shared = self.empty
        self.alias = self.norm.running_mean


@pytest.mark.parametrize("how", [deep_copy, copy.deepcopy])
def test_a_deep_copy_shares_nothing_but_what_it_is_told_to(how: Callable[..., Any]) -> None:
    original = Holder()
    twin = how(original, {id(original.part.weight): original.part.weight})
    assert twin.part.weight is original.part.weight
    assert twin.part.bias is not original.part.bias
    assert twin.alias is twin.norm.running_mean
    assert twin.alias is not original.alias
    assert twin.empty is twin.part.shared
    for mine, its in zip(original.modules(), twin.modules(), strict=True):
        assert vars(mine).keys() == vars(its).keys()
        for name, value in vars(mine).items():
            if isinstance(value, (dict, OrderedDict, list, set)):
                assert type(vars(its)[name]) is type(value)
                assert vars(its)[name] is not value
    twin.empty.append(1)
    twin.table["inside"].append(1)
    twin.norm.register_forward_hook(lambda *_: None)
    assert (original.empty, original.table, len(original.norm._forward_hooks)) == ([], {"inside": []}, 0)
