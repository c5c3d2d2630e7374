"""Methods that promise to forget nothing, on a residual network with batch norms: they learn, and keep every bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hatrack.backbones import ResNet18, build_reproducibly
from hatrack.methods import METHODS, Setup
from hatrack.streams import Task
from support.toys import accuracy, learn, logits

SHAPE = (1, 8, 8)
SETTINGS = {"pnn": {"column_width": 0.5}, "pathnet": {"modules": 4, "active": 2, "generations": 2, "module_width": 0.5}}


def patterns(name: str, seed: int, train: int = 96, test: int = 200) -> Task:
    """Two patterns, one per class, under noise, and brighter from task to task: other statistics in each norm."""
    generator = torch.Generator().manual_seed(seed)
    of_class = torch.randn(2, *SHAPE, generator=generator)
    y = torch.arange(train + test) % 2
    x = seed + (1 + seed) * (of_class[y] + torch.randn(train + test, *SHAPE, generator=generator))
    return Task.from_tensors(name, x[:train], y[:train], x[train:], y[train:])


def narrow(share: float, seed: int) -> nn.Module:
    return build_reproducibly(lambda: ResNet18(SHAPE, width=max(1, round(4 * share))), seed, xavier=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["packnet", "pnn", "pathnet"])
def test_two_tasks_are_learned_and_the_first_is_kept_to_the_bit(name: str) -> None:
    method_type, seen = METHODS[name], [patterns("first", 0), patterns("second", 1)]
    setup = Setup(lambda: narrow(1.0, 0), SHAPE, 0, torch.device("cpu"), narrow)
    method = method_type(setup, method_type.settings_type(**SETTINGS.get(name, {})))
    told: list[Tensor] = []
    for index, task in enumerate(seen):
        learn(method, seen[: index + 1], first=index, epochs=4, lr=0.05, momentum=0.9)
        assert accuracy(method, task) > 0.8, task.name
        for earlier, promise in zip(seen, told, strict=False):
            assert torch.equal(logits(method, earlier), promise)
        told.append(logits(method, task))
