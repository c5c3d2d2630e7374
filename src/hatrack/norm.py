"""Batch norm whose statistics and affine parameters no later task moves.

Shared statistics would follow the newest task and change the old ones' outputs (Dinu 2019). So every task gets a copy
of each batch norm, taken from the backbone's as it was when the task was added; or the first task alone gets one, and
all later tasks use it as that task left it.
"""

from __future__ import annotations

import copy
import enum
from typing import Any

from torch import nn

from hatrack.gates import ActiveTask

__all__ = ["BatchNorms", "TaskNormSwitch", "copy_of_norm"]


class BatchNorms(enum.Enum):
    """Whose statistics and affine parameters a batch norm works with."""

    PER_TASK = "per-task"
    """The task's own (Dinu 2019)."""

    SHARED = "shared"
    """The first task's, frozen once that is consolidated: nothing to store per task, but later tasks are normalised
    with statistics that are not theirs."""


def copy_of_norm(norm: nn.Module) -> nn.Module:
    """A copy of a batch norm to be trained: same class, affine parameters and statistics, without hooks or a switch."""
    bare: nn.Module = object.__new__(type(norm))  # the norm itself is not touched, not even for a moment
    vars(bare).update(vars(norm))
    vars(bare).pop("forward", None)
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
        vars(bare)[name] = type(vars(norm)[name])()
    twin = copy.deepcopy(bare)
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    return twin


class TaskNormSwitch:
    """Stands in for the ``forward`` of one batch norm of the backbone and calls the active task's copy instead.

    Args:
        name: the layer's name in the backbone.
        module: the layer.
        active: the state shared by all gates and norms of the network.
    """

    def __init__(self, name: str, module: nn.Module, active: ActiveTask) -> None:
        self._name = name
        self._module = module
        self._active = active

    def attach(self) -> None:
        """Put the switch in the place of the layer's forward."""
        vars(self._module)["forward"] = self.forward

    def detach(self) -> None:
        """Give the layer its own forward back."""
        del vars(self._module)["forward"]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The active task's norm; the layer's own while no task is active."""
        norms = self._active.norms
        if norms is None:
            self._active.require_forward()
            return type(self._module).forward(self._module, *args, **kwargs)
        return norms[self._name](*args, **kwargs)

    def copy_for_task(self) -> nn.Module:
        """A copy of the layer for a task."""
        return copy_of_norm(self._module)
