"""Backbones: ordinary torch modules that map a batch to features."""

from hatrack.networks.alexnet import AlexNet
from hatrack.networks.build import build_reproducibly, initialize_xavier
from hatrack.networks.mlp import MLP

__all__ = ["MLP", "AlexNet", "build_reproducibly", "initialize_xavier"]
