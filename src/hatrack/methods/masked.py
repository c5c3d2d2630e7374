"""What methods on top of a network of masks have in common: opening, training, consolidating, asking and keeping it."""

from __future__ import annotations

import abc
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.capacity import Capacity
from hatrack.errors import CheckpointError
from hatrack.growth import Growth
from hatrack.masks import FreeWeights, MaskSource, Unmasked, WeightConditioning
from hatrack.methods.base import Batch, Loss, Method, Setup
from hatrack.models.base import MaskedNetwork
from hatrack.models.loading import load_as
from hatrack.models.weight_masked import WeightMaskedNetwork
from hatrack.streams import Task, seeded_generator

__all__ = ["MaskedMethod", "Room", "WeightMaskedMethod"]


class Room(enum.Enum):
    """Whether there is room for any number of tasks."""

    FIXED = "fixed"
    """The network stays as wide as it is."""

    GROW = "grow"
    """Layers that are nearly full are widened before a task begins; old outputs change by rounding then."""


class MaskedMethod(Method):
    """Trains a network of masks with the cross-entropy and, times :meth:`strength`, what its masks cost.

    Attributes:
        network: the network.
    """

    network: MaskedNetwork[Any]

    def strength(self) -> float:
        """What the regularisation of masks is multiplied by; 0 leaves it out."""
        return 0.0

    def begin_task(self, task: Task) -> None:
        """Open the task."""
        generator = seeded_generator(self.setup.seed, "head", task.name)
        self.network.add_task(task.name, task.num_classes, generator=generator)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy, and what the masks cost."""
        self.network.anneal(batch.progress)
        logits = self.network(batch.x, batch.tasks[0])
        value = F.cross_entropy(logits, batch.y)
        strength = self.strength()
        return Loss(value + strength * self.network.regularization() if strength else value, logits)

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

    def trained_buffers(self) -> list[Tensor]:
        """The backbone's and the task's own: those of consolidated tasks do not move, however many there are."""
        task = self.network.task_in_training
        assert task is not None
        return self.network.task_buffers(task)

    def protect(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Keep what earlier tasks rely on."""
        return self.network.protect(optimizer)

    def save(self, path: Path) -> None:
        """Write the network; :func:`hatrack.load` reads it too."""
        self.network.save(path)

    def capacity(self) -> Capacity:
        """Share of the network that the tasks so far use."""
        return self.network.capacity()

    def usage(self) -> float:
        """Share of units, or of weights, that tasks use, the one in training included."""
        return self.network.usage()

    def reuse(self) -> Tensor:
        """Share of the weights of task i that task j uses too, ``(T, T)``."""
        return self.network.reuse()


class WeightMaskedMethod(MaskedMethod):
    """Trains a :class:`~hatrack.WeightMaskedNetwork`; a subclass says where masks come from, and little else."""

    network: WeightMaskedNetwork

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.network = WeightMaskedNetwork(
            self.build_backbone(),
            torch.zeros(1, *setup.input_shape),
            source=self.source_of_masks(),
            conditioning=self.conditioning(),
            unmasked=self.unmasked(),
            growth=self.growth(),
        ).to(setup.device)

    @abc.abstractmethod
    def source_of_masks(self) -> MaskSource:
        """Where the mask of a task comes from."""

    def conditioning(self) -> WeightConditioning:
        """What of the weights later tasks may change: those that no task uses."""
        return FreeWeights()

    def unmasked(self) -> Unmasked:
        """Whose copies a task uses of what has no mask: its own."""
        return Unmasked.PER_TASK

    def growth(self) -> Growth | None:
        """When the network is widened: never."""
        return None

    def build_backbone(self) -> nn.Module:
        """The backbone to begin with."""
        return self.setup.build_backbone()

    def load(self, path: Path) -> tuple[str, ...]:
        """Read the network.

        Raises:
            CheckpointError: the file is damaged, or of another method or backbone.
        """
        mine = self.network
        loaded = load_as(WeightMaskedNetwork, path, mine.detach())
        if (loaded.source, loaded.conditioning, loaded.unmasked) != (mine.source, mine.conditioning, mine.unmasked):
            raise CheckpointError(
                f"{path} was saved by another method, or with other settings: its masks come from {loaded.source}, "
                f"those of {self.name} from {mine.source}"
            )
        self.network = loaded.to(self.setup.device)
        return self.network.task_names
