"""Parts of the callbacks for trainers of other packages; none of these packages is needed."""

from __future__ import annotations

import importlib
import math
import sys
from typing import Any

import pytest
import torch
from hatrack.integrations.task_module import TaskModule
from hatrack.integrations.task_training import TaskTraining, accuracy, score, unwrapped
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import hatrack
from hatrack.errors import InputError, UnsupportedError
from support.three_tasks import RATE, Net, X, Y, answers, fresh, loader, with_first_task

kinds = pytest.mark.parametrize("kind", ["units", "weights"])


def opened(net: Net, task: str = "b", **settings: Any) -> tuple[TaskTraining, torch.optim.Optimizer]:
    training = TaskTraining(net, task, 2, **settings)
    training.open()
    optimizer = torch.optim.SGD(net.task_parameters(task), lr=RATE, weight_decay=0.1)
    training.protect([optimizer])
    return training, optimizer


@kinds
def test_gradients_that_are_added_are_those_of_the_cost_in_the_loss(kind: str) -> None:
    net = with_first_task(kind).train()
    training, optimizer = opened(net, strength=0.6)
    training.anneal(1, 3)
    (F.cross_entropy(net(X, "b"), Y["b"]) + 0.6 * net.regularization()).backward()
    wanted = [None if p.grad is None else p.grad.clone() for p in net.task_parameters("b")]
    net.zero_grad()
    F.cross_entropy(net(X, "b"), Y["b"]).backward()
    training.add_gradients(optimizer)
    for parameter, gradient in zip(net.task_parameters("b"), wanted, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient)
    if kind == "units":  # an embedding learns from its cost even where the loss leaves it alone
        embedding = net.tasks[1].embedding
        embedding.grad = None
        training.add_gradients(optimizer)
        assert embedding.grad is not None


def test_a_step_without_gradients_gets_none() -> None:
    """Trainers skip batches by leaving gradients out; the cost alone would move the mask."""
    net = with_first_task("units").train()
    training, optimizer = opened(net)
    training.add_gradients(optimizer)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_nothing_is_added_to_a_settled_mask_nor_without_strength() -> None:
    net = with_first_task("units").train()
    training, optimizer = opened(net, strength=0.0)
    F.cross_entropy(net(X, "b"), Y["b"]).backward()
    before = [p.grad.clone() for p in net.task_parameters("b") if p.grad is not None]
    training.add_gradients(optimizer)
    net.settle("b")
    TaskTraining(net, "b").add_gradients(optimizer)
    now = [p.grad for p in net.task_parameters("b") if p.grad is not None]
    assert all(any(torch.equal(mine, theirs) for theirs in before) for mine in now)


def test_gradients_of_the_task_before_are_dropped() -> None:
    net = with_first_task("units")
    assert any(parameter.grad is not None for parameter in net.parameters())
    opened(net)
    assert all(parameter.grad is None for parameter in net.parameters())


@given(steps=st.integers(1, 50), extra=st.integers(0, 5))
def test_gates_go_from_soft_to_hard_within_an_epoch_and_stay_hard(steps: int, extra: int) -> None:
    seen: list[float] = []

    class Recorder(TaskTraining):
        def __init__(self) -> None:
            self.net = type("Net", (), {"anneal": staticmethod(seen.append)})()

    for step in range(steps + extra):
        Recorder().anneal(step, steps)
    assert seen == sorted(seen)
    assert seen[0] == (0.0 if steps > 1 else 1.0)
    assert set(seen[steps - 1 :]) == {1.0}
    assert len(set(seen)) == steps


def test_a_task_that_is_open_is_taken_up_and_one_that_is_learned_is_refused() -> None:
    net = with_first_task("units")
    net.add_task("b", 2)
    head = net.tasks[1].head.weight.clone()
    TaskTraining(net, "b").open()
    assert torch.equal(net.tasks[1].head.weight, head)
    with pytest.raises(InputError, match="task 'a' is consolidated and cannot be trained again"):
        TaskTraining(net, "a", 2).open()
    with pytest.raises(InputError, match="task 'b' is still in training"):
        TaskTraining(net, "c", 2).open()


