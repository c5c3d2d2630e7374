"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """Dense layers with ReLU: the network of the MNIST experiments.

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
        layers: list[nn.Module] = [nn.Flatten(), *([nn.Dropout(at_input)] if at_input else [])]
        for inputs, outputs in pairwise([prod(input_shape), *hidden]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), *([nn.Dropout(at_hidden)] if at_hidden else [])]
        super().__init__(*layers)
