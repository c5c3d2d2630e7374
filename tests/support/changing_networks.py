"""Networks that mix units under a condition, and a short training, for tests of what decides on a path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork, WeightMaskedNetwork

WIDTH = 16
KINDS = [HATNetwork, WeightMaskedNetwork]
Net = HATNetwork | WeightMaskedNetwork
Condition = Callable[[nn.Module, Tensor], bool]


def learn_batch(net: Any, task: str, x: Tensor, seed: int = 0, lr: float = 0.05) -> None:
    """Learn a task with Adam in six steps on one batch, and consolidate it."""
    torch.manual_seed(seed)
    net.add_task(task, 2)
    optimizer = net.protect(torch.optim.Adam(net.task_parameters(task), lr=lr))
    net.train()
    for step in range(6):
        net.anneal(step / 5)
        optimizer.zero_grad()
        F.cross_entropy(net(x, task), torch.arange(len(x)) % 2).backward()
        optimizer.step()
    net.consolidate(task)


class Mixing(nn.Module):
    """Mixes units under a condition, where a parameter has joined them: no gate can stand before that."""

    def __init__(self, where: Condition) -> None:
        super().__init__()
        self.a, self.out, self.where, self.mixed = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), where, False
        self.shift = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x)) + self.shift
        if self.where(self, x):
            h = h - h.mean(1, keepdim=True)
        return torch.relu(self.out(h))


def never(module: nn.Module, x: Tensor) -> bool:
    """Hold for no call."""
    return False