def test_optimizers_are_found_in_what_stands_around_them_and_others_are_left_alone() -> None:
    net = with_first_task("units").train()
    promised = answers(net, "a")
    training = TaskTraining(net, "b", 2)
    training.open()
    inner = torch.optim.AdamW(net.task_parameters("b"), lr=RATE, weight_decay=0.5)
    outer = type("Outer", (), {"optimizer": type("Inner", (), {"optimizer": inner})()})()
    assert unwrapped(outer) is inner
    elsewhere = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    training.protect([elsewhere, outer])
    for _ in range(3):
        F.cross_entropy(net(X, "b"), Y["b"]).backward()
        inner.step()
    net.check()
    assert torch.equal(answers(net, "a"), promised)
    assert len(elsewhere._optimizer_step_pre_hooks) == 0


def test_an_optimizer_made_before_the_task_is_refused_by_the_names_of_what_it_lacks() -> None:
    net = with_first_task("units")
    early = torch.optim.SGD(net.parameters(), lr=RATE)
    training = TaskTraining(net, "b", 2)
    training.open()
    with pytest.raises(InputError) as caught:
        training.protect([early])
    lacking = {name for name, _ in net.named_parameters() if name.startswith("tasks.1.")}
    assert lacking
    assert all(name in str(caught.value) for name in lacking)
    with pytest.raises(InputError, match="made before task 'b' was added"):
        training.protect([])


def test_models_that_do_not_hold_the_network_as_it_is_are_refused() -> None:
    net, other = fresh("units"), fresh("units")
    training = TaskTraining(net, "a", 2)
    training.require_inside(TaskModule(net, "a"))
    with pytest.raises(InputError, match="does not hold this network"):
        training.require_inside(TaskModule(other, "a"))
    with pytest.raises(UnsupportedError, match="replicas that share gates and masks"):
        training.require_inside(nn.DataParallel(TaskModule(net, "a")))
    net.forward = net.forward  # type: ignore[method-assign]
    with pytest.raises(UnsupportedError, match="replaced the forward method"):
        training.require_inside(TaskModule(net, "a"))


@kinds
def test_scores_are_those_of_one_sample_after_the_other(kind: str) -> None:
    net = with_first_task(kind).train()
    correct = 0
    for x, y in zip(X, Y["a"], strict=True):
        with torch.no_grad():
            correct += int(net.eval()(x[None], "a")[0].argmax() == y)
    net.train()
    pairs = {"a": loader("a")}
    assert score(net, pairs) == {"a": correct / len(X)}
    assert net.training
    assert accuracy(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1])) == 0.5
    assert score(net, pairs, lambda outputs, _: float(len(outputs))) == {"a": len(X)}


def test_batches_that_are_mappings_have_their_targets_under_labels() -> None:
    backbone = Named()
    net = hatrack.HATNetwork(backbone, {"x": torch.zeros(2, 6)})
    net.add_task("a", 2)
    mapping = [{"x": X, "labels": Y["a"]}]
    assert score(net, {"a": mapping}) == {"a": accuracy(net.eval()({"x": X}, "a"), Y["a"])}
    with pytest.raises(InputError, match="a pair of inputs and targets, or a mapping with 'labels', not dict"):
        score(net, {"a": [{"x": X}]})
    with pytest.raises(InputError, match="not Tensor"):
        score(net, {"a": [X]})
    with pytest.raises(InputError, match="task 'a' has no batches"):
        score(net, {"a": []})


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x))


@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf])
def test_strengths_are_numbers_from_nought(strength: float) -> None:
    with pytest.raises(InputError, match="strength is a number of at least 0"):
        TaskTraining(fresh("units"), "a", 2, strength=strength)


def test_what_is_no_network_of_tasks_is_refused() -> None:
    with pytest.raises(InputError, match="net is a HATNetwork or a WeightMaskedNetwork, not a Linear"):
        TaskTraining(nn.Linear(1, 1), "a", 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["accelerate", "avalanche", "lightning", "skorch", "transformers"])
def test_a_package_that_is_not_there_is_named_with_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [each for each in sys.modules if each.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    for module in (f"hatrack.integrations.{name}", f"hatrack.learning.integrations.{name}"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'hatrack\[{name}\]'"):
        importlib.import_module(f"hatrack.integrations.{name}")
