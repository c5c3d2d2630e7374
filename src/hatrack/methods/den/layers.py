"""Operations of a dynamically expandable network on dense layers: functions of tensors that change none of them.

Units are rows of a layer's weight ``(outputs, inputs)``, and columns of the weight above it. Later units always come
behind earlier ones, so that a prefix of the rows and columns is the layer as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "DenseLayer",
    "after_split",
    "drift_of_units",
    "free_entries",
    "selected_units",
    "shrunk_rows",
    "silent_units",
    "soft_threshold",
    "units_to_split",
    "widened",
    "without_units",
]


class DenseLayer(NamedTuple):
    """Tensors of a dense layer: ``weight`` is ``(outputs, inputs)``, ``bias`` is ``(outputs,)``."""

    weight: Tensor
    bias: Tensor


def selected_units(layers: Sequence[DenseLayer], head: Tensor) -> tuple[Tensor, ...]:
    """Find the units that a sparse head depends on, by a breadth-first search from its outputs (algorithm 2).

    A unit is selected if any weight that is not 0 leads from it to an output, or to a selected unit above it.

    Args:
        layers: the dense layers from the input on.
        head: weight of the head, ``(outputs, units of the last layer)``.

    Returns:
        For every layer which of its units are selected, booleans ``(units,)``.
    """
    found: list[Tensor] = []
    reached = torch.ones(len(head), dtype=torch.bool, device=head.device)
    for weight in (head, *(layer.weight for layer in reversed(layers[1:]))):
        reached = (weight[reached] != 0).any(dim=0)
        found.append(reached)
    return tuple(reversed(found))


def free_entries(layers: Sequence[DenseLayer], units: Sequence[Tensor]) -> tuple[DenseLayer, ...]:
    """Return the entries whose both ends are among some units, as booleans; every input feature is such an end.

    Args:
        layers: the dense layers from the input on.
        units: for every layer which of its units count, booleans ``(units,)``.
    """
    first = layers[0].weight
    below = torch.ones(first.shape[1], dtype=torch.bool, device=first.device)
    free = []
    for own in units:
        free.append(DenseLayer(own.unsqueeze(1) & below, own))
        below = own
    return tuple(free)


def soft_threshold(values: Tensor, threshold: float) -> Tensor:
    """Return ``sign(w) max(|w| − t, 0)``, the proximal step of ``t ‖w‖₁``, in the shape of the values."""
    return torch.nn.functional.softshrink(values, threshold)


def shrunk_rows(weight: Tensor, entries: Tensor, threshold: float) -> Tensor:
    """Shorten each row's part among some entries by a length: the proximal step of ``t Σ ‖w_row‖₂`` (Eq. 5).

    Args:
        weight: weight ``(outputs, inputs)``.
        entries: booleans of its shape; a row's entries among them are one group.
        threshold: t, at least 0. A group that is not longer becomes 0.

    Returns:
        A weight; what is not among the entries stays as it is.
    """
    lengths = torch.where(entries, weight, 0.0).norm(dim=1, keepdim=True)
    factors = (1.0 - threshold / lengths.clamp_min(torch.finfo(weight.dtype).tiny)).clamp_min(0.0)
    return torch.where(entries, weight * factors, weight)


def widened(old: DenseLayer, fresh: DenseLayer) -> DenseLayer:
    """Put a layer's entries in the first rows and columns of a layer that is at least as wide at both ends."""
    weight, bias = fresh.weight.clone(), fresh.bias.clone()
    weight[: old.weight.shape[0], : old.weight.shape[1]] = old.weight
    bias[: len(old.bias)] = old.bias
    return DenseLayer(weight, bias)


def silent_units(layer: DenseLayer, first: int) -> Tensor:
    """Return which units from some index on read nothing, all their weights being 0; booleans ``(units,)``."""
    silent = (layer.weight == 0).all(dim=1)
    silent[:first] = False
    return silent


def without_units(
    layers: Sequence[DenseLayer], head: Tensor, removed: Sequence[Tensor]
) -> tuple[tuple[DenseLayer, ...], Tensor]:
    """Cut units out of the layers, and out of what reads them.

    Args:
        layers: the dense layers from the input on.
        head: weight of the head, ``(outputs, units of the last layer)``.
        removed: for every layer the units to cut, booleans ``(units,)``.

    Returns:
        The layers and the head's weight without them.
    """
    kept = []
    columns = torch.ones(layers[0].weight.shape[1], dtype=torch.bool, device=head.device)
    for layer, cut in zip(layers, removed, strict=True):
        kept.append(DenseLayer(layer.weight[~cut][:, columns], layer.bias[~cut]))
        columns = ~cut
    return tuple(kept), head[:, columns]


def drift_of_units(now: Tensor, before: Tensor) -> Tensor:
    """Return how far each old unit's weights have gone, ``‖w_i − w_i before‖₂`` ``(old units,)`` (algorithm 4).

    Args:
        now: weight ``(outputs, inputs)``, at least as wide as before.
        before: weight before the task, ``(old units, old inputs)``.
    """
    rows, columns = before.shape
    drift: Tensor = torch.linalg.vector_norm(now[:rows, :columns] - before, dim=1)
    return drift


def units_to_split(drift: Tensor, threshold: float, most: int) -> Tensor:
    """Choose the units that drifted too far, those that went furthest where there are too many.

    Args:
        drift: how far each unit went, ``(units,)``.
        threshold: a unit is split if it went further.
        most: the largest number of units.

    Returns:
        Their indices in ascending order, int64.
    """
    furthest = torch.argsort(drift, descending=True, stable=True)[:most]
    return furthest[drift[furthest] > threshold].sort().values


def after_split(
    now: Sequence[DenseLayer], before: Sequence[DenseLayer], head: Tensor, split: Sequence[Tensor]
) -> tuple[tuple[DenseLayer, ...], Tensor]:
    """Split units: the copy, behind all others, is what the task made of a unit; the original is again what it was.

    What belongs to the task alone (its head, copies above, and units that it added) reads the copy from now on, and
    the original no more. Old units above go on reading the original, and begin to read the copy with 0.

    Args:
        now: the dense layers from the input on, after training.
        before: the same before the task; not wider.
        head: weight of the task's head, ``(outputs, units of the last layer)``.
        split: for every layer the indices of the units to split, all of them old, int64.

    Returns:
        The layers and the head's weight, wider by the copies.
    """
    result = []
    below = torch.empty(0, dtype=torch.int64, device=head.device)
    for layer, old, own in zip(now, before, split, strict=True):
        rows, columns = old.weight.shape
        moved = _reading_copies(layer.weight, below)
        weight = torch.nn.functional.pad(layer.weight, (0, len(below)))
        weight[rows:] = moved[rows:]
        weight[own] = 0.0
        weight[own, :columns] = old.weight[own]
        bias = layer.bias.clone()
        bias[own] = old.bias[own]
        result.append(DenseLayer(torch.cat([weight, moved[own]]), torch.cat([bias, layer.bias[own]])))
        below = own
    return tuple(result), _reading_copies(head, below)


def _reading_copies(weight: Tensor, split: Tensor) -> Tensor:
    """Move the columns of split units to their copies, which are the last columns of the result."""
    moved = torch.cat([weight, weight[:, split]], dim=1)
    moved[:, split] = 0.0
    return moved
