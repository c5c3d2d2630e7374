"""A network with an old task, and what the tests of integrations ask of it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork, WeightMaskedNetwork

Net = HATNetwork | WeightMaskedNetwork
X = torch.randn(16, 4, generator=torch.Generator().manual_seed(5))
Y = torch.arange(16) % 2


def backbone() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU())


KINDS: dict[str, Callable[[], Net]] = {
    "units": lambda: HATNetwork(backbone(), torch.zeros(2, 4)),
    "weights": lambda: WeightMaskedNetwork(backbone(), torch.zeros(2, 4)),
}


def loss_of(net: Net, x: Tensor = X, y: Tensor = Y) -> Tensor:
    return F.cross_entropy(net(x, "new"), y)


def with_old_task(kind: str, seed: int = 0) -> Net:
    """A network with a consolidated task "old", and "new" to be trained."""
    torch.manual_seed(seed)
    net = KINDS[kind]()
    net.add_task("old", 2)
    optimizer = net.protect(torch.optim.AdamW(net.task_parameters("old"), lr=0.05))
    for step in range(4):
        net.anneal(step / 3)
        optimizer.zero_grad()
        F.cross_entropy(net(X, "old"), Y).backward()
        optimizer.step()
    net.consolidate("old")
    net.add_task("new", 2)
    return net


@torch.no_grad()
def says(net: Net) -> Tensor:
    return copy.deepcopy(net).eval()(X, "old")


def assert_learned(net: Net, before: Tensor, start: Tensor, promised: Tensor) -> None:
    """Something was learned, and nothing forgotten, before and after consolidating."""
    assert not torch.equal(start, before), "the new task's head did not move"
    assert torch.equal(says(net), promised)
    net.consolidate("new")
    net.check()  # what these optimizers left elsewhere, consolidating has put back
    assert torch.equal(says(net), promised)


class Whole(nn.Module):
    """A module that holds a network, as models of larger programs do, and gives a loss beside the logits."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(x, "new")
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}
