"""Small networks, easy tasks and the two tests that matter: the law and the poison."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from hatrack import HATNetwork
from hatrack.backbones import AlexNet
from hatrack.models.answering import logits_of

CLASSES = 3
SAMPLES = 24


def mlp(inputs: int = 6, width: int = 32) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Dropout(0.1),
    )


def conv_bn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 10, 3, padding=1, bias=False),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(10, 12, 2),
        nn.BatchNorm2d(12),
        nn.PReLU(12),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 20),
        nn.BatchNorm1d(20),
        nn.Softplus(),
        nn.Dropout(0.1),
    )


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 10, 3, padding=1),
        nn.PReLU(),
        nn.AvgPool1d(2),
        nn.Conv1d(10, 12, 2, padding=1, padding_mode="circular"),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(60, 20),
        nn.Tanh(),
    )


def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 8, 2),
        nn.BatchNorm3d(8),
        nn.ELU(),
        nn.Conv3d(8, 10, 2, bias=False),
        nn.ReLU(),
        nn.AdaptiveMaxPool3d(1),
        nn.Flatten(),
        nn.Linear(10, 20),
        nn.ReLU(),
    )


class Residual(nn.Module):
    """A skip connection, a layer that is called twice, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 24)
        self.twice = nn.Linear(24, 24)
        self.tied = nn.Linear(24, 24)
        self.tied.weight = self.twice.weight
        self.last = nn.Linear(24, 20)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        h = h + torch.relu(self.twice(h))
        h = h + torch.sigmoid(self.twice(h))
        return F.gelu(self.last(torch.relu(self.tied(h))))


@dataclass(frozen=True)
class Net:
    """A backbone to test with, the shape of a sample, and a step width that suits it."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


NETS = {
    "mlp": Net(mlp, (1, 6)),
    "alexnet": Net(lambda: AlexNet((3, 20, 20), dropout=(0.1, 0.1), width=1 / 6), (3, 20, 20)),
    "conv-bn": Net(conv_bn, (2, 6, 6)),
    "conv1d": Net(conv1d, (2, 8)),
    "conv3d": Net(conv3d, (1, 4, 4, 4)),
    "residual": Net(Residual, (6,)),
}


def attach(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, hard: bool = True) -> HATNetwork:
    torch.manual_seed(seed)
    net = NETS[kind]
    backbone = net.build().to(dtype)
    for module in backbone.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight)
    return HATNetwork(backbone, torch.zeros(2, *net.shape, dtype=dtype), s_max=100.0, hard=hard)


def easy_task(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Samples around one random point per class."""
    generator = torch.Generator().manual_seed(seed)
    centers = 2 * torch.randn(CLASSES, *shape, generator=generator)
    y = torch.arange(SAMPLES) % CLASSES
    return (centers[y] + 0.1 * torch.randn(SAMPLES, *shape, generator=generator)).to(dtype), y


def open_task(net: HATNetwork, name: str, seed: int = 0, share: float = 0.35) -> None:
    """Open a task that starts with a share of every group's units, so that several tasks leave something free."""
    generator = torch.Generator().manual_seed(seed)
    net.add_task(name, CLASSES, generator=generator)
    with torch.no_grad():
        embedding = net.tasks[-1].embedding.abs_().neg_()
        for group in net.units.groups:
            chosen = torch.randperm(group.size, generator=generator)[: math.ceil(group.size * share)]
            embedding[group.span][chosen] *= -1


@contextmanager
def rounding_announced(dtype: torch.dtype) -> Iterator[None]:
    """A conversion to fewer digits warns that old outputs change; one to more digits does not."""
    if torch.finfo(dtype).bits >= 32:
        yield
    else:
        with pytest.warns(UserWarning, match="this conversion rounds weights"):
            yield


@contextmanager
def mode(net: nn.Module, training: bool) -> Iterator[None]:
    before = net.training
    net.train(training)
    try:
        yield
    finally:
        net.train(before)


def logits(net: HATNetwork, x: Tensor, task: str) -> Tensor:
    with mode(net, False), torch.no_grad():
        return net(x, task)


def raw_logits(net: HATNetwork, x: Tensor, task: str) -> Tensor:
    """Return logits of the weights as they are at this moment, with nothing put back."""
    with mode(net, False), torch.no_grad():
        return logits_of(net.masking, x, net.tasks.named(task))


def accuracy(net: HATNetwork, x: Tensor, y: Tensor, task: str) -> float:
    return float((logits(net, x, task).argmax(1) == y).float().mean())


def loss_of(net: HATNetwork, task: str, x: Tensor, y: Tensor, c: float = 0.1) -> Tensor:
    return F.cross_entropy(net(x, task).float(), y) + c * net.regularization().float()


def progress(step: int) -> float:
    """Position within an epoch of ten steps."""
    return step % 10 / 9


def train(net: HATNetwork, task: str, x: Tensor, y: Tensor, optimizer: Optimizer, steps: int = 30) -> None:
    """The plainest loop there is."""
    net.train()
    for step in range(steps):
        net.anneal(progress(step))
        optimizer.zero_grad()
        loss_of(net, task, x, y).backward()
        optimizer.step()


def learn(net: HATNetwork, name: str, seed: int = 0, steps: int = 5, lr: float = 0.05) -> tuple[Tensor, Tensor]:
    """Open, train and consolidate a task; returns its samples."""
    x, y = easy_task(net.example_shape[1:], seed, next((p.dtype for p in net.backbone.parameters()), torch.float32))
    open_task(net, name, seed)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters(name), lr=lr, momentum=0.9))
    train(net, name, x, y, optimizer, steps)
    net.consolidate(name)
    return x, y


def poison(net: HATNetwork, seed: int = 0) -> int:
    """Fill every unprotected entry with huge numbers; returns how many there were in the backbone."""
    generator = torch.Generator().manual_seed(seed)
    protected, filled = net.protected(), 0
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            free = ~protected[name]
            signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            parameter.copy_(torch.where(free, (1e30 * signs).to(parameter.dtype), parameter))
            filled += int(free.sum()) if name.startswith("backbone.") else 0
    return filled


def assert_poison_harmless(net: HATNetwork, samples: dict[str, Tensor]) -> None:
    """No bit of any consolidated task's logits depends on an entry that is called free."""
    poisoned = copy.deepcopy(net)
    assert poison(poisoned) > 0, "nothing is free, so that the test would say nothing"
    for task, x in samples.items():
        assert torch.equal(logits(poisoned, x, task), logits(net, x, task)), task
        assert torch.isfinite(logits(net, x, task)).all()
