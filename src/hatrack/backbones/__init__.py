"""Backbones: ordinary torch modules that map a batch to features."""

from hatrack.backbones.alexnet import AlexNet
from hatrack.backbones.build import build_reproducibly, initialize_he, initialize_xavier
from hatrack.backbones.mlp import MLP
from hatrack.backbones.resnet import ResNet18
from hatrack.backbones.vit import ViT

__all__ = ["MLP", "AlexNet", "ResNet18", "ViT", "build_reproducibly", "initialize_he", "initialize_xavier"]
