"""Groups of a task's parameters for Adam in loops of one's own: embeddings learn faster than weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hatrack import HATNetwork, InputError
from hatrack.backbones import MLP
from support.helpers import logits
from support.weight_networks import attach

X, Y = torch.randn(24, 6, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 2
BY_EMBEDDINGS = pytest.mark.parametrize("kind", ["hat", "pmask"])


def network(kind: str) -> Any:
    torch.manual_seed(0)
    net = HATNetwork(MLP((6,), (32, 32)), X, s_max=50.0) if kind == "hat" else attach(kind)
    net.add_task("one", 2)
    return net


def train(net: Any, task: str, steps: int = 8) -> None:
    optimizer = net.protect(torch.optim.AdamW(net.parameter_groups(task, lr=0.1), weight_decay=0.1))
    net.train()
    for step in range(steps):
        net.anneal(step / (steps - 1))
        optimizer.zero_grad()
        (F.cross_entropy(net(X, task), Y) + net.regularization()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    net.eval()


def ids(tensors: Any) -> list[int]:
    return [id(tensor) for tensor in tensors]


@BY_EMBEDDINGS
@pytest.mark.parametrize("new_only", [False, True])
def test_they_are_all_parameters_of_a_task_with_its_embeddings_apart(kind: str, new_only: bool) -> None:
    net = network(kind)
    weights, masks = net.parameter_groups("one", lr=0.01, embedding_lr_factor=5.0, new_only=new_only)
    embeddings = ids(net.tasks[0].mask_values)
    assert ids(masks["params"]) == embeddings
    trained = ids(net.task_parameters("one", new_only=new_only))
    assert ids(weights["params"]) == [each for each in trained if each not in embeddings]
    assert set(embeddings) < set(trained)
    assert (weights["lr"], masks["lr"], masks["weight_decay"]) == (0.01, 0.05, 0.0)


@pytest.mark.parametrize("kind", ["wsn", "supsup", "packnet"])
def test_masks_without_embeddings_have_one_group(kind: str) -> None:
    """Scores are compared with one another: one rate for all changes no choice that they make."""
    net = network(kind)
    (group,) = net.parameter_groups("one", lr=0.01)
    assert (ids(group["params"]), group["lr"]) == (ids(net.task_parameters("one")), 0.01)


@BY_EMBEDDINGS
def test_a_settled_task_has_one_group_and_a_consolidated_one_none(kind: str) -> None:
    net = network(kind)
    train(net, "one")
    net.settle("one")
    (group,) = net.parameter_groups("one", lr=0.01)
    assert ids(group["params"]) == ids(net.task_parameters("one"))
    net.consolidate("one")
    with pytest.raises(InputError, match="is consolidated"):
        net.parameter_groups("one", lr=0.01)


@pytest.mark.parametrize("wrong", [0.0, -0.1, math.nan, math.inf, "0.1", None, True, 1e308, 10**400, torch.ones(2)])
@pytest.mark.parametrize("key", ["lr", "embedding_lr_factor"])
@BY_EMBEDDINGS
def test_rates_that_are_no_finite_numbers_above_0_are_refused(kind: str, key: str, wrong: Any) -> None:
    rates = {"lr": 100.0, "embedding_lr_factor": 100.0, key: wrong}
    with pytest.raises(InputError, match=rf"{key}.* must be a finite number above 0, not "):
        network(kind).parameter_groups("one", **rates)


@pytest.mark.parametrize("kind", ["hat", "pmask", "wsn"])
def test_a_task_learned_in_groups_leaves_old_logits_as_they_were(kind: str) -> None:
    net = network(kind)
    train(net, "one")
    net.consolidate("one")
    before = logits(net, X, "one")
    net.add_task("two", 2)
    train(net, "two")
    net.consolidate("two")
    assert torch.equal(logits(net, X, "one"), before)
    assert not torch.equal(logits(net, X, "two"), before)


def test_embeddings_of_weights_move_as_much_faster_as_is_said() -> None:
    moved = []
    for factor in (1.0, 20.0):
        net = network("pmask")
        start = [values.detach().clone() for values in net.tasks[0].mask_values]
        optimizer = net.protect(torch.optim.Adam(net.parameter_groups("one", lr=0.001, embedding_lr_factor=factor)))
        net.train()
        net.anneal(1.0)
        F.cross_entropy(net(X, "one"), Y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        now = net.tasks[0].mask_values
        moved.append(max(float((new.detach() - old).abs().max()) for new, old in zip(now, start, strict=True)))
    assert moved[1] == pytest.approx(20.0 * moved[0], rel=0.01)
