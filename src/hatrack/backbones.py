"""Backbones: ordinary torch modules that map a batch to features."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.streams import derive_seed, seeded_generator
from hatrack.support.dropout import Dropout
from hatrack.support.randomness import random_numbers_apart

__all__ = [
    "MLP",
    "AlexNet",
    "Dropout",
    "QuarterTurns",
    "ResNet18",
    "ViT",
    "build_reproducibly",
    "initialize_he",
    "initialize_xavier",
]


def build_reproducibly(build: Callable[[], nn.Module], seed: int, *, xavier: bool) -> nn.Module:
    """Build a network whose initial weights depend on a seed alone.

    Args:
        build: makes the network, drawing from torch's global generator, whose state is left unchanged.
        seed: the run's seed.
        xavier: draw weights of dense and convolutional layers Xavier-uniform and set their biases to zero afterwards.

    Returns:
        The network.
    """
    with random_numbers_apart(derive_seed(seed, "network")):
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


class MLP(nn.Sequential):
    """Multilayer perceptron of dense layers with ReLU, as in the MNIST experiments.

    Args:
        input_shape: shape of one sample, such as ``(1, 28, 28)``; it is flattened.
        hidden: width of every layer; the last is the number of features.
        dropout: probabilities for the input and for every hidden layer.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        hidden: Sequence[int] = (2000, 2000),
        dropout: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        at_input, at_hidden = dropout
        layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
        if at_input:
            layers["dropout0"] = Dropout(at_input)
        for number, (inputs, outputs) in enumerate(pairwise([prod(input_shape), *hidden]), start=1):
            layers[f"dense{number}"] = nn.Linear(inputs, outputs)
            layers[f"relu{number}"] = nn.ReLU()
            if at_hidden:
                layers[f"dropout{number}"] = Dropout(at_hidden)
        super().__init__(OrderedDict(layers))


class AlexNet(nn.Sequential):
    """AlexNet-like network of the HAT paper (section 3): 7.1 million parameters for 32×32×3.

    Convolutions of 64 (4×4), 128 (3×3) and 256 filters (2×2), each followed by ReLU, dropout and 2×2 max-pooling, and
    two dense layers of 2048 units.

    Args:
        input_shape: shape of one sample, ``(channels, height, width)``.
        dropout: probabilities after the first two convolutions, and after the layers that follow.
        width: factor on the number of units of every layer.
    """

    def __init__(
        self, input_shape: Sequence[int] = (3, 32, 32), dropout: tuple[float, float] = (0.2, 0.5), width: float = 1.0
    ) -> None:
        channels, height, wide = input_shape
        early, late = dropout
        layers: dict[str, nn.Module] = {}
        for number, (filters, kernel, probability) in enumerate([(64, 4, early), (128, 3, early), (256, 2, late)], 1):
            outputs = max(1, round(filters * width))
            layers[f"conv{number}"] = nn.Conv2d(channels, outputs, kernel)
            layers |= {f"relu{number}": nn.ReLU(), f"dropout{number}": Dropout(probability)}
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            channels, height, wide = outputs, (height - kernel + 1) // 2, (wide - kernel + 1) // 2
        layers["flatten"] = nn.Flatten()
        features = channels * height * wide
        for number in (4, 5):
            outputs = max(1, round(2048 * width))
            layers[f"dense{number}"] = nn.Linear(features, outputs)
            layers |= {f"relu{number}": nn.ReLU(), f"dropout{number}": Dropout(late)}
            features = outputs
        super().__init__(OrderedDict(layers))


