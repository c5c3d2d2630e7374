"""Activation checkpointing: parts of the network are computed a second time in the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hatrack import HATNetwork, InputError
from support.helpers import CLASSES, easy_task, learn, open_task


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.block = nn.Linear(6, 20), nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, torch.relu(self.first(x)), use_reentrant=self.reentrant)


def gradients(net: HATNetwork, logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    F.cross_entropy(logits, y).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of torch, where there are no gradients
@pytest.mark.parametrize("reentrant", [True, False])
def test_inside_the_backbone_it_is_refused_instead_of_giving_wrong_gradients(reentrant: bool) -> None:
    net = HATNetwork(Checkpointed(reentrant), torch.zeros(2, 6))
    net.add_task("a", CLASSES)
    net.anneal(0.5)
    x, y = easy_task((6,), 0)
    with pytest.raises(InputError, match="checkpoint the network as a whole"):
        F.cross_entropy(net(x, "a"), y).backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_around_the_network_it_gives_the_same_gradients(reentrant: bool) -> None:
    torch.manual_seed(0)
    net = HATNetwork(nn.Sequential(nn.Linear(6, 20), nn.LayerNorm(20), nn.ReLU(), nn.Linear(20, 9)), torch.zeros(2, 6))
    learn(net, "a")
    open_task(net, "b", 1)
    net.train()
    net.anneal(0.5)
    x, y = easy_task((6,), 1)
    plain = gradients(net, net(x, "b"), y)
    again = gradients(net, checkpoint(net, x.requires_grad_(), "b", use_reentrant=reentrant), y)
    assert again.keys() == plain.keys()
    assert all(torch.equal(again[name], value) for name, value in plain.items())
