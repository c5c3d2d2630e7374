"""Layers that a backbone reaches through containers of its own, which a copy that answers has to follow."""

from __future__ import annotations

import warnings
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork

Pair = namedtuple("Pair", "used other")


def in_a_defaultdict(layer: nn.Linear) -> Any:
    found: Any = defaultdict(list)
    found["used"].append(layer)
    return found


WAYS: dict[str, tuple[Callable[[nn.Linear], Any], Callable[[Any, Tensor], Tensor]]] = {
    "list": (lambda layer: [layer], lambda kept, x: kept[0](x)),
    "ordered dict": (lambda layer: OrderedDict(used=layer), lambda kept, x: kept["used"](x)),
    "default dict": (in_a_defaultdict, lambda kept, x: kept["used"][0](x)),
    "named tuple": (lambda layer: Pair(layer, None), lambda kept, x: kept.used(x)),
    "deque": (lambda layer: deque([layer], maxlen=3), lambda kept, x: kept[0](x)),
    "set": (lambda layer: {layer}, lambda kept, x: next(iter(kept))(x)),
    "method": (lambda layer: layer.forward, lambda kept, x: F.linear(x, kept.__self__.weight)),
    "partial": (lambda layer: partial(F.linear, weight=layer.weight), lambda kept, x: kept(x)),
    "parameters": (lambda layer: [layer.weight], lambda kept, x: F.linear(x, kept[0])),
}


class Reaching(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.second, self.way = nn.Linear(6, 12), nn.Linear(12, 12), way
        self.kept = WAYS[way][0](self.second)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(WAYS[self.way][1](self.kept, torch.relu(self.first(x))))


@pytest.mark.parametrize("way", WAYS)
def test_old_answers_hold_while_weights_are_moved_for_a_while(way: str) -> None:
    torch.manual_seed(0)
    net, x = HATNetwork(Reaching(way), torch.zeros(2, 6)), torch.randn(5, 6)
    net.add_task("a", 3)
    net.consolidate("a")
    net.add_task("b", 3)
    before = net.eval()(x, "a").detach()
    with torch.no_grad():
        for parameter in net.backbone.parameters():
            parameter.add_(0.5)  # as between the two halves of a step that looks ahead
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(net(x, "a"), before)
