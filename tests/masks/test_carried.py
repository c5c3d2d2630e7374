"""Scores that a task takes over from the one before, as WSN's authors' code has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hatrack
from hatrack import InputError, WeightMaskedNetwork
from hatrack.masks import Scores
from hatrack.methods.wsn import InitialScores
from support.toys import assert_goes_on_as_without_interruption, learn, logits, make, tasks


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU())


def network(carried: bool = True) -> WeightMaskedNetwork:
    return WeightMaskedNetwork(backbone(), torch.zeros(2, 6), source=Scores(0.3, carried=carried))


def trained(net: WeightMaskedNetwork, name: str, seed: int) -> list[Tensor]:
    """Learn a task in some steps; the scores at the end."""
    net.add_task(name, 2, generator=torch.Generator().manual_seed(seed))
    optimizer = net.protect(torch.optim.Adam(net.task_parameters(name), lr=0.02))
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(seed))
    net.train()
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x, name), (x[:, seed % 6] > 0).long()).backward()
        optimizer.step()
    scores = [value.detach().clone() for value in net.tasks[-1].choice]
    net.consolidate(name)
    return scores


def starts(net: WeightMaskedNetwork, seed: int = 9) -> list[Tensor]:
    """The scores that a further task begins with."""
    net.add_task("next", 2, generator=torch.Generator().manual_seed(seed))
    return [value.detach() for value in net.tasks[-1].choice]


def test_a_task_begins_where_the_scores_of_the_one_before_ended(tmp_path: Path) -> None:
    net, anew = network(), network(carried=False)
    drawn = [starts(network(carried)) for carried in (False, True)]
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))
    trained(net, "first", 0)
    last = trained(net, "second", 1)
    x = torch.randn(5, 6)
    said = net.eval()(x, "first")
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", backbone())
    for each in (again, net):
        assert each.source == Scores(0.3, carried=True)
        assert all(torch.equal(one, other) for one, other in zip(starts(each), last, strict=True))
        assert torch.equal(each.eval()(x, "first"), said)
    trained(anew, "first", 0)
    assert anew.carried is None
    assert not any(torch.equal(one, other) for one, other in zip(starts(anew), last, strict=True))


def test_scores_of_a_task_that_is_unlearned_are_dropped() -> None:
    net, fresh = network(), network()
    trained(net, "first", 0)
    trained(net, "second", 1)
    net.forget("first")
    assert all(torch.equal(one, other) for one, other in zip(starts(net), starts(fresh), strict=True))
    assert not any(bool(value.any()) for value in net.carried.buffers())


def test_a_widened_network_draws_scores_anew_and_a_refused_widening_keeps_them(tmp_path: Path) -> None:
    net = network()
    last = trained(net, "first", 0)
    with pytest.raises(InputError):
        net.grow({"nothing": 2})
    assert all(torch.equal(one, other) for one, other in zip(net.carried.values, last, strict=True))
    net.grow({"0": 3})
    assert net.carried.values is None
    trained(net, "second", 1)
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", backbone())
    assert all(torch.equal(one, other) for one, other in zip(starts(again), starts(net), strict=True))


@pytest.mark.slow
def test_wsn_with_carried_scores_shares_more_weights_and_resumes(tmp_path: Path) -> None:
    used = {}
    for scores in InitialScores:
        method = make("wsn", "mlp", scores=scores, keep=0.3)
        seen = tasks("mlp", 3)
        learn(method, seen[:1])
        before = logits(method, seen[0])
        learn(method, seen, first=1)
        assert torch.equal(logits(method, seen[0]), before)
        used[scores] = method.usage()
    assert used[InitialScores.CARRIED] < 0.9 * used[InitialScores.DRAWN]
    assert_goes_on_as_without_interruption("wsn", "mlp", tmp_path, scores=InitialScores.CARRIED)
