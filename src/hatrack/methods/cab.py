"""Conceptor-aided backpropagation: gradients may only point where earlier tasks' inputs did not."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.methods.at_once import at_once
from hatrack.methods.base import Setup
from hatrack.methods.importance import added
from hatrack.methods.multi_head import MultiHeadMethod
from hatrack.streams import Task
from hatrack.support.modes import evaluation_mode
from hatrack.support.ranges import require_range

__all__ = ["CAB", "CABSettings", "conceptor", "free_space", "layer_inputs"]

BATCH = 100


@dataclass(frozen=True)
class CABSettings:
    """Settings of CAB, for permuted MNIST.

    Where the defaults come from could not be checked: the paper names no code, none was found, and of the paper itself
    no more than its beginning was at hand. Choose them by a search of your own before you compare.

    Attributes:
        aperture: α, above 0: how much of the space that inputs fill counts as used. (4; 9 for split MNIST.) A
            layer's correlations are means over what it reads, so that α means less where inputs are scaled down.
        pull: weight of the distance from the weights before the task. (0.001; 0.005 for split MNIST.) Left out in the
            first task, where it would be a weight decay that other methods do not have.
        conceptor_samples: how many training samples, drawn at random, a task's conceptors are computed from. (500; 1000
            for split MNIST.)
    """

    aperture: float = 4.0
    pull: float = 0.001
    conceptor_samples: int = 500

    def __post_init__(self) -> None:
        require_range(self, "aperture", above=0)
        require_range(self, "conceptor_samples", least=1)


def conceptor(correlation: Tensor, aperture: float) -> Tensor:
    """Return ``C = R (R + α⁻² I)⁻¹``, which passes what the inputs often are, and stops what they never are.

    Args:
        correlation: R, the mean of ``x xᵀ``, ``(D, D)``.
        aperture: α.
    """
    return torch.eye(len(correlation), device=correlation.device) - free_space(correlation, aperture)


def free_space(correlation: Tensor, aperture: float) -> Tensor:
    """Return ``I − C = α⁻² (R + α⁻² I)⁻¹``, for R see :func:`conceptor`; computed in float64."""
    wide = correlation.double()
    level = torch.eye(len(wide), dtype=wide.dtype, device=wide.device) / aperture**2
    return torch.cholesky_solve(level, torch.linalg.cholesky(wide + level)).to(correlation.dtype)


def layer_inputs(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """Return all vectors that a layer multiplies its weights with, and a 1 for a bias, ``(rows, D)``."""
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, layer.in_features)
    else:
        assert not isinstance(layer.padding, str)
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        rows = patches.transpose(1, 2).reshape(-1, patches.shape[1])
    return rows if layer.bias is None else torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


class CAB(MultiHeadMethod):
    """Projects every layer's gradient onto what earlier tasks' inputs left free (He and Jaeger, algorithm 2).

    A layer's output on old inputs then hardly changes. Used space is the "or" of the tasks' conceptors. For conceptors
    of one aperture that is the conceptor of the sum of their correlations, which is what is kept. Heads need none:
    those of earlier tasks are not trained.

    Raises:
        InputError: the backbone has parameters outside of dense layers and plain two-dimensional convolutions.
    """

    name = "cab"
    description = "conceptor-aided backprop: gradients keep to the space that inputs of earlier tasks left free"
    source = "He and Jaeger, ICLR 2018"
    settings_type = CABSettings

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.correlation: dict[str, Tensor] = {}
        self._free: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}
        self.layers()  # refuses what it cannot train before anything is trained

    def layers(self) -> dict[str, nn.Linear | nn.Conv2d]:
        """Return the layers that are trained by their names in the backbone.

        Raises:
            InputError: the backbone has parameters outside of them, or a layer of which a part is not to be trained.
        """
        layers: dict[str, nn.Linear | nn.Conv2d] = {}
        for name, module in self.network.backbone.named_modules():
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and _plain(module)):
                layers[name] = module
                if len({parameter.requires_grad for parameter in module.parameters(recurse=False)}) > 1:
                    raise InputError(
                        "cab projects the gradients of a layer's weight and bias together, and of "
                        f"{name or 'the backbone'} one is not to be trained; set requires_grad of both alike"
                    )
            elif next(module.parameters(recurse=False), None) is not None:
                raise InputError(
                    f"cab trains dense layers and plain convolutions only, and {name or 'the backbone itself'} is a "
                    f"{type(module).__name__} with parameters; choose a backbone without (resnet18: norm=none)"
                )
        return layers

    def begin_task(self, task: Task) -> None:
        """Open the task's head; find what is free, and remember the weights."""
        super().begin_task(task)
        self._free = {name: free_space(value, self.settings.aperture) for name, value in self.correlation.items()}
        self._start = self.copy_of_shared()

    @torch.no_grad()
    def before_step(self) -> None:
        """Multiply each layer's gradient, the bias as a last column, by what is free; then pull to the old weights."""
        if not self._free:
            return
        for name, layer in self.layers().items():
            parameters = [parameter for parameter in (layer.weight, layer.bias) if parameter is not None]
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if not gradients:  # of a layer that is not trained
                continue
            columns = [gradient.reshape(len(gradient), -1) for gradient in gradients]
            projected = torch.cat(columns, dim=1) @ self._free[name]
            parts = torch.split(projected, [column.shape[1] for column in columns], dim=1)
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.reshape(gradient.shape))
        for name, parameter in self.shared_parameters().items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter - self._start[name], alpha=self.settings.pull)

    @at_once()
    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Add the correlations of every layer's inputs on the task's samples to those of earlier tasks."""
        generator = self.setup.generator("conceptor", task.name)
        x, _ = task.train.load()
        x = x[torch.randperm(len(x), generator=generator)[: self.settings.conceptor_samples]]
        sums: dict[str, Tensor] = {}
        rows: dict[str, int] = {}
        with ExitStack() as stack:
            for name, layer in self.layers().items():

                def gather(layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                    assert isinstance(layer, (nn.Linear, nn.Conv2d))
                    vectors = layer_inputs(layer, inputs[0])
                    sums[name] = sums.get(name, 0) + vectors.T @ vectors
                    rows[name] = rows.get(name, 0) + len(vectors)

                stack.callback(layer.register_forward_pre_hook(gather).remove)
            stack.enter_context(evaluation_mode(self.network))
            for part in torch.split(x, BATCH):
                self.network.backbone(part.to(self.setup.device))
        self.correlation = added(self.correlation, {name: value / rows[name] for name, value in sums.items()})

    def extra_state(self) -> dict[str, Tensor]:
        """Return the correlations."""
        return self.correlation

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up the correlations."""
        self.correlation = dict(state)


def _plain(layer: nn.Conv2d) -> bool:
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
