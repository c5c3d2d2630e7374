"""Source of a network's protection: the masks of its tasks, seen from the parameters."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.masks.task_list import TaskList
from hatrack.protection.conditioning import Damper

__all__ = ["ProtectionSource"]


class ProtectionSource(abc.ABC):
    """Source of a network's protection: the masks of its tasks, as far as they decide which entries are frozen.

    Attributes:
        backbone: the backbone of the network.
        tasks: the tasks of the network.
        untrained: names of the backbone's untrained parameters, which are frozen from attaching on.
    """

    backbone: nn.Module
    tasks: TaskList[Any]
    untrained: Sequence[str]

    @property
    @abc.abstractmethod
    def per_task_buffers(self) -> Sequence[str]:
        """Names of modules and single buffers that tasks have copies of, or that are computed anew."""

    @abc.abstractmethod
    def attention_on_parameters(self) -> Mapping[str, Tensor]:
        """Return how much consolidated tasks rely on each entry of the backbone, by ``backbone.`` and name.

        Booleans, or numbers in [0, 1], of the parameter's shape; parameters missing from the mapping are unprotected,
        unless they are untrained.
        """

    def dampers(self) -> Mapping[str, Damper]:
        """Return the dampers of parameters that move less the more tasks use them, by ``backbone.`` and name."""
        return {}

    def rates(self) -> Tensor:
        """Return the rate of every unit and of outputs without a unit, ``(U + 1,)``; empty where nothing is damped."""
        return torch.empty(0)

    @abc.abstractmethod
    def bounded(self) -> Sequence[Tensor]:
        """Return the tensors in training that are clamped to [−6, 6] after every step."""
