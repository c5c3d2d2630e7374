"""Initial values of new entries, drawn on the scale on which the layer was first initialised."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hatrack.growth.layers import Layer

__all__ = ["draw_entries", "measure_initial_scales", "measure_moments"]

_AT_ONCE = 2**16
"""Number of entries that are converted to double precision at once: as many as stay in a CPU's cache."""


@torch.no_grad()
def measure_moments(values: Tensor) -> tuple[float, float]:
    """Measure mean and standard deviation of a tensor's entries, in double precision and without a copy of it.

    The deviation of entries that are all alike is exactly 0.

    Args:
        values: real numbers, one at least.
    """
    flat = values.detach().reshape(-1)
    origin = float(flat[0])
    total = squares = 0.0
    for part in torch.split(flat, _AT_ONCE if flat.device.type == "cpu" else 2**8 * _AT_ONCE):
        part = part.double() - origin
        total += float(part.sum())
        squares += float(torch.dot(part, part))
    offset = total / len(flat)
    return origin + offset, math.sqrt(max(squares / len(flat) - offset**2, 0.0))


def measure_initial_scales(backbone: nn.Module, moments: Mapping[int, tuple[float, float]]) -> dict[str, float]:
    """Measure the initial scale of every drawn parameter: its root mean square times the root of the layer's fan-in.

    Xavier's, Kaiming's and torch's own initialisation all make this number depend little on widths.

    Args:
        backbone: the network as it was first initialised.
        moments: mean and standard deviation of its parameters, by their identities.

    Returns:
        Scales by the names of parameters; without those that start as constants, such as a norm's.
    """
    scales = {}
    for name, module in backbone.named_modules():
        layer = Layer.of(module)
        for own, parameter in () if layer is None or layer.constants else module.named_parameters(recurse=False):
            if parameter.numel() and parameter.is_floating_point():
                size = math.hypot(*moments[id(parameter)])
                scales[f"{name}.{own}".lstrip(".")] = size * math.sqrt(_fan_in(module, module.weight.shape))
    return scales


def draw_entries(
    layer: Layer,
    name: str,
    shape: torch.Size,
    old: Tensor,
    initial_scale: float | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw uniform entries on the layer's initial scale, for its present fan-in.

    Args:
        layer: the layer; its weight has the new shape already, or is the parameter in question.
        name: the parameter's name in the layer.
        shape: the parameter's new shape.
        old: its old values, for their type and device.
        initial_scale: its scale from :func:`measure_initial_scales`; None takes torch's own initialisation,
            U(−1/√f, 1/√f).
        generator: source of randomness on the CPU; None takes torch's global one.
    """
    module = layer.module
    fan_in = _fan_in(module, shape if name == "weight" else module.weight.shape)  # type: ignore[arg-type]
    size = 1 / math.sqrt(3 * fan_in) if initial_scale is None else initial_scale / math.sqrt(fan_in)
    entries = torch.empty(shape).uniform_(-math.sqrt(3) * size, math.sqrt(3) * size, generator=generator)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        entries[module.padding_idx] = 0.0
    return entries.to(old.device, old.dtype)


def _fan_in(module: nn.Module, shape: torch.Size) -> int:
    return 1 if isinstance(module, nn.Embedding) else max(1, shape[1:].numel())
