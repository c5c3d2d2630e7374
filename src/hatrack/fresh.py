"""Fresh entries of parameters that get wider: drawn as the layer was first initialised."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hatrack.layers import Layer

__all__ = ["fresh_entries", "measure_spread"]


def measure_spread(backbone: nn.Module) -> dict[str, float]:
    """How widely the entries of every parameter are spread: root mean square times the root of the layer's fan-in.

    Xavier's, Kaiming's and torch's own initialisation all make this number depend little on widths.
    """
    spread = {}
    for name, module in backbone.named_modules():
        layer = Layer.of(module)
        for own, parameter in () if layer is None or layer.fresh else module.named_parameters(recurse=False):
            if parameter.numel() and parameter.is_floating_point():
                size = float(parameter.detach().double().square().mean().sqrt())
                spread[f"{name}.{own}".lstrip(".")] = size * math.sqrt(_fan_in(module, module.weight.shape))
    return spread


def fresh_entries(
    layer: Layer, name: str, shape: torch.Size, old: Tensor, spread: float | None, generator: torch.Generator | None
) -> Tensor:
    """Uniform entries as widely spread as the layer's were at first, for its present fan-in.

    Args:
        layer: the layer; its weight has the new shape already, or has it next.
        name: which of its parameters.
        shape: the parameter's new shape.
        old: its old values, for their type and device.
        spread: what :func:`measure_spread` said of it; None takes torch's own initialisation, U(−1/√f, 1/√f).
        generator: on the CPU; torch's global one if None.
    """
    module = layer.module
    fan_in = _fan_in(module, shape if name == "weight" else module.weight.shape)  # type: ignore[arg-type]
    size = 1 / math.sqrt(3 * fan_in) if spread is None else spread / math.sqrt(fan_in)
    entries = torch.empty(shape).uniform_(-math.sqrt(3) * size, math.sqrt(3) * size, generator=generator)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        entries[module.padding_idx] = 0.0
    return entries.to(old.device, old.dtype)


def _fan_in(module: nn.Module, shape: torch.Size) -> int:
    return 1 if isinstance(module, nn.Embedding) else max(1, shape[1:].numel())
