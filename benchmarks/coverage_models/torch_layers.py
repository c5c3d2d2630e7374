"""Layers of torch, each in a small network: what reads units comes before it, what is written is read after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from coverage_models import Features, Model

__all__ = ["models"]


class Called(nn.Module):
    """Layer that is called in a way of its own.

    Args:
        layer: the layer.
        call: computes a result with it.
    """

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


def image(layer: nn.Module, channels: int = 16) -> nn.Module:
    """Put a layer between two convolutions of an image."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), layer, nn.Conv2d(channels, 24, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def vector(layer: nn.Module, width: int = 16) -> nn.Module:
    """Put a layer between two dense ones."""
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), layer, nn.Linear(width, 24), nn.ReLU())


def series(layer: nn.Module, channels: int = 16) -> nn.Module:
    """Put a layer between two convolutions of a series."""
    return nn.Sequential(
        *(nn.Conv1d(3, 16, 3, padding=1), nn.ReLU(), layer, nn.Conv1d(channels, 24, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten()),
    )


def volume(layer: nn.Module, channels: int = 16) -> nn.Module:
    """Put a layer between two convolutions of a volume."""
    return nn.Sequential(
        *(nn.Conv3d(3, 16, 3, padding=1), nn.ReLU(), layer, nn.Conv3d(channels, 24, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten()),
    )


def tokens(layer: nn.Module, width: int = 16) -> nn.Module:
    """Put a layer between two dense ones that run over tokens."""
    return Features(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), layer, nn.Linear(width, 24), nn.ReLU()), _mean)


def _mean(x: Tensor) -> Tensor:
    return x.mean(1)


