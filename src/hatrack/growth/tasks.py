"""Widening of what depends on a backbone: states of tasks, optimizers, and the quadratic penalty on weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hatrack.errors import InputError
from hatrack.growth.layers import Layer, widened
from hatrack.growth.widening import Widening
from hatrack.masks import QuadraticPenalty, WeightLayout, WeightTask
from hatrack.masks.tasks import TaskState, UnitTask, packed_mask
from hatrack.state.undo import UndoLog

__all__ = ["Places", "widen_optimizer", "widen_penalty", "widen_unit_tasks", "widen_weight_tasks"]

Places = Mapping[nn.Parameter, Sequence[Tensor | None]]
"""New indices of the old entries of widened parameters, along their first axes; None for unchanged axes."""


def widen_unit_tasks(states: Iterable[UnitTask], widening: Widening, undo_log: UndoLog) -> Places:
    """Widen tasks with masks of units for new units, which they do not use.

    Masks are off there, heads have zeros for new features, and batch norms leave new units unchanged.

    Args:
        states: the tasks.
        widening: result of widening the backbone.
        undo_log: records the changes.

    Returns:
        New indices of the old entries of every widened parameter, along its first axes.
    """
    places: dict[nn.Parameter, Sequence[Tensor | None]] = {}
    total = (widening.graph.num_units,)
    for state in states:
        units: tuple[Tensor | None, ...] = (widening.units,)
        undo_log.set_attribute(state, "packed", packed_mask(widened(state.mask, total, units)))
        undo_log.set_attribute(state, "num_units", widening.graph.num_units)
        places |= _widen_own_parts(state, widening, undo_log)
        if state.mask.dtype != torch.bool:  # statistics of booleans are of the features in use, and stay as they are
            _widen_calibration(state, widening, undo_log)
    return places


def widen_weight_tasks(
    states: Iterable[WeightTask], backbone: nn.Module, layout: WeightLayout, widening: Widening, undo_log: UndoLog
) -> Places:
    """Widen tasks with masks of weights for new weights, which they do not use.

    Masks are off there, and copies of parameters without masks get the backbone's new entries.

    Args:
        states: the tasks.
        backbone: the widened backbone.
        layout: its parameters by their roles.
        widening: result of widening it.
        undo_log: records the changes.

    Returns:
        New indices of the old entries of every widened parameter of the tasks, along its first axes.
    """
    changed: Places = widening.places()
    places: dict[nn.Parameter, Sequence[Tensor | None]] = {}
    weights = [backbone.get_parameter(name) for name in layout.masked]
    for state in states:
        masks = [_widened_like(weight, state.mask(index), changed) for index, weight in enumerate(weights)]
        undo_log.set_attribute(state, "shapes", tuple(weight.shape for weight in weights))
        undo_log.set_attribute(state, "packed", state.packed_of(masks))
        for copied, name in zip(state.copies, layout.copied, strict=False):  # none, if all use the first task's
            original = backbone.get_parameter(name)
            if original in changed:
                is_old = _widened_like(original, torch.ones_like(copied, dtype=torch.bool), changed)
                values = _widened_like(original, copied.data, changed)
                undo_log.set_data(copied, torch.where(is_old, values, original.data.to(values.dtype)))
                places[copied] = changed[original]
        places |= _widen_own_parts(state, widening, undo_log)
        _widen_calibration(state, widening, undo_log)
    return places


def widen_penalty(penalty: QuadraticPenalty, backbone: nn.Module, widening: Widening, undo_log: UndoLog) -> None:
    """Widen a penalty for new weights, which matter to no task.

    Args:
        penalty: the penalty.
        backbone: the widened backbone.
        widening: result of widening it.
        undo_log: records the changes.
    """
    places = widening.places()
    for name in penalty.anchors:
        for buffer in penalty.buffers_of(name):
            value = _widened_like(backbone.get_parameter(name), penalty.get_buffer(buffer), places)
            undo_log.set_attribute(penalty, buffer, value)


def _widened_like(parameter: nn.Parameter, old: Tensor, places: Places) -> Tensor:
    """Return values for all entries of a parameter, 0 (or False) at new ones; as they are if it was not widened."""
    return widened(old, parameter.shape, places[parameter]) if parameter in places else old


def _widen_own_parts(state: TaskState, widening: Widening, undo_log: UndoLog) -> Places:
    """Widen a task's head, with zeros for new features, and its batch norms, which leave new units unchanged.

    Args:
        state: the task.
        widening: result of widening the backbone.
        undo_log: records the changes.

    Returns:
        New indices of the old entries of every widened parameter, along its first axes.

    Raises:
        InputError: there are new features, and the task's head is the user's own.
    """
    columns: tuple[Tensor | None, ...] = (None, widening.features)
    features = len(widening.graph.features().units)
    places: dict[nn.Parameter, Sequence[Tensor | None]] = {}
    if state.num_classes is None:
        if features != len(widening.features):
            raise InputError(
                f"task {state.name!r} brought a head of its own, for {len(widening.features)} features, which cannot "
                "be widened; grow groups that the heads do not read"
            )
    else:
        head = state.linear_head
        undo_log.set_data(head.weight, widened(head.weight.data, (head.out_features, features), columns))
        undo_log.set_attribute(head, "in_features", features)
        assert isinstance(head.weight, nn.Parameter)
        places[head.weight] = columns
    for name, norm in state.norms.items():
        change, layer = widening.changes.get(name), Layer.of(norm)
        if change is not None and layer is not None:
            before = layer.replace(change.widths, _constant, undo_log)
            layer.resize(change.widths, undo_log)
            layer.put_back(before, change.indices)
            places |= layer.places(change.indices)
    return places


def _widen_calibration(state: TaskState, widening: Widening, undo_log: UndoLog) -> None:
    """Widen the statistics of all features that a task is recognised by, for new ones, which are 0 for it."""
    if state.calibration is not None:
        features = len(widening.graph.features().units)
        undo_log.set_attribute(state, "calibration", state.calibration.widened(widening.features, features))


def _constant(name: str, shape: torch.Size, old: Tensor) -> Tensor:
    raise AssertionError(f"a norm has no {name} to draw")


def widen_optimizer(optimizer: Optimizer, places: Places, undo_log: UndoLog) -> None:
    """Widen an optimizer's state of parameters, with zeros for new entries.

    What it remembers in another form than a widened parameter's, such as the sums over rows of Adafactor, fits the
    network no longer, nor do the past steps of all parameters that LBFGS keeps with one of them. All that it remembers
    of such a parameter is dropped, as of one that it has never seen: between tasks there is no step that would need it,
    and the task that it belongs to may well be over.

    Args:
        optimizer: the optimizer.
        places: new indices of the old entries of every widened parameter, along its first axes.
        undo_log: records the changes.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(parameter in places for parameter in parameters):
        return
    shapes = {parameter: _shape_before(parameter, places.get(parameter, ())) for parameter in parameters}
    entries = sum(map(math.prod, shapes.values()))
    for parameter, shape in shapes.items():
        memory = optimizer.state.get(parameter, {})
        has_shape = {key: isinstance(value, Tensor) and value.shape == shape for key, value in memory.items()}
        others = [value for key, value in memory.items() if not has_shape[key]]
        where = places.get(parameter)
        if any(_is_about_all(value, entries) if where is None else not _is_one_number(value) for value in others):
            undo_log.set_item(optimizer.state, parameter, {})
        elif where is not None:
            for key in (key for key, has in has_shape.items() if has):
                undo_log.set_item(memory, key, widened(memory[key], parameter.shape, where))


def _shape_before(parameter: Tensor, where: Sequence[Tensor | None]) -> torch.Size:
    """Return the shape that a parameter had before it was widened."""
    first = [n if index is None else len(index) for index, n in zip(where, parameter.shape, strict=False)]
    return torch.Size([*first, *parameter.shape[len(where) :]])


def _is_about_all(value: object, entries: int) -> bool:
    """Return whether a value of an optimizer has an entry for each of all its parameters' together, or a part has."""
    if isinstance(value, (list, tuple)):
        return any(_is_about_all(part, entries) for part in value)
    return isinstance(value, Tensor) and value.dim() == 1 and value.numel() == entries


def _is_one_number(value: object) -> bool:
    """Return whether a value, such as a count of steps, does not depend on the parameter's shape."""
    return value.numel() == 1 if isinstance(value, Tensor) else not isinstance(value, (list, tuple, dict))
