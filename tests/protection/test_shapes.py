"""Parameters and buffers that got another shape, as where a table of embeddings was resized: refused at every door."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack import GuaranteeError, HATNetwork, WeightMaskedNetwork
from support.helpers import mode

X = torch.randint(9, (5, 4), generator=torch.Generator().manual_seed(0))
KINDS = {"units": HATNetwork, "weights": WeightMaskedNetwork}


class Words(nn.Module):
    """A network with a table, a norm, a buffer and an untrained layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.mid, self.out = (
            nn.Embedding(9, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, 8),
            nn.Linear(8, 6),
        )
        self.beside = nn.Linear(8, 6).requires_grad_(False)
        self.register_buffer("shift", torch.zeros(8))

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids).mean(1) + self.shift
        h = torch.relu(self.mid(self.norm(h)))
        return torch.relu(self.out(h)) + self.beside(h)


def learned(kind: str, training: bool) -> tuple[Any, torch.optim.Optimizer]:
    """A network with a consolidated task, and one in training or none; and the last optimizer, with momentum."""
    torch.manual_seed(0)
    net: Any = KINDS[kind](Words(), X)
    for task in ("a", "b") if training else ("a",):
        net.add_task(task, 2)
        optimizer = net.protect(torch.optim.SGD(net.task_parameters(task), lr=0.01, momentum=0.9))
        net.train()
        net.anneal(1.0)
        (net(X, task).square().mean() + 0.1 * net.regularization()).backward()
        optimizer.step()
        if task == "a":
            net.consolidate(task)
            net.calibrate(task, X, torch.arange(5) % 2)
    return net, optimizer


TENSORS: dict[str, Callable[[Any], Tensor]] = {
    "backbone.table.weight": lambda net: net.backbone.table.weight,
    "backbone.mid.weight": lambda net: net.backbone.mid.weight,
    "backbone.out.bias": lambda net: net.backbone.out.bias,
    "backbone.beside.weight": lambda net: net.backbone.beside.weight,
    "backbone.norm.weight": lambda net: net.backbone.norm.weight,
    "backbone.shift": lambda net: net.backbone.shift,
    "tasks.0.head.weight": lambda net: net.tasks[0].head.weight,
    "norm of a task": lambda net: next(p for name, p in net.tasks[0].named_parameters() if "norm" in name),
    "statistics of a task": lambda net: next(b for name, b in net.tasks[0].named_buffers() if "running_mean" in name),
}

DOORS: dict[str, Callable[[Any, Path], Any]] = {
    "forward": lambda net, path: net.eval()(X, "a"),
    "forward in training": lambda net, path: net.train()(X, "a"),
    "another length": lambda net, path: net.eval()(X[:, :3], "a"),
    "a task per sample": lambda net, path: net.eval()(X, ["a"] * 5),
    "infer": lambda net, path: net.infer(X),
    "check": lambda net, path: net.check(),
    "restore": lambda net, path: net.restore(),
    "save": lambda net, path: net.save(path / "net.hat"),
    "extract": lambda net, path: net.extract("a"),
    "calibrate": lambda net, path: net.calibrate("a", X, torch.zeros(5).long()),
    "plan": lambda net, path: net.plan(),
    "convert": lambda net, path: net.double(),
}
BETWEEN = {
    "add_task": lambda net, path: net.add_task("z", 3),
    "forget": lambda net, path: net.forget("a"),
    "grow": lambda net, path: net.grow({"mid": 1}),
    "load": lambda net, path: net.load_state_dict(net.state_dict()),
}
WITHIN = {
    "the task in training": lambda net, path: net.train()(X, "b"),
    "consolidate": lambda net, path: net.consolidate("b"),
    "give up": lambda net, path: net.forget("b"),
}


@contextmanager
def wider(tensor: Tensor) -> Iterator[None]:
    """While this lasts, a tensor has one more row."""
    kept = tensor.data
    tensor.data = torch.cat([kept, torch.ones_like(kept[:1])])
    try:
        yield
    finally:
        tensor.data = kept


def refused(call: Callable[[], Any], name: str) -> None:
    with pytest.raises(GuaranteeError, match=r"has shape \(.* and had \(.*: give it values of its own shape") as caught:
        call()
    assert "\n" not in str(caught.value)
    if "task" not in name.split(" "):
        assert name in str(caught.value)


@pytest.fixture(scope="module")
def networks() -> dict[tuple[str, bool], Any]:
    return {(kind, training): learned(kind, training)[0] for kind in KINDS for training in (False, True)}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TENSORS)
def test_another_shape_is_refused_everywhere_and_changes_nothing(
    name: str, kind: str, training: bool, networks: dict[tuple[str, bool], Any], tmp_path: Path
) -> None:
    net = networks[kind, training]
    with torch.no_grad(), mode(net, False):
        before = net(X, "a")
    with wider(TENSORS[name](net)):
        for door in {**DOORS, **(WITHIN if training else BETWEEN)}.values():
            refused(lambda door=door: door(net, tmp_path), name)  # type: ignore[misc]
        refused(copy.deepcopy(net).check, name)
        assert list(tmp_path.iterdir()) == []
    net.check()
    assert net.task_names == (("a", "b") if training else ("a",))
    with torch.no_grad(), mode(net, False):
        assert torch.equal(net(X, "a"), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_refused_before_it_begins(kind: str) -> None:
    name = "backbone.mid.weight" if kind == "units" else "backbone.beside.weight"
    net, optimizer = learned(kind, True)
    if kind == "weights":
        optimizer = net.protect(torch.optim.SGD(net.parameters(), lr=0.01))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with wider(TENSORS[name](net)):
        refused(optimizer.step, name)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    net.train()(X, "b").sum().backward()
    optimizer.step()
    net.check()


def test_the_backbone_can_be_taken_out_whatever_its_shape() -> None:
    net, _ = learned("units", False)
    table = net.backbone.table.weight
    table.data = torch.cat([table.data, torch.ones(3, 8)])
    backbone = net.detach()
    again = HATNetwork(backbone, torch.zeros(2, 4).long())
    again.add_task("a", 2)
    assert again.eval()(torch.full((1, 4), 11), "a").shape == (1, 2)
