"""Batch norms whose statistics and affine parameters no later task moves.

Shared statistics would follow the newest task and change the old ones' outputs (Dinu 2019). So every task gets a copy
of each batch norm, taken from the backbone's as it was when the task was added; or the first task alone gets one, and
all later tasks use it as that task left it. A norm of which all parameters are untrained is no task's: its statistics
are used as they are, in training as well, and all tasks share them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

from torch import nn

from hatrack.gating.gates import ActiveTask
from hatrack.support.copies import deep_copy

__all__ = ["BatchNorms", "EvaluationSwitch", "TaskNormSwitch", "copy_of_norm", "keep_in_evaluation", "let_train"]


class BatchNorms(enum.Enum):
    """Owner of the statistics and affine parameters that batch norms use."""

    PER_TASK = "per-task"
    """Every task has its own (Dinu 2019)."""

    SHARED = "shared"
    """All tasks use those of the first one, frozen once it is consolidated: nothing to store per task, but later tasks
    are normalised with statistics of the first one's data."""


def copy_of_norm(norm: nn.Module) -> nn.Module:
    """Copy a batch norm for training: same class, affine parameters and statistics, without hooks or a switch."""
    bare: nn.Module = object.__new__(type(norm))  # the norm itself is not touched, not even for a moment
    vars(bare).update(vars(norm))
    vars(bare).pop("forward", None)
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
        vars(bare)[name] = type(vars(norm)[name])()
    twin = deep_copy(bare)
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    return twin


class TaskNormSwitch:
    """Replacement for the ``forward`` of one batch norm of the backbone, which calls the active task's copy.

    Args:
        name: the layer's name in the backbone.
        module: the layer.
        active: the state shared by all gates and norms of the network.
    """

    def __init__(self, name: str, module: nn.Module, active: ActiveTask) -> None:
        self._name = name
        self.module = module
        self._active = active

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the active task's norm, or the layer's own while no task is active."""
        norms = self._active.norms
        if norms is None:
            self._active.require_forward()
            return type(self.module).forward(self.module, *args, **kwargs)
        return norms[self._name](*args, **kwargs)


class EvaluationSwitch:
    """Replacement for the ``train`` of one untrained batch norm, which stays in evaluation mode.

    Args:
        module: the norm.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._follows = module.training

    def train(self, mode: bool = True) -> nn.Module:
        """Leave the norm in evaluation mode, and return it."""
        self.module.training = False
        return self.module

    def release(self, training: bool) -> None:
        """Let the norm follow modes again.

        Args:
            training: mode of the network around it, which it gets if it was in training mode at first.
        """
        vars(self.module).pop("train", None)
        self.module.training = training and self._follows


def keep_in_evaluation(norms: Iterable[nn.Module]) -> None:
    """Keep norms in evaluation mode, whatever mode the network around them gets."""
    for norm in norms:
        vars(norm)["train"] = EvaluationSwitch(norm).train
        norm.train()


def let_train(network: nn.Module) -> None:
    """Let all norms of a network follow its mode that :func:`keep_in_evaluation` has kept from it."""
    for module in network.modules():
        switch = getattr(vars(module).get("train"), "__self__", None)
        if isinstance(switch, EvaluationSwitch):
            switch.release(network.training)
