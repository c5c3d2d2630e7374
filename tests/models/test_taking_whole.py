"""The whole network without gates and masks, beside which an extracted task is measured."""

from __future__ import annotations

import copy

import pytest
import torch

from hatrack import HATNetwork
from hatrack.models.taking_out import take_whole
from hatrack.models.weight_masked import WeightMaskedNetwork
from support.weight_networks import BACKBONES, KINDS


@pytest.mark.parametrize("kind", ["hat", *KINDS])
@pytest.mark.parametrize("name", ["mlp", "recurrent", "conv-bn"])
def test_it_answers_as_the_backbone_did_before_it_was_attached(name: str, kind: str) -> None:
    """With the task's head; and it is a copy: the network's own parameters stay, and stay trainable."""
    torch.manual_seed(0)
    build, shape = BACKBONES[name]
    plain = build()
    before = copy.deepcopy(plain).eval()
    x = torch.randn(4, *shape)
    net = HATNetwork(plain, x) if kind == "hat" else WeightMaskedNetwork(plain, x, **KINDS[kind])
    net.add_task("one", 3)
    whole = take_whole(net, "one")
    head = net.tasks[0].head
    with torch.no_grad():
        assert torch.equal(whole(x), head(before(x)))
        assert sum(each.numel() for each in whole.parameters()) == sum(
            each.numel() for each in (*before.parameters(), *head.parameters())
        )
        for parameter in whole.parameters():
            parameter.add_(1.0)
    assert all(each.requires_grad for each in net.backbone.parameters())
    assert all(map(torch.equal, net.backbone.parameters(), before.parameters()))
