"""Small networks, easy tasks and the optimizers that a promise has to hold under, for the tests of all methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack.backbones import MLP, ViT, build_reproducibly
from hatrack.experiments import Config
from hatrack.experiments.backbones import build_backbone, narrow_builder
from hatrack.experiments.settings import NetworkSettings
from hatrack.methods import METHODS, Method, Setup
from hatrack.methods.hat import PAPER_C
from hatrack.streams import Task
from hatrack.train import OptimizerKind, TrainingSettings, fit
from support.marks import slow_but

QUICK = ("hat", "sgd", "random", "independent")
"""Methods that a quick run tries everything with."""

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum-decay": {"momentum": 0.9, "weight_decay": 0.01},
    "adamw": {"optimizer": OptimizerKind.ADAMW, "lr": 0.01, "weight_decay": 0.1},
}


def part(units: int, share: float) -> int:
    return max(1, round(units * share))


def conv(share: float, dropout: float) -> nn.Module:
    first, second = part(16, share), part(12, share)
    return nn.Sequential(
        nn.Conv2d(2, first, 3, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 2),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(4 * second, second),
        nn.ReLU(),
    )


def small_conv(norm: bool, share: float) -> nn.Module:
    first, second = part(6, share), part(8, share)
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1),
        nn.BatchNorm2d(first) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
    )


def mlp(widths: Sequence[int], share: float, dropout: tuple[float, float] = (0.0, 0.0)) -> nn.Module:
    return MLP(SHAPE, [part(width, share) for width in widths], dropout)


SHAPE = (4,)
IMAGE = (1, 6, 6)

NETWORKS: dict[str, tuple[Callable[[float, float], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda share, dropout: mlp((16, 12), share, (0.0, dropout)), SHAPE),
    "shallow": (lambda share, _: mlp((16,), share), SHAPE),
    "wide": (lambda share, _: mlp((64,), share), SHAPE),
    "deep": (lambda share, _: mlp((16, 16), share), SHAPE),
    "dropout": (lambda share, dropout: mlp((16, 16), share, (dropout, 2 * dropout)), SHAPE),
    "conv": (conv, (2, 6, 6)),
    "plain": (lambda share, _: small_conv(False, share), IMAGE),
    "norm": (lambda share, _: small_conv(True, share), IMAGE),
    "vit": (lambda share, _: ViT(IMAGE, patch=3, width=part(4, share) * 2, depth=1, heads=2), IMAGE),
}
"""How to build a network with a share of its units and some dropout, and what it takes."""

MIXTURE = (10, 100, 10, 10, 10, 43, 100, 10)
"""Numbers of classes of the HAT paper's eight data sets."""

SHAPES = {kind: shape for kind, (_, shape) in NETWORKS.items()}


def setup(kind: str = "mlp", dropout: float = 0.1, seed: int = 0) -> Setup:
    """Return the setup that a method starts from."""
    build, shape = NETWORKS[kind]

    def build_narrow(share: float, weights: int) -> nn.Module:
        return build_reproducibly(lambda: build(share, dropout), weights, xavier=True)

    return Setup(lambda: build_narrow(1.0, seed), shape, seed, torch.device("cpu"), build_narrow)


def setup_of(network: str, shape: tuple[int, ...], classes: tuple[int, ...] = ()) -> Setup:
    """The setup of a method on one of the backbones that runs name."""
    settings = NetworkSettings(network=network)
    narrow = narrow_builder(settings, shape)
    return Setup(lambda: build_backbone(settings, shape, 0), shape, 0, torch.device("cpu"), narrow, classes)


def make(name: str, kind: str = "mlp", *, dropout: float = 0.1, **settings: Any) -> Any:
    """A method, with its own defaults but for the settings given."""
    return METHODS[name](setup(kind, dropout), METHODS[name].settings_type(**settings))


def tasks(kind: str = "mlp", count: int = 3, samples: int = 96) -> list[Task]:
    """Tasks of 2, 3, 2, … classes: which side of random planes a sample lies on."""
    made = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(2 * samples, *SHAPES[kind], generator=generator)
        direction = torch.randn(x[0].numel(), generator=generator)
        score = x.flatten(1) @ direction / direction.norm()
        classes = 2 + number % 2
        y = torch.bucketize(score, torch.linspace(-0.7, 0.7, classes + 1)[1:-1])
        made.append(Task.from_tensors(f"t{number}", x[:samples], y[:samples], x[samples:], y[samples:]))
    return made


