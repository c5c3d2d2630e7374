"""Fully connected networks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

__all__ = ["MLP"]


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
            layers["dropout0"] = nn.Dropout(at_input)
        for number, (inputs, outputs) in enumerate(pairwise([prod(input_shape), *hidden]), start=1):
            layers[f"dense{number}"] = nn.Linear(inputs, outputs)
            layers[f"relu{number}"] = nn.ReLU()
            if at_hidden:
                layers[f"dropout{number}"] = nn.Dropout(at_hidden)
        super().__init__(OrderedDict(layers))
