"""Warm-up of a process: the imports and the libraries of a first step of training, before a clock begins."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from hatrack.methods import ParameterGroup
from hatrack.train.optimizers import build_optimizer
from hatrack.train.settings import TrainingSettings

__all__ = ["warm_up"]


def warm_up(settings: TrainingSettings, device: torch.device | str = "cpu") -> None:
    """Make a step of training with next to nothing, so that the first step that counts is one like all others.

    With its first optimizer torch imports its compiler, some 800 modules, and with its first pass on a GPU it starts
    the libraries for that: seconds, in which a small task is learned. No random number is drawn, and nothing remains.

    Args:
        settings: settings of the training to come.
        device: its device.
    """
    weight = nn.Parameter(torch.zeros(4, 1, 3, device=device))
    optimizer = build_optimizer((ParameterGroup([weight]),), replace(settings, captured=False))
    with torch.enable_grad():
        features = functional.conv1d(weight.new_zeros(2, 1, 6), weight).flatten(1)
        (features @ features.T).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if weight.is_cuda:
        torch.cuda.synchronize(device)
