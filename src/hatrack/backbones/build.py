"""Reproducible initial weights of backbones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hatrack.streams import derive_seed, seeded_generator

__all__ = ["build_reproducibly", "initialize_he", "initialize_xavier"]


def build_reproducibly(build: Callable[[], nn.Module], seed: int, *, xavier: bool) -> nn.Module:
    """Build a network whose initial weights depend on a seed alone.

    Args:
        build: makes the network, drawing from torch's global generator, whose state is left unchanged.
        seed: the run's seed.
        xavier: draw weights of dense and convolutional layers Xavier-uniform and set their biases to zero afterwards.

    Returns:
        The network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "network"))
        network = build()
    if xavier:
        initialize_xavier(network, seeded_generator(seed, "xavier"))
    return network


def initialize_xavier(network: nn.Module, generator: torch.Generator) -> None:
    """Draw Xavier-uniform weights for every dense and convolutional layer and set biases to 0, in place."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialize_he(network: nn.Module, generator: torch.Generator) -> None:
    """Draw He-normal weights for convolutions, Xavier-uniform ones for dense layers, and set biases to 0, in place."""
    initialize_xavier(network, generator)
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
