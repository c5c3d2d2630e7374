"""PackNet: every task prunes what it learned, and the next one trains the weights that became free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from hatrack.capacity import Capacity
from hatrack.errors import InputError
from hatrack.methods.base import Setup
from hatrack.methods.multi_head import MultiHeadMethod
from hatrack.names import unknown_name
from hatrack.protect import Shield
from hatrack.streams import Task

__all__ = ["PackNet", "PackNetSettings", "assign_largest"]

MOST_TASKS = 255
"""Owners are bytes, and 0 means that a weight is free."""


@dataclass(frozen=True)
class PackNetSettings:
    """Settings of PackNet, with the values of its authors' code: half of a network for ImageNet, then three quarters.

    Attributes:
        prune_first: share of each layer's weights that the first task frees.
        prune: share of each layer's weights still free that every later task frees again. The authors' code spares its
            last task the pruning; here nobody knows which is the last.
    """

    prune_first: float = 0.5
    prune: float = 0.75

    def __post_init__(self) -> None:
        for key in ("prune_first", "prune"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise InputError(f"{key} must be at least 0 and below 1, not {getattr(self, key)}")


def assign_largest(weight: Tensor, owner: Tensor, task: int, prune: float) -> None:
    """Give the largest of a layer's free weights to a task, in place; the others stay free.

    Args:
        weight: the layer's weight.
        owner: number of the task that each of its entries belongs to, uint8 of its shape; 0 where free.
        task: number of the task, 1 or more.
        prune: share of the free weights to leave free, rounded to a whole number of weights.
    """
    free = (owner == 0).reshape(-1).nonzero().squeeze(1)
    kept = len(free) - round(prune * len(free))
    # A stable sort makes equal weights go by their position, on every machine.
    order = weight.detach().reshape(-1)[free].abs().sort(descending=True, stable=True).indices
    owner.view(-1)[free[order[:kept]]] = task


class PackNet(MultiHeadMethod):
    """Trains the free weights of all dense and convolutional layers, keeps the largest for the task and retrains those.

    A task is predicted with the weights of its own and of earlier tasks alone; those of later tasks count as 0. What
    is no weight of such a layer (biases, norms and their statistics, tokens) is the first task's, and fixed afterwards,
    as in the paper. A third of the epochs retrains (20 and 10 in the paper); its learning rate starts anew, where
    the paper's is a tenth.
    """

    name = "packnet"
    description = "prune, retrain and freeze the weights of each task; the next one trains those that were pruned"
    source = "Mallya and Lazebnik, CVPR 2018"
    settings_type = PackNetSettings
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = MappingProxyType(
        {"prune_first": (0.5, 0.75), "prune": (0.5, 0.75)}
    )

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self._retraining = False
        weights = {
            id(module.weight)
            for module in self.network.backbone.modules()
            if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
        }
        self._weights = {n: p for n, p in self.network.backbone.named_parameters() if id(p) in weights}
        self._owners = {name: torch.zeros_like(p, dtype=torch.uint8) for name, p in self._weights.items()}

    @property
    def owners(self) -> Mapping[str, Tensor]:
        """For every weight by name the number of the task, from 1, that each entry belongs to; 0 where free."""
        return self._owners

    def begin_task(self, task: Task) -> None:
        """Open the task's head; fix everything but the weights after the first task.

        Raises:
            InputError: it is the 256th task.
        """
        if len(self.network.task_names) == MOST_TASKS:
            raise InputError(f"packnet can learn {MOST_TASKS} tasks, no more")
        super().begin_task(task)
        if not self._first:
            for name, parameter in self.network.backbone.named_parameters():
                parameter.requires_grad_(name in self._weights)

    def phases(self, epochs: int) -> Sequence[int]:
        """Training, then retraining what was kept, 2 : 1."""
        retraining = max(1, round(epochs / 3)) if epochs > 1 else 0
        return (epochs - retraining, retraining)

    def begin_phase(self, index: int) -> None:
        """Before retraining: prune."""
        self._retraining = index == 1
        if self._retraining:
            self._prune()

    @torch.no_grad()
    def _prune(self) -> None:
        task = len(self.network.task_names)
        share = self.settings.prune_first if task == 1 else self.settings.prune
        for name, weight in self._weights.items():
            owner = self._owners[name]
            assign_largest(weight, owner, task, share)
            weight.masked_fill_(owner == 0, 0.0)

    def trained_parameters(self) -> list[nn.Parameter]:
        """The task's head, the weights, and in the first task everything else."""
        backbone = self.network.backbone.parameters() if self._first else self._weights.values()
        return [*backbone, *self.network.heads[-1].parameters()]

    @property
    def _first(self) -> bool:
        return len(self.network.task_names) == 1

    def train_mode(self, mode: bool) -> None:
        """Switch the mode; batch norms stay as the first task left them."""
        super().train_mode(mode)
        if not self._first:
            for module in self.network.backbone.modules():
                if isinstance(module, _NormBase):
                    module.eval()

    def protect(self, optimizer: Optimizer) -> Optimizer:
        """Keep every bit of what is not trained now: earlier tasks' weights, and in retraining the pruned ones."""
        task = len(self.network.task_names)
        shields: list[tuple[nn.Parameter, Shield]] = []
        for name, weight in self._weights.items():
            owner = self._owners[name]
            shield = Shield.around(weight, owner != task if self._retraining else owner != 0)
            if shield is not None:
                shields.append((weight, shield))

        def before(*_: Any) -> None:
            for weight, shield in shields:
                if weight.grad is not None:
                    shield.condition(weight.grad)

        @torch.no_grad()
        def after(*_: Any) -> None:  # momentum and weight decay move what has no gradient
            for weight, shield in shields:
                shield.restore(weight)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        return optimizer

    def predict(self, x: Tensor, task: str) -> Tensor:
        """Logits with the weights of this task and of those before it."""
        names = self.network.task_names
        if task not in names:
            raise unknown_name("task", task, names)
        number = names.index(task) + 1
        used = {
            f"backbone.{name}": weight.masked_fill((owner == 0) | (owner > number), 0.0)
            for (name, weight), owner in zip(self._weights.items(), self._owners.values(), strict=True)
        }
        logits: Tensor = functional_call(self.network, used, (x, [task]))
        return logits

    def capacity(self) -> Capacity:
        """Share of the weights that belong to a task, by layer; in all, with what is no weight and fixed with them."""
        backbone = dict(self.network.backbone.named_parameters())
        held = {name: int((owner != 0).sum()) for name, owner in self._owners.items()}
        shares = {name: number / backbone[name].numel() for name, number in held.items()}
        others = sum(p.numel() for name, p in backbone.items() if name not in held) if any(held.values()) else 0
        return Capacity(shares, None, (sum(held.values()) + others) / max(1, sum(p.numel() for p in backbone.values())))

    def _extra_state(self) -> dict[str, Tensor]:
        return {f"owner.{name}": owner for name, owner in self._owners.items()}

    def _load_extra_state(self, extra: Mapping[str, Tensor]) -> None:
        for name, owner in self._owners.items():
            owner.copy_(extra[f"owner.{name}"])
