"""Resizable layers: the axes of their tensors that count inputs or outputs, widening in place, and new entries."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hatrack.state.undo import UndoLog
from hatrack.support.layers import overrides_forward
from hatrack.support.parameters import DRAWN

__all__ = ["Layer", "Side", "draw_entries", "measure_initial_scales", "measure_moments", "widened"]


class Side(enum.Enum):
    """Side of a layer that an axis of its tensor counts."""

    INPUTS = "inputs"
    OUTPUTS = "outputs"


_IN, _OUT = Side.INPUTS, Side.OUTPUTS
Axes = tuple[Side | None, ...]
"""Sides that the first axes of a tensor count; None for an axis that does not depend on units."""


@dataclass(frozen=True)
class Layer:
    """Layer whose widths can be changed.

    Attributes:
        module: the layer.
        tensors: sides that the first axes of its parameters and buffers count, by name.
        sizes: sides whose width its attributes hold, by name.
        groups: number of groups of a convolution; 1 for other layers. A new group has as many channels as an old one.
        constants: values of new entries that are not drawn at random, by name.
    """

    module: nn.Module
    tensors: Mapping[str, Axes]
    sizes: Mapping[str, Side]
    groups: int
    constants: Mapping[str, float]

    @classmethod
    def of(cls, module: nn.Module) -> Layer | None:
        """Describe a layer; return None if it is none of torch's, or computes its weights from others.

        Batch norms with a forward of their own, as those with an activation have it, count as torch's.
        """
        for kinds, tensors, sizes, constants in _KINDS:
            kind = next((kind for kind in kinds if isinstance(module, kind)), None)
            if kind is None or (overrides_forward(module, kind) and not isinstance(module, _BatchNorm)):
                continue
            if not {name for name, _ in module.named_parameters()} <= set(tensors):
                return None
            groups = int(getattr(module, "groups", 1))
            if groups > 1:  # the second axis of the weight counts within a group
                tensors = {**tensors, "weight": tensors["weight"][:1]}
            return cls(module, tensors, sizes, groups, constants)
        return None

    def width(self, side: Side) -> int:
        """Return the number of inputs or outputs."""
        return int(getattr(self.module, next(name for name, of in self.sizes.items() if of is side)))

    def resize(self, widths: Mapping[Side, int], undo_log: UndoLog) -> None:
        """Change the attributes that hold widths, but no tensor.

        Args:
            widths: the new numbers of inputs and outputs.
            undo_log: records the changes.
        """
        if self.groups > 1:
            undo_log.set_attribute(self.module, "groups", self.groups * widths[_OUT] // self.width(_OUT))
        for name, side in self.sizes.items():
            undo_log.set_attribute(self.module, name, widths[side])

    def replace(
        self,
        widths: Mapping[Side, int],
        draw: Callable[[str, torch.Size, Tensor], Tensor],
        undo_log: UndoLog,
    ) -> dict[str, Tensor]:
        """Give every tensor its new shape, with new entries only.

        Args:
            widths: the new numbers of inputs and outputs.
            draw: makes new entries from a tensor's name, the new shape, and the old tensor.
            undo_log: records the changes.

        Returns:
            The old tensors, by name.
        """
        before = {}
        for name, axes in self.tensors.items():
            tensor = getattr(self.module, name, None)
            if not isinstance(tensor, Tensor):
                continue
            sizes = [size if axis is None else widths[axis] for size, axis in zip(tensor.shape, axes, strict=False)]
            shape = torch.Size([*sizes, *tensor.shape[len(axes) :]])
            before[name] = tensor.data
            if name in self.constants:
                new = tensor.data.new_full(shape, self.constants[name])
            else:
                new = draw(name, shape, tensor.data)
            if isinstance(tensor, nn.Parameter):
                undo_log.set_data(tensor, new)
            else:
                undo_log.set_attribute(self.module, name, new)
        return before

    def places(self, indices: Mapping[Side, Tensor]) -> dict[nn.Parameter, tuple[Tensor | None, ...]]:
        """Return new indices of the old entries of every parameter, along its first axes; None for unchanged axes."""
        return {
            parameter: tuple(None if axis is None else indices.get(axis) for axis in self.tensors[name])
            for name, parameter in self.module.named_parameters(recurse=False)
        }

    def put_back(self, before: Mapping[str, Tensor], indices: Mapping[Side, Tensor]) -> None:
        """Write old values to their new indices.

        Args:
            before: the old tensors, by name.
            indices: new indices of the old inputs or outputs, in their order, for each side that changed.
        """
        for name, old in before.items():
            where = tuple(None if axis is None else indices.get(axis) for axis in self.tensors[name])
            _put(getattr(self.module, name).data, old, where)


def widened(old: Tensor, shape: Sequence[int], where: Sequence[Tensor | None]) -> Tensor:
    """Make a larger tensor with old values at their new places, and 0 everywhere else.

    Args:
        old: the old values.
        shape: the new shape.
        where: new indices of the old ones along the first axes; None for unchanged axes.
    """
    new = old.new_zeros(tuple(shape))
    _put(new, old, where)
    return new


def _put(new: Tensor, old: Tensor, where: Sequence[Tensor | None]) -> None:
    axes = len(where)
    indices = []
    for axis, places in enumerate(where):
        rows = torch.arange(old.shape[axis]) if places is None else places
        indices.append(rows.to(new.device).view(-1, *(1,) * (axes - 1 - axis)))
    new[tuple(indices)] = old


_MIXING: dict[str, Axes] = {"weight": (_OUT, _IN), "bias": (_OUT,)}
_TRANSPOSED: dict[str, Axes] = {"weight": (_IN, _OUT), "bias": (_OUT,)}
_NORM: dict[str, Axes] = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (_OUT,))
_CHANNELS = {"in_channels": _IN, "out_channels": _OUT}
_KINDS: tuple[tuple[tuple[type, ...], dict[str, Axes], dict[str, Side], dict[str, float]], ...] = (
    ((nn.Linear,), _MIXING, {"in_features": _IN, "out_features": _OUT}, {}),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _MIXING, _CHANNELS, {}),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _TRANSPOSED, _CHANNELS, {}),
    ((nn.Embedding,), {"weight": (None, _OUT)}, {"embedding_dim": _OUT}, {}),
    (
        (_BatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        _NORM,
        {"num_features": _OUT},
        {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0},
    ),
    ((nn.PReLU,), {"weight": (_OUT,)}, {"num_parameters": _OUT}, {"weight": 0.25}),
)
"""Kinds of layers: classes, axes of tensors, attributes of widths, and torch's constant initial values."""


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
        part = part.to(torch.float64, copy=True).sub_(origin)
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
    entries = torch.empty(shape, dtype=DRAWN)
    entries.uniform_(-math.sqrt(3) * size, math.sqrt(3) * size, generator=generator)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        entries[module.padding_idx] = 0.0
    return entries.to(old.device, old.dtype)


def _fan_in(module: nn.Module, shape: torch.Size) -> int:
    return 1 if isinstance(module, nn.Embedding) else max(1, shape[1:].numel())