IMAGE, VECTOR, SERIES, VOLUME, TOKENS = (3, 8, 8), (8,), (3, 12), (3, 6, 6, 6), (20, 8)

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: vector(nn.Linear(16, 16)), VECTOR),
    "Bilinear": (lambda: vector(Called(nn.Bilinear(16, 16, 16), lambda layer, x: layer(x, x))), VECTOR),
    "Identity": (lambda: vector(nn.Identity()), VECTOR),
    "Conv1d": (lambda: series(nn.Conv1d(16, 16, 3, groups=4)), SERIES),
    "Conv2d": (lambda: image(nn.Conv2d(16, 16, 3, dilation=2)), IMAGE),
    "Conv3d": (lambda: volume(nn.Conv3d(16, 16, 3)), VOLUME),
    "ConvTranspose1d": (lambda: series(nn.ConvTranspose1d(16, 16, 3, groups=2)), SERIES),
    "ConvTranspose2d": (lambda: image(nn.ConvTranspose2d(16, 16, 3, stride=2)), IMAGE),
    "ConvTranspose3d": (lambda: volume(nn.ConvTranspose3d(16, 16, 3)), VOLUME),
    "LazyLinear": (lambda: vector(nn.LazyLinear(16)), VECTOR),
    "Unfold": (lambda: image(Called(nn.Unfold(2), lambda layer, x: layer(x).unflatten(2, (7, 7))), 64), IMAGE),
    "Fold": (
        lambda: image(Called(nn.Fold((8, 8), 2), lambda layer, x: layer(x.repeat(1, 4, 1, 1)[..., :7, :7].flatten(2)))),
        IMAGE,
    ),
    **{
        f"{kind.__name__}": (lambda kind=kind: image(kind(2)), IMAGE)
        for kind in (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
    },
    "MaxPool1d": (lambda: series(nn.MaxPool1d(2)), SERIES),
    "MaxPool3d": (lambda: volume(nn.MaxPool3d(2)), VOLUME),
    "AvgPool1d": (lambda: series(nn.AvgPool1d(2)), SERIES),
    "AvgPool3d": (lambda: volume(nn.AvgPool3d(2)), VOLUME),
    "LPPool2d": (lambda: image(nn.LPPool2d(2, 2)), IMAGE),
    "FractionalMaxPool2d": (lambda: image(nn.FractionalMaxPool2d(2, output_size=4)), IMAGE),
    "MaxUnpool2d": (lambda: image(Unpooled()), IMAGE),
    "BatchNorm1d": (lambda: vector(nn.BatchNorm1d(16)), VECTOR),
    "BatchNorm2d": (lambda: image(nn.BatchNorm2d(16)), IMAGE),
    "BatchNorm3d": (lambda: volume(nn.BatchNorm3d(16)), VOLUME),
    "SyncBatchNorm": (lambda: image(nn.SyncBatchNorm(16)), IMAGE),
    "LazyBatchNorm2d": (lambda: image(nn.LazyBatchNorm2d()), IMAGE),
    "GroupNorm": (lambda: image(nn.GroupNorm(4, 16)), IMAGE),
    "InstanceNorm2d": (lambda: image(nn.InstanceNorm2d(16, affine=True)), IMAGE),
    "LayerNorm": (lambda: tokens(nn.LayerNorm(16)), TOKENS),
    "LayerNorm over images": (lambda: image(nn.LayerNorm([16, 8, 8])), IMAGE),
    "RMSNorm": (lambda: tokens(nn.RMSNorm(16)), TOKENS),
    "LocalResponseNorm": (lambda: image(nn.LocalResponseNorm(3)), IMAGE),
    "CrossMapLRN2d": (lambda: image(nn.CrossMapLRN2d(3)), IMAGE),
    "Embedding": (
        lambda: Features(nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 24), nn.ReLU()), _mean),
        (),
    ),
    "EmbeddingBag": (lambda: nn.Sequential(nn.EmbeddingBag(9, 16), nn.Linear(16, 24), nn.ReLU()), ()),
    **{
        kind.__name__: (
            lambda kind=kind: tokens(Called(kind(16, 16, batch_first=True), lambda layer, x: layer(x)[0])),
            TOKENS,
        )
        for kind in (nn.RNN, nn.LSTM, nn.GRU)
    },
    "LSTM, two ways": (
        lambda: tokens(
            Called(nn.LSTM(16, 8, 2, batch_first=True, bidirectional=True), lambda layer, x: layer(x)[0]), 16
        ),
        TOKENS,
    ),
    **{
        kind.__name__: (lambda kind=kind: vector(Called(kind(16, 16), lambda layer, x: layer(x))), VECTOR)
        for kind in (nn.RNNCell, nn.GRUCell)
    },
    "LSTMCell": (lambda: vector(Called(nn.LSTMCell(16, 16), lambda layer, x: layer(x)[0])), VECTOR),
    "MultiheadAttention": (
        lambda: tokens(
            Called(nn.MultiheadAttention(16, 4, batch_first=True), lambda layer, x: layer(x, x, x)[0] + x),
        ),
        TOKENS,
    ),
    "TransformerEncoderLayer": (lambda: tokens(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)), TOKENS),
    "TransformerDecoderLayer": (
        lambda: tokens(
            Called(nn.TransformerDecoderLayer(16, 4, 32, batch_first=True), lambda layer, x: layer(x, x)),
        ),
        TOKENS,
    ),
    "Transformer": (
        lambda: tokens(Called(nn.Transformer(16, 4, 1, 1, 32, batch_first=True), lambda layer, x: layer(x, x))),
        TOKENS,
    ),
    "PReLU": (lambda: image(nn.PReLU(16)), IMAGE),
    "GLU": (lambda: vector(nn.GLU(), 8), VECTOR),
    "Softmax": (lambda: vector(nn.Softmax(-1)), VECTOR),
    "Softmax2d": (lambda: image(nn.Softmax2d()), IMAGE),
    "Softmin": (lambda: vector(nn.Softmin(-1)), VECTOR),
    "LogSoftmax": (lambda: vector(nn.LogSoftmax(-1)), VECTOR),
    **{
        kind.__name__: (lambda kind=kind: vector(kind()), VECTOR)
        for kind in (
            *(nn.ReLU, nn.ReLU6, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid),
            *(nn.Hardtanh, nn.LeakyReLU, nn.RReLU, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softshrink, nn.Softsign),
            *(nn.Tanh, nn.Tanhshrink, nn.Hardshrink, nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout),
        )
    },
    "Threshold": (lambda: vector(nn.Threshold(0.1, 0.0)), VECTOR),
    "Dropout2d": (lambda: image(nn.Dropout2d()), IMAGE),
    "Upsample": (lambda: image(nn.Upsample(scale_factor=2, mode="bilinear")), IMAGE),
    "PixelShuffle": (lambda: image(nn.PixelShuffle(2), 4), IMAGE),
    "PixelUnshuffle": (lambda: image(nn.PixelUnshuffle(2), 64), IMAGE),
    "ChannelShuffle": (lambda: image(nn.ChannelShuffle(4)), IMAGE),
    **{
        kind.__name__: (lambda kind=kind: image(kind(1)), IMAGE)
        for kind in (nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)
    },
    "ConstantPad2d": (lambda: image(nn.ConstantPad2d(1, 0.5)), IMAGE),
    "Flatten, Unflatten": (lambda: vector(nn.Sequential(nn.Unflatten(1, (4, 4)), nn.Flatten())), VECTOR),
    "CosineSimilarity": (
        lambda: tokens(
            Called(nn.CosineSimilarity(-1), lambda layer, x: x * layer(x, x.flip(1)).unsqueeze(-1)),
        ),
        TOKENS,
    ),
    "weight_norm": (lambda: vector(weight_norm(nn.Linear(16, 16))), VECTOR),
    "parametrizations.weight_norm": (lambda: image(parametrizations.weight_norm(nn.Conv2d(16, 16, 3))), IMAGE),
    "parametrizations.orthogonal": (lambda: vector(parametrizations.orthogonal(nn.Linear(16, 16))), VECTOR),
}
"""By name: a network with the layer, and the shape of a sample; an empty one for eight whole numbers below 9."""


class Unpooled(nn.Module):
    """Pooling, and its inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.unpool(*self.pool(x))


def models() -> Iterator[Model]:
    """Yield the networks."""
    for name, (build, shape) in MODELS.items():

        def initialized(build: Callable[[], nn.Module] = build, shape: tuple[int, ...] = shape) -> nn.Module:
            model = build().eval()
            model(_example(shape))  # which lazy layers wait for
            return model.train()

        yield Model(name, "torch_layers", initialized, lambda shape=shape: _example(shape), classes=9)


def _example(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(1, *shape) if shape else torch.zeros(1, 8, dtype=torch.int64)
