"""Progressive neural networks: a column per task, which reads the layers of all columns before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.methods.base import Setup
from hatrack.methods.narrow import (
    expected_classes,
    matching_share,
    narrow_builder_of,
    number_of_parameters,
    parameters_with_heads,
)
from hatrack.methods.stored import NetworkPerTask
from hatrack.support.ranges import require_range

__all__ = ["PNN", "Adapter", "NarrowColumn", "PNNSettings"]

Inputs = Mapping[str, Tensor]
"""Inputs of the layers of a column, by the layer's name."""


@dataclass(frozen=True)
class PNNSettings:
    """Settings of progressive networks, of which the HAT paper searched none.

    Attributes:
        expected_tasks: number of tasks for which all columns together have as many parameters as the backbone and its
            heads; that of the experiment if left out. More can be learned, with columns of the same width.
        column_width: share of the backbone's units in a column, instead of the one that ``expected_tasks`` gives.
    """

    expected_tasks: int | None = None
    column_width: float | None = None

    def __post_init__(self) -> None:
        require_range(self, "expected_tasks", least=1)
        require_range(self, "column_width", above=0, most=1)


class Adapter(nn.Module):
    """Lateral connection from the columns before a layer's own: ``U relu(V [α₁ x₁, α₂ x₂, …])`` (Eq. 2).

    V reduces what the same layer of the earlier columns reads to as many features as it reads in its own column, with a
    dense layer or a 1×1 convolution; U is a layer like the one that it adds to, without a bias. The scales α start
    small, at random, as the paper says. The HAT authors' code starts them with N(0, 1), gives U a bias, and leaves out
    the relu before a head.

    Args:
        layer: the layer that the result is added to.
        earlier: number of columns before.
        generator: on the CPU, draws the weights.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, earlier: int, generator: torch.Generator) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.empty(earlier))
        self._units = 1 if isinstance(layer, nn.Conv2d) else -1
        if isinstance(layer, nn.Linear):
            self.reduce: nn.Linear | nn.Conv2d = nn.Linear(earlier * layer.in_features, layer.in_features)
            self.expand: nn.Linear | nn.Conv2d = nn.Linear(layer.in_features, layer.out_features, bias=False)
        else:
            inputs, outputs = layer.in_channels, layer.out_channels
            self.reduce = nn.Conv2d(earlier * inputs, inputs, 1)
            self.expand = nn.Conv2d(inputs, outputs, layer.kernel_size, layer.stride, layer.padding, bias=False)  # type: ignore[arg-type]
        with torch.no_grad():
            self.scales.uniform_(0.0, 0.1, generator=generator)
            for part in (self.reduce, self.expand):
                nn.init.xavier_uniform_(part.weight, generator=generator)
            assert self.reduce.bias is not None
            nn.init.zeros_(self.reduce.bias)

    def forward(self, earlier: Sequence[Tensor]) -> Tensor:
        """Return the summand for the layer, given what the layer reads in each column before."""
        scaled = [scale * x for scale, x in zip(self.scales, earlier, strict=True)]
        result: Tensor = self.expand(F.relu(self.reduce(torch.cat(scaled, dim=self._units))))
        return result


class NarrowColumn(nn.Module):
    """A narrow backbone and a head; every layer but the first also reads its counterparts in the columns before.

    Args:
        backbone: maps a batch to features.
        head: the task's head.
        example: one sample, ``(1, ...)``.
        earlier: number of columns before.
        generator: on the CPU, draws the adapters' weights.
    """

    __call__: Callable[..., tuple[Tensor, Inputs]]

    def __init__(
        self, backbone: nn.Module, head: nn.Linear, example: Tensor, earlier: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.features = head.in_features
        self.body = nn.Sequential(backbone, head)
        self.adapters = nn.ModuleDict()
        self._read: dict[str, Tensor] = {}
        self._given: Sequence[Inputs] = ()
        layers = {n: m for n, m in self.body.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
        for name, layer in layers.items():
            layer.register_forward_hook(self._hook(name))
        self.eval()
        with torch.no_grad():
            _, read = self(example)
        _, *others = read  # in the order of the run: the first layer reads the samples, which need no adapter
        if earlier:
            for name in others:
                self.adapters[name.replace(".", "_")] = Adapter(layers[name], earlier, generator)

    def _hook(self, name: str) -> Callable[..., Tensor]:
        key = name.replace(".", "_")

        def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            self._read[name] = args[0]
            if key not in self.adapters:
                return output
            added: Tensor = self.adapters[key]([inputs[name] for inputs in self._given])
            return output + added

        return hook

    def forward(self, x: Tensor, given: Sequence[Inputs] = ()) -> tuple[Tensor, Inputs]:
        """Return logits, and the inputs of the layers, given the inputs of those of the columns before."""
        self._read, self._given = {}, given
        logits: Tensor = self.body(x)
        read, self._read, self._given = self._read, {}, ()
        return logits, read


class PNN(NetworkPerTask[NarrowColumn]):
    """Trains a new column for every task; those before are frozen, in evaluation mode, and lend what they compute.

    All columns are equally wide, such that those of all tasks, with adapters and heads, have as many parameters as the
    backbone with its heads. They start from the same initial weights.
    """

    name = "pnn"
    description = "progressive networks: a narrow network per task, which reads the frozen ones of earlier tasks"
    source = "Rusu et al., 2016"
    settings_type = PNNSettings
    file_format = "hatrack.ProgressiveNetwork"

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self._build = narrow_builder_of(setup, self.name)
        self.width = settings.column_width or self._matching_width()

    def _matching_width(self) -> float:
        classes = expected_classes(self.setup, self.settings.expected_tasks)

        def count(share: float) -> int:
            columns = [self._column(share, "", 1, earlier) for earlier in range(3)]
            one, two, three = map(number_of_parameters, columns)
            # Adapters have a part that is as large for each column before, and one that is there once.
            each, once = three - two, two - one - (three - two)
            tasks, features = len(classes), columns[0].features
            bodies = tasks * one + (tasks - 1) * once + tasks * (tasks - 1) // 2 * each
            heads = (sum(classes) - tasks) * (features + 1)  # one class each is counted already
            adapters_of_heads = (sum(classes[1:]) - (tasks - 1)) * features
            return bodies + heads + adapters_of_heads

        return matching_share(count, parameters_with_heads(self.setup, classes))

    def _column(self, share: float, name: str, num_classes: int, earlier: int) -> NarrowColumn:
        backbone = self._build(share, self.setup.seed)
        head = self.setup.head(self.setup.features_of(backbone), name, num_classes)
        example = torch.zeros(1, *self.setup.input_shape)
        return NarrowColumn(backbone, head, example, earlier, self.setup.generator("adapters", name))

    def new_network(self, name: str, num_classes: int) -> NarrowColumn:
        """Make a column that reads all those before it."""
        return self._column(self.width, name, num_classes, len(self.networks))

    def logits(self, x: Tensor, task: str) -> Tensor:
        """Return the logits of the task's column, after those before it."""
        given: list[Inputs] = []
        for name, column in self.networks.items():
            if name == task:
                break
            with torch.no_grad():
                given.append(column(x, given)[1])
        return self.networks[task](x, given)[0]

    def foresight(self) -> str:
        """Say how wide columns are."""
        return f"columns of {self.width} of the units"

    def stored_settings(self) -> Mapping[str, Any]:
        """Return the width of the columns."""
        return {"width": self.width}

    def restore_settings(self, path: Path, description: Mapping[str, Any]) -> None:
        """Take up the width of the columns."""
        self.width = description["width"]
