"""Hard attention to the task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.capacity import Capacity
from hatrack.errors import InputError
from hatrack.functional import Compensation, Conditioning
from hatrack.loading import load_as
from hatrack.methods.base import Batch, Loss, Method, Setup
from hatrack.network import HATNetwork
from hatrack.norm import BatchNorms
from hatrack.streams import Task, seeded_generator

__all__ = ["HAT", "HATSettings"]


@dataclass(frozen=True)
class HATSettings:
    """Settings of HAT, with the paper's values.

    Attributes:
        s_max: largest scale of the gates; 25 to 800 work.
        c: weight of the regulariser, how compact a task has to be; 0.1 to 2.5 work.
        hard: masks of exactly 0 and 1 once a task is learned; false keeps the sigmoid's values, which forgets a little.
        compensation: arithmetic of the embedding's gradient: exact, float32 (as the authors' code), or none.
        gate_inputs: learn which input features a task uses, too.
        conditioning: which weights earlier tasks hold: cumulative (the paper) or per-task, which frees more.
        batch_norms: per-task (each task has its own), or shared (the first task's, frozen).
    """

    s_max: float = 400.0
    c: float = 0.75
    hard: bool = True
    compensation: Compensation = Compensation.EXACT
    conditioning: Conditioning = Conditioning.CUMULATIVE
    batch_norms: BatchNorms = BatchNorms.PER_TASK
    gate_inputs: bool = False

    def __post_init__(self) -> None:
        if self.s_max <= 0:
            raise InputError(f"s_max must be above 0, not {self.s_max}")


class HAT(Method):
    """Trains a :class:`~hatrack.HATNetwork`."""

    name = "hat"
    description = "hard attention to the task: a mask of units per task, nothing forgotten"
    source = "Serrà et al., ICML 2018"
    settings_type = HATSettings

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.network = HATNetwork(
            setup.build_backbone(),
            torch.zeros(1, *setup.input_shape),
            s_max=settings.s_max,
            hard=settings.hard,
            compensation=settings.compensation,
            conditioning=settings.conditioning,
            batch_norms=settings.batch_norms,
            gate_inputs=settings.gate_inputs,
        ).to(setup.device)

    def begin_task(self, task: Task) -> None:
        """Open the task."""
        generator = seeded_generator(self.setup.seed, "head", task.name)
        self.network.add_task(task.name, task.num_classes, generator=generator)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy and, times c, the share of free units that the task takes (Eq. 4)."""
        self.network.anneal(batch.progress)
        logits = self.network(batch.x, batch.tasks[0])
        return Loss(F.cross_entropy(logits, batch.y) + self.settings.c * self.network.regularization(), logits)

    def end_task(self, task: Task) -> None:
        """Consolidate the task."""
        self.network.consolidate(task.name)

    def predict(self, x: Tensor, task: str) -> Tensor:
        """Logits under the task's mask."""
        logits: Tensor = self.network(x, task)
        return logits

    def trained_modules(self) -> Sequence[nn.Module]:
        """The whole network."""
        return [self.network]

    def trained_parameters(self) -> list[nn.Parameter]:
        """The backbone's shared parameters and the task's own."""
        task = self.network.task_in_training
        assert task is not None
        return self.network.task_parameters(task)

    def protect(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Keep what earlier tasks rely on."""
        return self.network.protect(optimizer)

    def save(self, path: Path) -> None:
        """Write the network; :func:`hatrack.load` reads it too."""
        self.network.save(path)

    def load(self, path: Path) -> tuple[str, ...]:
        """Read the network."""
        self.network = load_as(HATNetwork, path, self.network.detach()).to(self.setup.device)
        return self.network.task_names

    def capacity(self) -> Capacity:
        """Share of units and weights that the tasks so far use."""
        return self.network.capacity()
