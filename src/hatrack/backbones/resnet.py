"""Residual networks for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ResNet18"]


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
