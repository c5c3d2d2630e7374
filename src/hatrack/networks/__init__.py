"""Backbones: ordinary torch modules that map a batch to features."""

from hatrack.networks.alexnet import AlexNet
from hatrack.networks.build import build_reproducibly, initialize_he, initialize_xavier
from hatrack.networks.mlp import MLP
from hatrack.networks.resnet import ResNet18
from hatrack.networks.vit import ViT

__all__ = ["MLP", "AlexNet", "ResNet18", "ViT", "build_reproducibly", "initialize_he", "initialize_xavier"]
