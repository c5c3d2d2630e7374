"""torch.export and torch.jit.trace: an old task's bits, or a refusal; and the network is as it was afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack import GuaranteeError
from support.old_task import KINDS, X, with_old_task


class Asking(nn.Module):
    """Model around a network that asks for the old task."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x, "old")


CAPTURES: dict[str, Callable[[nn.Module], Any]] = {
    "export": lambda model: torch.export.export(model, (X,)).module(),
    "trace": lambda model: torch.jit.trace(model, X),
}


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


@pytest.mark.parametrize("after", ["a task in training", "a head of one's own", "nothing else"])
@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_with_the_same_bits_and_leaves_nothing(kind: str, capture: str, after: str) -> None:
    net = with_old_task(kind).eval()
    if after != "a task in training":
        net.forget("new")
    if after == "a head of one's own":
        net.add_task("own", head=nn.Sequential(nn.Linear(9, 3), nn.ReLU()))
    with torch.no_grad():
        before = net(X, "old")
        net.tasks[0].packed = net.tasks[0].packed.clone()  # so that no mask is at hand
        assert torch.equal(CAPTURES[capture](Asking(net))(X), before)
        assert torch.equal(net(X, "old"), before)


@pytest.mark.parametrize("in_training", [False, True], ids=["done", "in training"])
@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_moved_entries_are_not_captured(kind: str, capture: str, in_training: bool) -> None:
    net = with_old_task(kind).eval()
    if not in_training:
        net.forget("new")
    with torch.no_grad():
        before = net(X, "old")
        for parameter in net.backbone.parameters():
            parameter.mul_(1.5)
        with pytest.raises(GuaranteeError, match=r"entries of backbone\.0\.weight.* have moved.*net\.restore\(\)"):
            CAPTURES[capture](Asking(net))
        net.restore()
        assert torch.equal(CAPTURES[capture](Asking(net))(X), before)
        assert torch.equal(net(X, "old"), before)
