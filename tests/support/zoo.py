"""Architectures to be exact on, written as their authors would, without a thought of hatrack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE = (2, 8, 8)
FEATURES = (6,)


@dataclass(frozen=True)
class Architecture:
    """Builder of a backbone, and its inputs: samples of a shape, or sequences of tokens where there is none."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] | None

    def samples(self, count: int, generator: torch.Generator) -> Tensor:
        if self.shape is None:
            return torch.randint(0, 11, (count, 5), generator=generator)
        return torch.randn(count, *self.shape, generator=generator)


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(h))
        h += self.shortcut(x)
        return F.relu(h)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class PreActivation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(h)))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(width, width // 2), nn.Linear(width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3))))))
        return x * scale[:, :, None, None]


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 10, 3, padding=1)
        self.conv2 = nn.Conv2d(10, 10, 3, padding=1)
        self.conv3 = nn.Conv2d(20, 10, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.conv1(x))
        b = F.relu(self.conv2(a))
        c = F.relu(self.conv3(torch.cat([a, b], dim=1)))
        return torch.cat([a, b, c], dim=1).mean((2, 3))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(2, 10, 3, padding=1), nn.Conv2d(10, 14, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(14, 10, 2, stride=2), nn.Conv2d(20, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down(x))
        h = F.relu(self.up(F.relu(self.deep(F.max_pool2d(skip, 2)))))
        return F.adaptive_avg_pool2d(F.relu(self.out(torch.cat([skip, h], 1))), 1).flatten(1)


class Mixer(nn.Module):
    def __init__(self, width: int = 14, tokens: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, width, 2, 2)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens1, self.tokens2 = nn.Linear(tokens, 8), nn.Linear(8, tokens)
        self.channels1, self.channels2 = nn.Linear(width, 20), nn.Linear(20, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens2(F.gelu(self.tokens1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.channels2(F.gelu(self.channels1(self.norm2(x))))
        return self.norm3(x).mean(1)


class HandAttention(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if self.fused:
            h = F.scaled_dot_product_attention(q, k, v)
        else:
            h = F.softmax(q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5, dim=-1) @ v
        return self.out(h.transpose(1, 2).reshape(batch, length, width))


class ModuleAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(0.5 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


class VisionTransformer(nn.Module):
    """Patches, a class token, positions, and a block around the attention that is given."""

    def __init__(self, attention: nn.Module, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, width, 4, 4)
        self.positions = nn.Parameter(0.1 * torch.randn(1, 5, width))
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.norm1, self.attention = nn.LayerNorm(width), attention
        self.norm2, self.mlp1, self.mlp2 = nn.LayerNorm(width), nn.Linear(width, 32), nn.Linear(32, width)
        self.scale, self.norm3 = LayerScale(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        x = x + self.attention(self.norm1(x))
        x = x + self.scale(self.mlp2(F.gelu(self.mlp1(self.norm2(x)))))
        return self.norm3(x)[:, 0]


class GatedLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.out = nn.Linear(6, 40), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.both(x).chunk(2, dim=-1)
        return F.relu(self.out(value * torch.sigmoid(gate)))


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Linear(6, 20), nn.Linear(20, 20)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shared(F.relu(self.shared(F.relu(self.first(x))))))


class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 20), nn.Linear(20, 20), nn.Linear(20, 20)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.third(F.relu(self.second(F.relu(self.first(x))))))


class BareParameters(nn.Module):
    """A shift of the input, a scalar factor, and a layer written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.factor = nn.Parameter(torch.randn(6)), nn.Parameter(torch.ones(()))
        self.weight, self.out = nn.Parameter(torch.randn(6, 20)), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.out(F.relu((x + self.shift) @ self.weight) * self.factor))


class SpatialAttention(nn.Module):
    """A map of one channel, which is spread over all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.map, self.out = nn.Conv2d(2, 10, 3, padding=1), nn.Conv2d(10, 1, 1), nn.Conv2d(10, 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv(x))
        return F.relu(self.out(h * torch.sigmoid(self.map(h)))).mean((2, 3))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.norm = nn.Embedding(11, 16), nn.Linear(16, 14), nn.GroupNorm(2, 14)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.relu(self.hidden(self.words(x).mean(1))))


def pooled(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


ZOO = {
    "resnet-basic": Architecture(
        lambda: pooled(
            nn.Conv2d(2, 10, 3, 1, 1), nn.BatchNorm2d(10), nn.ReLU(), BasicBlock(10, 10, 1), BasicBlock(10, 14, 2)
        ),
        IMAGE,
    ),
    "resnet-bottleneck": Architecture(
        lambda: pooled(nn.Conv2d(2, 10, 3, 1, 1), nn.ReLU(), Bottleneck(10, 8, 16, 2), Bottleneck(16, 8, 16, 1)), IMAGE
    ),
    "resnet-preactivation": Architecture(
        lambda: pooled(nn.Conv2d(2, 14, 3, 1, 1), PreActivation(14), PreActivation(14), nn.BatchNorm2d(14), nn.ReLU()),
        IMAGE,
    ),
    "squeeze-excite": Architecture(
        lambda: pooled(nn.Conv2d(2, 12, 3), nn.ReLU(), SqueezeExcite(12), nn.Conv2d(12, 12, 3), nn.ReLU()), IMAGE
    ),
    "densenet": Architecture(DenseNet, IMAGE),
    "u-net": Architecture(UNet, IMAGE),
    "mixer": Architecture(Mixer, IMAGE),
    "vit-by-hand": Architecture(lambda: VisionTransformer(HandAttention(24, 6, fused=False)), IMAGE),
    "vit-scaled-dot-product": Architecture(lambda: VisionTransformer(HandAttention(24, 6, fused=True)), IMAGE),
    "vit-module": Architecture(lambda: VisionTransformer(ModuleAttention(24, 6)), IMAGE),
    "vit-encoder-layer": Architecture(
        lambda: VisionTransformer(nn.TransformerEncoderLayer(24, 6, 32, batch_first=True, norm_first=True)), IMAGE
    ),
    "transformer-encoder": Architecture(
        lambda: nn.Sequential(
            nn.Linear(6, 36),
            nn.Unflatten(1, (3, 12)),
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(12, 2, 16, batch_first=True), 2, enable_nested_tensor=False
            ),
            nn.Flatten(),
        ),
        FEATURES,
    ),
    "gated-linear": Architecture(GatedLinear, FEATURES),
    "called-twice": Architecture(CalledTwice, FEATURES),
    "tied-weights": Architecture(TiedWeights, FEATURES),
    "bare-parameters": Architecture(BareParameters, FEATURES),
    "spatial-attention": Architecture(SpatialAttention, IMAGE),
    "depthwise": Architecture(
        lambda: pooled(
            *(
                nn.Conv2d(2, 14, 1),
                nn.SiLU(),
                nn.Conv2d(14, 14, 3, padding=1, groups=14),
                nn.BatchNorm2d(14),
                nn.SiLU(),
            ),
            *(nn.Conv2d(14, 28, 3, groups=14), nn.Conv2d(28, 14, 1), nn.GELU()),
        ),
        IMAGE,
    ),
    "grouped-dilated-transposed": Architecture(
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 12, 3, dilation=2, padding=2), nn.ReLU(), nn.Conv2d(12, 16, 3, groups=4)),
            *(nn.InstanceNorm2d(16, affine=True), nn.ReLU(), nn.ConvTranspose2d(16, 12, 2, groups=2), nn.Softplus()),
            *(nn.AdaptiveMaxPool2d(2), nn.Flatten()),
        ),
        IMAGE,
    ),
    "layer-norm-rms-norm": Architecture(
        lambda: nn.Sequential(
            nn.Linear(6, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 20), nn.RMSNorm(20), nn.Sigmoid()
        ),
        FEATURES,
    ),
    "layer-norm-over-images": Architecture(
        lambda: pooled(
            *(nn.Conv2d(2, 12, 3, padding=1), nn.LayerNorm([12, 8, 8]), nn.ReLU(), nn.Conv2d(12, 12, 3)),
            *(nn.GroupNorm(3, 12), nn.ReLU(), nn.Dropout2d(0.1)),
        ),
        IMAGE,
    ),
    "instance-norm-with-statistics": Architecture(
        lambda: nn.Sequential(
            nn.Conv1d(2, 14, 3, padding=1),
            nn.InstanceNorm1d(14, affine=True, track_running_stats=True),
            nn.ReLU(),
            nn.Flatten(),
        ),
        (2, 8),
    ),
    "upsampling": Architecture(
        lambda: nn.Sequential(
            *(nn.Linear(6, 48), nn.ReLU(), nn.Unflatten(1, (12, 2, 2)), nn.Conv2d(12, 10, 2), nn.ReLU()),
            *(nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.Conv2d(10, 10, 2), nn.Flatten()),
        ),
        FEATURES,
    ),
    "pixel-shuffle": Architecture(
        lambda: pooled(nn.Conv2d(2, 40, 3), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(10, 12, 3), nn.ReLU()), IMAGE
    ),
    "words": Architecture(Words, None),
}

QUICK = ("densenet", "gated-linear", "tied-weights", "words")
"""Architectures that a quick run has, too."""

CHEAP = (
    *QUICK,
    *("squeeze-excite", "u-net", "called-twice", "bare-parameters", "spatial-attention", "depthwise"),
    *("grouped-dilated-transposed", "layer-norm-rms-norm", "layer-norm-over-images", "instance-norm-with-statistics"),
    *("upsampling", "pixel-shuffle", "big-transfer", "splines", "nets-mlp", "nets-conv1d", "nets-residual"),
)
"""Architectures that a quick run has, too, where it learns one task of each."""
