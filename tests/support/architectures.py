"""All architectures that tasks are extracted from, mixed in and exported from, with consolidated tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hatrack import HATNetwork
from hatrack.backbones import AlexNet, ResNet18, ViT
from support.helpers import NETS, open_task
from support.zoo import ZOO, Architecture
from support.zoo_models import MODELS

ARCHITECTURES = {
    **ZOO,
    **MODELS,
    **{f"nets-{name}": Architecture(net.build, net.shape) for name, net in NETS.items()},
    "resnet18": Architecture(lambda: ResNet18((3, 8, 8), width=8), (3, 8, 8)),
    "alexnet": Architecture(lambda: AlexNet((3, 20, 20), width=1 / 6), (3, 20, 20)),
    "vit": Architecture(lambda: ViT((3, 8, 8), width=24, depth=2, heads=6), (3, 8, 8)),
}

FOLDED = {"swin"}
"""Architectures that fold windows into the axis of samples."""


def draw_norms(net: HATNetwork, generator: torch.Generator) -> None:
    """Give the newest task norms unlike those of any other."""
    for norm in net.tasks[-1].batch_norms:
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.5, 2.0, generator=generator)
        for parameter in norm.parameters():
            parameter.data.normal_(generator=generator)


def a_task(name: str, share: float = 0.4) -> tuple[HATNetwork, Tensor, Tensor]:
    """A network with one consolidated task with norms of its own, samples to extract with, and others."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    architecture = ARCHITECTURES[name]
    net = HATNetwork(architecture.build(), architecture.samples(2, generator))
    open_task(net, "task", 1, share)
    draw_norms(net, generator)
    net.consolidate("task")
    return net, architecture.samples(8, generator), architecture.samples(16, generator)


def tasks_of(net: HATNetwork, count: int) -> list[str]:
    """Open and consolidate tasks with norms of their own; returns the names of all tasks."""
    generator = torch.Generator().manual_seed(3)
    for number in range(count):
        open_task(net, f"t{number}", number, 0.5)
        draw_norms(net, generator)
        net.consolidate(f"t{number}")
    return list(net.task_names)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Check that outputs agree to a share of their scale."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


def onnx_says(path: Path, **inputs: Tensor) -> Tensor:
    """Return the outputs of an ONNX file."""
    onnxruntime: Any = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])
