"""Attention over independent input features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hatrack
from hatrack import HATNetwork, InputError, with_progress
from support.helpers import assert_poison_harmless, logits


def network(width: int = 24) -> HATNetwork:
    backbone = nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return HATNetwork(backbone, torch.zeros(1, 12), gate_inputs=True)


def learn_features(net: HATNetwork, task: str, used: slice) -> torch.Tensor:
    """A task that a few features decide, and the others say nothing about."""
    torch.manual_seed(0)
    x = torch.randn(400, 12)
    y = (x[:, used].sum(dim=1) > 0).long()
    net.add_task(task, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net.tasks[-1].embedding.abs_()
    optimizer = net.protect(torch.optim.Adam(net.task_parameters(task), lr=0.01))
    net.train()
    for _ in range(15):
        for progress, rows in with_progress(torch.randperm(400).split(20)):
            net.anneal(progress)
            loss = F.cross_entropy(net(x[rows], task), y[rows]) + 0.75 * net.regularization()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.consolidate(task)
    assert (logits(net, x, task).argmax(1) == y).float().mean() > 0.9
    return x


@pytest.mark.slow
def test_the_features_that_matter_are_found_and_nothing_is_forgotten(tmp_path: Path) -> None:
    net = network()
    x = learn_features(net, "first", slice(0, 3))
    assert net.masks("first")["inputs"][:3].all()
    assert net.masks("first")["inputs"][3:].float().mean() < 0.5
    promised = logits(net, x, "first")
    learn_features(net, "second", slice(6, 9))
    assert net.masks("second")["inputs"][6:9].all()
    assert torch.equal(logits(net, x, "first"), promised)
    assert_poison_harmless(net, {"first": x, "second": x})
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", network().detach())
    assert torch.equal(logits(again, x, "first"), promised)


@pytest.mark.slow
def test_a_feature_that_is_off_changes_nothing() -> None:
    net = network()
    x = learn_features(net, "first", slice(0, 3))
    off = ~net.masks("first")["inputs"]
    assert off.any()
    changed = torch.where(off, float("inf"), x)
    assert torch.equal(logits(net, changed, "first"), logits(net, x, "first"))


def test_the_table_names_the_inputs_and_channels_count_once() -> None:
    group = network().units.group("inputs")
    assert (group.size, group.readers) == (12, ("0",))
    images = HATNetwork(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), torch.zeros(1, 3, 6, 6), gate_inputs=True)
    assert images.units.group("inputs").size == 3


def test_inputs_that_are_no_real_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="gate_inputs needs inputs that are one tensor of real numbers"):
        HATNetwork(nn.Sequential(nn.Embedding(9, 4), nn.Flatten()), torch.zeros(1, 3).long(), gate_inputs=True)
