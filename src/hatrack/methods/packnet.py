"""PackNet: every task prunes what it learned, and the next one trains the weights that became free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from hatrack.masks import Magnitude, Unmasked
from hatrack.methods.masked import WeightMaskedMethod
from hatrack.methods.turning import TurningSettings

__all__ = ["PackNet", "PackNetSettings"]


@dataclass(frozen=True)
class PackNetSettings(TurningSettings):
    """Settings of PackNet, with the paper's values.

    Attributes:
        prune_first: share of each layer's weights that the first task frees.
        prune: share of each layer's weights still free that every later task frees again.
    """

    prune_first: float = 0.5
    prune: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        Magnitude(self.prune_first, self.prune)  # refuses what is no share


class PackNet(WeightMaskedMethod):
    """Trains the free weights of every layer, keeps the largest for the task and retrains those.

    A task is predicted with the weights of its own and of earlier tasks alone; those of later tasks count as 0. What
    has no mask (biases, norms and their statistics, tokens) is the first task's, and fixed afterwards, as in the paper.
    A third of the epochs retrains (20 and 10 in the paper); its learning rate starts anew, the paper's is a tenth.
    """

    name = "packnet"
    description = "prune, retrain and freeze the weights of each task; the next one trains those that were pruned"
    source = "Mallya and Lazebnik, CVPR 2018"
    settings_type = PackNetSettings
    grid = MappingProxyType({"prune_first": (0.5, 0.75), "prune": (0.5, 0.75)})
    unmasked = Unmasked.FIRST_TASK

    def source_of_masks(self) -> Magnitude:
        """Return masks of the largest weights."""
        return Magnitude(self.settings.prune_first, self.settings.prune)

    def mask_phases(self, epochs: int) -> Sequence[int]:
        """Divide the epochs into training, then retraining what was kept, 2 : 1."""
        retraining = max(1, round(epochs / 3)) if epochs > 1 else 0
        return (epochs - retraining, retraining)

    @torch.no_grad()
    def begin_mask_phase(self, index: int) -> None:
        """Before retraining: prune, and have the next task begin with zeros."""
        task = self.network.task_in_training
        if index == 1 and task is not None:
            self.network.settle(task)
            for name, mask in self.network.masks(task).items():
                self.network.backbone.get_parameter(name).masked_fill_(~mask, 0.0)

    @property
    def owners(self) -> dict[str, Tensor]:
        """For every weight by name the number of the task, from 1, that each entry belongs to; 0 where it is free."""
        owners: dict[str, Tensor] = {}
        for number, task in enumerate(self.network.task_names, start=1):
            for name, mask in self.network.masks(task).items():
                owner = owners.setdefault(name, torch.zeros(mask.shape, dtype=torch.int64, device=mask.device))
                owner[mask & (owner == 0)] = number
        return owners
