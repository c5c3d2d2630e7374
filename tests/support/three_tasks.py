"""Three small tasks for trainers of other packages, and the training by hand that theirs is compared with."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hatrack import HATNetwork, WeightMaskedNetwork

Net = HATNetwork | WeightMaskedNetwork
TASKS = ("a", "b", "c")
BATCH, EPOCHS, RATE = 8, 3, 0.3
X = torch.randn(36, 6, generator=torch.Generator().manual_seed(1))
Y = {task: (X @ w > 0).long() for task, w in zip(TASKS, torch.eye(6)[:3] + 0.2, strict=True)}


def fresh(kind: str) -> Net:
    """A network without tasks."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU())
    example = torch.zeros(2, 6)
    return HATNetwork(backbone, example, s_max=50.0) if kind == "units" else WeightMaskedNetwork(backbone, example)


def loader(task: str) -> DataLoader[tuple[Tensor, ...]]:
    """The samples of a task, always in the same order; the last batch is smaller."""
    return DataLoader(TensorDataset(X, Y[task]), batch_size=BATCH)


@torch.no_grad()
def answers(net: Net, task: str) -> Tensor:
    return copy.deepcopy(net).eval()(X, task)


def by_hand(
    net: Net, task: str, strength: float = 0.75, together: int = 1, mean: bool = False, epochs: int = EPOCHS
) -> None:
    """Learn a task with a loop that anybody can check: one gate scale and one cost for every step.

    Args:
        together: batches that a step adds up.
        mean: whether the loss of a step with fewer batches, at the end of an epoch, is still their mean.
    """
    net.add_task(task, 2)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters(task), lr=RATE))
    batches = list(zip(X.split(BATCH), Y[task].split(BATCH), strict=True))
    steps = math.ceil(len(batches) / together)
    net.train()
    for _ in range(epochs):
        for step in range(steps):
            net.anneal(step / (steps - 1))
            optimizer.zero_grad()
            part = batches[step * together : (step + 1) * together]
            loss = sum(
                (F.cross_entropy(net(x, task), y) / (len(part) if mean else together) for x, y in part), torch.zeros(())
            )
            (loss + strength * net.regularization()).backward()
            optimizer.step()
    net.consolidate(task)


def state(net: Net) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items() if value.is_floating_point()}


def assert_same(net: Net, other: Net) -> None:
    """The parameters of two networks agree up to rounding, and the masks to the bit."""
    mine, theirs = state(net), state(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5, msg=name)
    for task in net.task_names:
        for name, mask in net.masks(task).items():
            assert torch.equal(mask, other.masks(task)[name])


def assert_differ(net: Net, other: Net) -> None:
    mine, theirs = state(net), state(other)
    assert any(not torch.allclose(mine[name], theirs[name], rtol=1e-3, atol=1e-4) for name in mine)


def with_first_task(kind: str) -> Net:
    """A network that has learned ``a``."""
    net = fresh(kind)
    by_hand(net, "a")
    return net


def assert_same_bits(net: Net, other: Net) -> None:
    mine, theirs = state(net), state(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
