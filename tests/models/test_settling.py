"""Masks of units that are settled before their task ends: training goes on under them, and they are what is frozen."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hatrack
from hatrack import HATNetwork, InputError, TrainingError
from support.helpers import logits
from support.weight_networks import attach

X, Y = torch.randn(24, 6, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 2


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU())


def train(net: HATNetwork, task: str, steps: int = 8, lr: float = 0.05) -> None:
    optimizer = net.protect(torch.optim.AdamW(net.task_parameters(task), lr, weight_decay=0.1))
    net.train()
    for step in range(steps):
        net.anneal(step / (steps - 1))
        loss = F.cross_entropy(net(X, task), Y) + 0.5 * net.regularization()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    net.eval()


def settled(**settings: bool) -> HATNetwork:
    net = HATNetwork(backbone(), X, s_max=50.0, **settings)
    net.add_task("one", 2)
    train(net, "one")
    net.settle("one")
    return net


def test_training_goes_on_under_the_mask_that_is_frozen_in_the_end() -> None:
    net = settled()
    mask, before = net.masks("one"), logits(net, X, "one")
    train(net, "one")
    assert not torch.equal(logits(net, X, "one"), before)
    expected = logits(net, X, "one")
    net.consolidate("one")
    assert all(torch.equal(part, net.masks("one")[name]) for name, part in mask.items())
    assert torch.equal(logits(net, X, "one"), expected)


def test_training_and_evaluation_see_the_same_gates() -> None:
    net = HATNetwork(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12)), X)
    net.add_task("one", 2)
    net.settle("one")
    trained = net.train()(X, "one")
    with net.validating():
        assert torch.equal(trained, logits(net, X, "one"))
    torch.testing.assert_close(trained, logits(net, X, "one"))  # of whole layers, which round otherwise


def test_old_tasks_keep_their_bits_while_a_settled_one_trains_and_after_it() -> None:
    net = settled()
    net.consolidate("one")
    promised = logits(net, X, "one")
    net.add_task("two", 2)
    for _ in range(2):
        train(net, "two")
        assert torch.equal(logits(net, X, "one"), promised)
        if not net.is_settled("two"):
            net.settle("two")
    net.consolidate("two")
    assert torch.equal(logits(net, X, "one"), promised)
    net.check()


def test_only_weights_that_the_mask_uses_are_trained() -> None:
    net = settled()
    on = net.masks("one")["0"]
    first = net.backbone[0].weight  # type: ignore[index]
    before = first.detach().clone()
    optimizer = torch.optim.SGD(net.task_parameters("one"), 0.1)
    net.train()
    F.cross_entropy(net(X, "one"), Y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert torch.equal(first[~on], before[~on])
    assert not torch.equal(first[on], before[on])


def test_a_settled_task_is_saved_and_goes_on(tmp_path: Path) -> None:
    net = settled()
    net.save(tmp_path / "net.hat")
    other = hatrack.load(tmp_path / "net.hat", backbone())
    assert other.is_settled("one")
    for each in (net, other):
        train(each, "one")  # type: ignore[arg-type]
        each.consolidate("one")
    assert torch.equal(logits(net, X, "one"), logits(other, X, "one"))  # type: ignore[arg-type]


def test_a_state_dict_of_a_settled_task_settles_that_of_another_network() -> None:
    net, other = settled(), HATNetwork(backbone(), X, s_max=50.0)
    other.add_task("one", 2)
    other.load_state_dict(net.state_dict())
    assert other.is_settled("one")
    assert torch.equal(logits(net, X, "one"), logits(other, X, "one"))


def test_copies_settle_by_themselves() -> None:
    net = HATNetwork(backbone(), X)
    net.add_task("one", 2)
    other = copy.deepcopy(net)
    other.settle("one")
    assert not net.is_settled("one")
    assert "tasks.0.embedding" in dict(net.named_parameters())


def test_an_optimizer_of_before_trains_on() -> None:
    net = HATNetwork(backbone(), X)
    net.add_task("one", 2)
    optimizer = net.protect(torch.optim.Adam(net.task_parameters("one"), 0.1))
    net.settle("one")
    mask = net.masks("one")
    net.train()
    F.cross_entropy(net(X, "one"), Y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert all(torch.equal(part, net.masks("one")[name]) for name, part in mask.items())


@pytest.mark.parametrize("act", ["settle again", "settle after consolidating", "settle what is not there"])
def test_refusals(act: str) -> None:
    net = settled()
    if act == "settle after consolidating":
        net.consolidate("one")
    with pytest.raises(InputError, match="there is no task" if "not there" in act else "settled already"):
        net.settle("other" if "not there" in act else "one")


def test_settled_masks_are_extracted_forgotten_and_grown_like_others() -> None:
    net = settled()
    train(net, "one")
    net.consolidate("one")
    expected = logits(net, X, "one")
    torch.testing.assert_close(net.extract("one")(X), expected)
    net.grow({"0": 4})
    torch.testing.assert_close(logits(net, X, "one"), expected)
    net.add_task("two", 2)
    net.settle("two")
    net.forget("two")
    assert net.task_names == ("one",)


def test_soft_masks_are_settled_as_they_are() -> None:
    net = HATNetwork(backbone(), X, hard=False, s_max=4.0)
    net.add_task("one", 2)
    soft = logits(net, X, "one")
    net.settle("one")
    assert torch.equal(logits(net, X, "one"), soft)


def test_the_cost_of_a_settled_mask_is_its_share_of_free_units() -> None:
    net = settled()
    share: Tensor = torch.cat([part.float() for part in net.masks("one").values()]).mean()
    assert net.regularization().item() == pytest.approx(float(share))


@pytest.mark.parametrize("part", ["settle", "consolidate"])
@pytest.mark.parametrize("kind", ["hat", "pmask", "wsn", "supsup"])
def test_no_mask_is_made_of_what_is_not_a_number(kind: str, part: str) -> None:
    """A score that is not a number switches its weight off, so that outputs stay finite and nobody notices."""
    net: Any = HATNetwork(backbone(), X) if kind == "hat" else attach(kind)
    net.add_task("one", 2)
    (learned_by, *_) = net.tasks[0].mask_values
    with torch.no_grad():
        learned_by.view(-1)[0] = math.nan
    before = net.state_dict()
    with pytest.raises(TrainingError, match="the mask of task 'one' is learned by became not a number"):
        getattr(net, part)("one")
    assert net.task_in_training == "one"
    assert not net.is_settled("one")
    assert net.state_dict().keys() == before.keys()
    net.forget("one")
    net.add_task("one", 2)
    getattr(net, part)("one")
