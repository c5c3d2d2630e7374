"""The AlexNet-like network of the HAT paper."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

__all__ = ["AlexNet"]


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
            layers |= {f"relu{number}": nn.ReLU(), f"dropout{number}": nn.Dropout(probability)}
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            channels, height, wide = outputs, (height - kernel + 1) // 2, (wide - kernel + 1) // 2
        layers["flatten"] = nn.Flatten()
        features = channels * height * wide
        for number in (4, 5):
            outputs = max(1, round(2048 * width))
            layers[f"dense{number}"] = nn.Linear(features, outputs)
            layers |= {f"relu{number}": nn.ReLU(), f"dropout{number}": nn.Dropout(late)}
            features = outputs
        super().__init__(OrderedDict(layers))
