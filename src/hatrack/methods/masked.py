"""Methods that train a network of masks: opening, training, consolidating, asking and keeping it."""

from __future__ import annotations

import abc
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from hatrack.backbones import QuarterTurns
from hatrack.errors import CheckpointError
from hatrack.growth.policy import Growth
from hatrack.masks import FreeWeights, MaskSource, Unmasked, WeightConditioning
from hatrack.methods.base import Batch, Loss, Method, Setup
from hatrack.methods.turning import require_classes, turned_loss, with_turns
from hatrack.models.base import MaskedNetwork
from hatrack.models.loading import load_as
from hatrack.models.weight_masked import WeightMaskedNetwork
from hatrack.protection.capacity import Capacity
from hatrack.streams import Task
from hatrack.support.inputs import Inputs

__all__ = ["MaskedMethod", "Room", "WeightMaskedMethod", "growth_of"]


class Room(enum.Enum):
    """Choice of whether there is room for any number of tasks."""

    FIXED = "fixed"
    """The network stays as wide as it is."""

    GROW = "grow"
    """Layers that are nearly full are widened before a task begins; old outputs change by rounding then."""


def growth_of(settings: Any) -> Growth | None:
    """Return when layers are widened; None if they never are.

    Args:
        settings: object with ``capacity``, ``growth_threshold`` and ``growth_share``.

    Raises:
        InputError: threshold or share are no shares, whether they are used or not.
    """
    growth = Growth(settings.growth_threshold, settings.growth_share)
    return growth if settings.capacity is Room.GROW else None


class MaskedMethod(Method):
    """Trains a network of masks with the task's loss and, times :meth:`strength`, what its masks cost.

    Attributes:
        network: the network.
        choices: attributes of a network that must be the same in one that is loaded.
    """

    network: MaskedNetwork[Any]
    choices: ClassVar[tuple[str, ...]] = ()
    takes_nested = True

    def build_backbone(self) -> nn.Module:
        """Make the backbone to begin with, which sees pictures in turns where the settings say so."""
        return with_turns(self.setup.build_backbone(), self.setup, getattr(self.settings, "rotations", 1))

    @property
    def turns(self) -> bool:
        """True if the backbone sees pictures in their quarter turns."""
        return isinstance(self.network.backbone, QuarterTurns)

    def require_task(self, task: Task) -> None:
        """Check that a task has classes where pictures are turned."""
        if self.turns:
            require_classes(task)

    def strength(self) -> float:
        """Return the factor of the masks' regularisation; 0 leaves it out."""
        return 0.0

    def begin_task(self, task: Task) -> None:
        """Open the task."""
        self.require_task(task)
        self.network.add_task(task.name, task.num_classes, generator=self.setup.generator("head", task.name))

    def loss(self, batch: Batch) -> Loss:
        """Return the task's loss and what the masks cost."""
        self.network.anneal(batch.progress)
        loss, strength = self.task_loss(batch), self.strength()
        return loss.plus(strength * self.network.regularization()) if strength else loss

    def task_loss(self, batch: Batch) -> Loss:
        """Return the loss of the task alone: in training that of classes and turns, if pictures are turned."""
        if self.turns and self.network.training:
            return turned_loss(self.network, batch)
        return Loss.of(self.predict(batch.x, batch.tasks[0]), batch)

    def end_task(self, task: Task) -> None:
        """Consolidate the task."""
        self.network.consolidate(task.name)

    def predict(self, x: Inputs, task: str) -> Tensor:
        """Return logits under the task's mask."""
        logits: Tensor = self.network(x, task)
        return logits

    def trained_modules(self) -> Sequence[nn.Module]:
        """Return the whole network."""
        return [self.network]

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the backbone's shared parameters and the task's own."""
        task = self.network.task_in_training
        assert task is not None
        return self.network.task_parameters(task)

    def trained_buffers(self) -> list[Tensor]:
        """Return the backbone's and the task's own: those of consolidated tasks do not move, however many there are."""
        task = self.network.task_in_training
        assert task is not None
        return self.network.task_buffers(task)

    def protect(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Keep what earlier tasks rely on."""
        return self.network.protect(optimizer)

    def save(self, path: Path) -> None:
        """Write the network; :func:`hatrack.load` reads it too."""
        self.network.save(path)

    def load(self, path: Path) -> tuple[str, ...]:
        """Read the network.

        Raises:
            CheckpointError: the file is damaged, or of another method, backbone or settings.
        """
        mine, kind = self.network, cast(type[Any], type(self.network))
        features = self.setup.interface.features
        loaded = load_as(kind, path, mine.detach(), features=features if callable(features) else None)
        for choice in self.choices:
            if getattr(loaded, choice) != getattr(mine, choice):
                raise CheckpointError(
                    f"{path} was saved by another method, or with other settings: its {choice} is "
                    f"{getattr(loaded, choice)}, that of {self.name} is {getattr(mine, choice)}"
                )
        self.network = loaded.to(self.setup.device)
        return self.network.task_names

    def capacity(self) -> Capacity:
        """Return the share of the network that the tasks so far use."""
        return self.network.capacity()

    def usage(self) -> float:
        """Return the share of units, or of weights, that tasks use, the one in training included."""
        return self.network.usage()

    def reuse(self) -> Tensor:
        """Return the share of the weights of task i that task j uses too, ``(T, T)``."""
        return self.network.reuse()


class WeightMaskedMethod(MaskedMethod):
    """Trains a :class:`~hatrack.WeightMaskedNetwork`; a subclass says where masks come from, and little else.

    Attributes:
        unmasked: whose copies a task uses of what has no mask.
    """

    network: WeightMaskedNetwork
    choices = ("source", "conditioning", "unmasked")
    unmasked: ClassVar[Unmasked] = Unmasked.PER_TASK

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.network = WeightMaskedNetwork(
            self.build_backbone(),
            setup.example_input,
            **vars(setup.interface),
            source=self.source_of_masks(),
            conditioning=self.conditioning(),
            unmasked=self.unmasked,
            growth=self.growth(),
        ).to(setup.device)

    @abc.abstractmethod
    def source_of_masks(self) -> MaskSource:
        """Return where the mask of a task comes from."""

    def conditioning(self) -> WeightConditioning:
        """Return what of the weights later tasks may change: those that no task uses."""
        return FreeWeights()

    def growth(self) -> Growth | None:
        """Return when the network is widened: never."""
        return None