class BasicBlock(nn.Module):
    """Residual block of two 3×3 convolutions beside a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if batch_norm else nn.Identity
        biased = not batch_norm  # a batch norm has a bias of its own
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=biased)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=biased)
        self.norm2 = norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=biased)
            self.shortcut = nn.Sequential(OrderedDict(conv=projection, norm=norm(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """Compute features ``(N, outputs, H / stride, W / stride)`` of ``(N, inputs, H, W)``."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class ResNet18(nn.Sequential):
    """ResNet-18 with a 3×3 stem and no pooling after it, as is usual for 32×32 images: 11.2 million parameters.

    Args:
        input_shape: shape of one sample, ``(channels, height, width)``.
        width: filters of the first stage; the others have 2, 4 and 8 times as many.
        batch_norm: whether a batch norm follows every convolution; without, the convolutions have biases.
    """

    def __init__(self, input_shape: Sequence[int] = (3, 32, 32), width: int = 64, *, batch_norm: bool = True) -> None:
        layers: dict[str, nn.Module] = {
            "conv": nn.Conv2d(input_shape[0], width, 3, padding=1, bias=not batch_norm),
            "norm": nn.BatchNorm2d(width) if batch_norm else nn.Identity(),
            "relu": nn.ReLU(),
        }
        inputs = width
        for stage, outputs in enumerate((width, 2 * width, 4 * width, 8 * width), start=1):
            for block in (1, 2):
                stride = 2 if stage > 1 and block == 1 else 1
                layers[f"stage{stage}block{block}"] = BasicBlock(inputs, outputs, stride, batch_norm)
                inputs = outputs
        super().__init__(OrderedDict(layers, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))


class Attention(nn.Module):
    """Self-attention over tokens ``(N, L, width)``, written out so that every head is a unit of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over tokens; the result has the shape of ``x``."""
        samples, length, _ = x.shape
        query, key, value = self.qkv(x).reshape(samples, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    """Transformer block: attention and two dense layers, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.dense1, self.dense2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens; the result has the shape of ``x``."""
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.dense2(F.gelu(self.dense1(self.norm2(x))))
        return result


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al., ICLR 2021), small enough for 32×32 images on a CPU.

    Args:
        input_shape: shape of one sample, ``(channels, height, width)``.
        patch: side of a patch, which divides height and width.
        width: length of a token, a multiple of ``heads``.
        depth: number of blocks.
        heads: attention heads per block.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        patch: int = 4,
        width: int = 192,
        depth: int = 4,
        heads: int = 6,
    ) -> None:
        super().__init__()
        channels, height, wide = input_shape
        tokens = 1 + (height // patch) * (wide // patch)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Compute features ``(N, width)``: the class token after the last block."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        features: Tensor = self.norm(self.blocks(x))[:, 0]
        return features


class QuarterTurns(nn.Module):
    """Backbone that sees every picture in its four quarter turns.

    It makes four pictures of each, and gives their features side by side, a quarter of what the backbone inside gives.
    A linear head on them answers with the mean over the turns of what its four parts answer, each for its own turn.
    That is CLOM's answer (Kim et al., 2022) with four classes for every class, one per turn, and it is the answer of an
    ordinary network and an ordinary head: files, extracted tasks and all else need not know of turns. In training
    :func:`hatrack.functional.turned_logits` tells the four classes apart.

    Args:
        backbone: maps square pictures to features ``(N, F)``.

    Attributes:
        backbone: the backbone inside.
    """

    turns = 4
    """Number of turns of a picture."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """Compute features ``(N, 4F)``, turn by turn, of pictures ``(N, channels, side, side)``.

        Raises:
            InputError: samples are no square pictures.
        """
        self.require_square(x.shape[1:])
        across = x.transpose(2, 3)
        turned = torch.stack([x, across.flip(2), x.flip(2, 3), across.flip(3)], 1).flatten(0, 1)
        features: Tensor = self.backbone(turned)
        return features.reshape(-1, self.turns * features.shape[1]) / self.turns

    @staticmethod
    def require_square(shape: Sequence[int]) -> None:
        """Check that samples can be turned.

        Args:
            shape: shape of one sample.

        Raises:
            InputError: it is not that of a square picture, ``(channels, side, side)``.
        """
        if len(shape) != 3 or shape[1] != shape[2]:
            raise InputError(
                f"square pictures (channels, side, side) can be turned, and samples have shape {tuple(shape)}: make "
                "them square (resize = [32, 32] in a tasks.toml), or leave turns out (`rotations=1`)"
            )
