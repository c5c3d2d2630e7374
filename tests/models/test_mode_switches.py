"""Modules with a train() of their own, and loops that set modes by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import BatchNorms, HATNetwork, UnsupportedError, WeightMaskedNetwork
from hatrack.masks import Unmasked

KINDS = [HATNetwork, WeightMaskedNetwork]
X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


class Folded(nn.Module):
    """Two layers whose product is kept for evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12, bias=False), nn.Linear(12, 12, bias=False)
        self.product: Tensor | None = None

    def train(self, mode: bool = True) -> Folded:
        super().train(mode)
        self.product = None if mode else (self.b.weight @ self.a.weight).detach()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.a(x)) if self.product is None else F.linear(x, self.product))


class Merging(nn.Linear):
    """Layer with an update of low rank that is added to its weight for evaluation."""

    def __init__(self) -> None:
        super().__init__(6, 12)
        self.low, self.high, self.merged = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(12, 2)), False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if self.merged is mode:
            self.weight.data += (-1 if mode else 1) * (self.high @ self.low).detach()
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return torch.relu(y if self.merged else y + x @ self.low.t() @ self.high.t())


class Quiet(nn.Module):
    """Layer that stays in evaluation mode, and keeps a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.constant = nn.Linear(6, 12), torch.ones(12)

    def train(self, mode: bool = True) -> Quiet:
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x)) * self.constant


@pytest.mark.parametrize(("build", "what"), [(Folded, "0.product"), (Merging, "0.weight")])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_merged_for_evaluation_are_refused(
    kind: Any, build: Callable[[], nn.Module], what: str
) -> None:
    backbone = nn.Sequential(build(), nn.Linear(12, 8), nn.ReLU())
    before, training = backbone(X), backbone.training
    with pytest.raises(UnsupportedError, match=rf"{what} is computed of weights where the mode changes"):
        kind(backbone, X)
    assert backbone.training is training
    assert torch.equal(backbone(X), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mode_of_ones_own_is_none_of_our_business(kind: Any) -> None:
    net = kind(nn.Sequential(Quiet(), nn.Linear(12, 8), nn.ReLU()), X)
    net.add_task("a", 2)
    net.consolidate("a")


NETWORKS: dict[str, Callable[[], Any]] = {
    "untrained, HAT": lambda: HATNetwork(normed(untrained=True), X),
    "untrained, masks of weights": lambda: WeightMaskedNetwork(normed(untrained=True), X),
    "shared": lambda: HATNetwork(normed(), X, batch_norms=BatchNorms.SHARED),
    "the first task's": lambda: WeightMaskedNetwork(normed(), X, unmasked=Unmasked.FIRST_TASK),
}


def normed(untrained: bool = False) -> nn.Module:
    norm = nn.BatchNorm1d(12).requires_grad_(not untrained)
    return nn.Sequential(nn.Linear(6, 12), norm, nn.ReLU(), nn.Linear(12, 8), nn.ReLU())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_tracing_leaves_norms_in_evaluation(kind: Any) -> None:
    net = kind(normed(), X)
    net.add_task("a", 2)
    net.consolidate("a")
    before = net.eval()(X, "a")

    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Any:
            return self.net(x, "a")

    asking = Asking()
    for module in net.modules():
        module.training = True
    torch.jit.trace(asking, 3 * X + 1, check_trace=False)
    assert torch.equal(net.eval()(X, "a"), before)


@pytest.mark.parametrize("name", NETWORKS)
def test_norms_that_tasks_share_stay_in_evaluation_while_another_is_trained(name: str) -> None:
    torch.manual_seed(0)
    net = NETWORKS[name]()
    net.add_task("a", 2)
    net.train()(X, "a").sum().backward()
    net.consolidate("a")
    before = net.eval()(X, "a")
    net.add_task("b", 2)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("b"), lr=0.1))
    for _ in range(3):
        for module in net.modules():
            module.training = True
        net(3 * X + 1, "b").square().sum().backward()
        optimizer.step()
    assert torch.equal(net.eval()(X, "a"), before)
    net.consolidate("b")
    assert torch.equal(net.eval()(X, "a"), before)
