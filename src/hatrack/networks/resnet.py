"""Residual networks for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ResNet18"]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=projection, norm=nn.BatchNorm2d(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(N, outputs, H / stride, W / stride)`` of ``(N, inputs, H, W)``."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class ResNet18(nn.Sequential):
    """ResNet-18 with a 3×3 stem and no pooling after it, as is usual for 32×32 images: 11.2 million parameters.

    Args:
        input_shape: shape of one sample, ``(channels, height, width)``.
        width: filters of the first stage; the others have 2, 4 and 8 times as many.
    """

    def __init__(self, input_shape: Sequence[int] = (3, 32, 32), width: int = 64) -> None:
        layers: dict[str, nn.Module] = {
            "conv": nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False),
            "norm": nn.BatchNorm2d(width),
            "relu": nn.ReLU(),
        }
        inputs = width
        for stage, outputs in enumerate((width, 2 * width, 4 * width, 8 * width), start=1):
            for block in (1, 2):
                stride = 2 if stage > 1 and block == 1 else 1
                layers[f"stage{stage}block{block}"] = BasicBlock(inputs, outputs, stride)
                inputs = outputs
        super().__init__(OrderedDict(layers, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