def toy(name: str, column: int, classes: int = 2, shape: tuple[int, ...] = SHAPE) -> Task:
    """Classes told by one feature of the input."""
    generator = torch.Generator().manual_seed(column)
    x = torch.randn(240, *shape, generator=generator)
    y = torch.bucketize(x.flatten(1)[:, column].contiguous(), torch.linspace(-0.7, 0.7, classes + 1)[1:-1])
    return Task.from_tensors(name, x[:160], y[:160], x[160:], y[160:])


TASKS = (toy("first", 0), toy("second", 1, classes=3), toy("third", 2))
IMAGES = (toy("first", 7, shape=IMAGE), toy("second", 14, classes=3, shape=IMAGE), toy("third", 21, shape=IMAGE))


def tasks_for(network: str) -> tuple[Task, ...]:
    """Either of the two, whichever fits the network."""
    return TASKS if SHAPES[network] == SHAPE else IMAGES


def rival_tasks(samples: int = 240) -> list[Task]:
    """Tasks that are forgotten for one another: whether two coordinates, others in each task, have the same sign."""
    made = []
    for number, (one, other) in enumerate([(0, 1), (2, 3), (0, 2)]):
        x = torch.randn(2 * samples, 4, generator=torch.Generator().manual_seed(number))
        y = (x[:, one] * x[:, other] > 0).long()
        made.append(Task.from_tensors(f"t{number}", x[:samples], y[:samples], x[samples:], y[samples:]))
    return made


def learn(method: Method, seen: Sequence[Task], first: int = 0, **training: Any) -> None:
    """Learn tasks, beginning with the one of index ``first``."""
    schedule = TrainingSettings(**{"epochs": 3, "batch_size": 16, **training})
    for index in range(first, len(seen)):
        method.begin_task(seen[index])
        if method.trains:
            for _ in fit(method, seen[: index + 1], schedule):
                pass
        method.end_task(seen[index])


def logits(method: Method, task: Task) -> Tensor:
    """Return a method's logits of a task's test samples."""
    method.train_mode(False)
    with torch.no_grad():
        return method.predict(task.test.load()[0], task.name)


def accuracy(method: Method, task: Task) -> float:
    """Share of right answers on a task's test samples."""
    return float((logits(method, task).argmax(1) == task.test.labels).float().mean())


def assert_nothing_forgotten(method: Method, kind: str, optimizer: str, **training: Any) -> None:
    """Over three tasks, what is said of earlier ones keeps every bit, in the middle of training a later one as well."""
    seen = tasks(kind)
    promised: list[Tensor] = []
    for index, task in enumerate(seen):
        learn(method, seen[: index + 1], first=index, **{**OPTIMIZERS[optimizer], **training})
        for earlier, promise in zip(seen, promised, strict=False):
            assert torch.equal(logits(method, earlier), promise), f"{earlier.name} after {task.name}"
        promised.append(logits(method, task))


def assert_goes_on_as_without_interruption(name: str, kind: str, folder: Path, **settings: Any) -> tuple[Any, Any]:
    """Two tasks in one go, and two with saving and loading in between: the same logits; returns both methods."""
    seen = tasks(kind, 2)
    straight, before, after = (make(name, kind, **settings) for _ in range(3))
    learn(straight, seen)
    learn(before, seen[:1])
    before.save(folder / "net.hat")
    assert after.load(folder / "net.hat") == (seen[0].name,)
    learn(after, seen, first=1)
    for task in seen:
        assert torch.equal(logits(after, task), logits(straight, task)), task.name
    return straight, after


KINDS = pytest.mark.parametrize("kind", slow_but(["mlp"], ["mlp", "conv"]))
EVERY_OPTIMIZER = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def strength_of(config: Config) -> float:
    """Return the c of an experiment with HAT, where its schedule is the paper's or leaves c to the paper."""
    strength: float | None = config.method.c
    return PAPER_C if strength is None else strength
