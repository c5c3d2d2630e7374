"""Methods that train a network of masks: opening, training, consolidating, asking and keeping it."""

from __future__ import annotations

import abc
import enum
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from hatrack.backbones import QuarterTurns
from hatrack.errors import CheckpointError, GuaranteeError
from hatrack.growth.policy import Growth
from hatrack.masks import FreeWeights, MaskSource, Unmasked, WeightConditioning
from hatrack.methods.base import Batch, EpochPlan, Loss, Method, Pace, ParameterGroup, Schedule, Setup
from hatrack.methods.contrast import Projection, Standard, contrast_epochs, contrast_of_turns
from hatrack.methods.embedding_rate import embeddings_apart
from hatrack.methods.turning import require_classes, turned_loss, with_turns
from hatrack.models.base import MaskedNetwork
from hatrack.models.loading import load_as
from hatrack.models.weight_masked import WeightMaskedNetwork
from hatrack.protection.capacity import Capacity
from hatrack.streams import Task
from hatrack.support.inputs import Inputs
from hatrack.support.ranges import require_nonnegative, require_range

__all__ = ["MaskedMethod", "Room", "WeightMaskedMethod", "growth_of"]


HEAD_MEAN, HEAD_SCALE = "head_mean", "head_scale"
"""Names in the state of a training for how features are standardised for a head that is trained alone."""

STANDARDISED_ON = 500
"""Largest number of training samples that this is measured on."""


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
    require_range(settings, "growth_threshold", least=0, most=1)  # here, by the names that these have in the settings
    require_range(settings, "growth_share", above=0)
    require_nonnegative(settings, "growth_share")
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

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self._head_phase: int | None = None
        self._projection: Projection | None = None
        self._trains_head_alone = False
        self._standard: Standard | None = None
        self._pace: Pace | None = None

    def build_backbone(self) -> nn.Module:
        """Make the backbone to begin with, which sees pictures in turns where the settings say so."""
        return with_turns(self.setup.build_backbone(), self.setup, getattr(self.settings, "rotations", 1))

    @property
    def turns(self) -> bool:
        """True if the backbone sees pictures in their quarter turns."""
        return isinstance(self.network.backbone, QuarterTurns)

    @property
    def contrastive(self) -> float:
        """Share of the epochs that contrast features before the head is trained."""
        return float(getattr(self.settings, "contrastive", 0.0))

    def require_task(self, task: Task) -> None:
        """Check that a task has classes where pictures are turned or features contrasted."""
        if self.turns or self.contrastive:
            require_classes(task)

    def strength(self) -> float:
        """Return the factor of the masks' regularisation; 0 leaves it out."""
        return 0.0

    @property
    def embedding_lr_factor(self) -> float | None:
        """Factor of the embeddings' learning rate; None lets it follow from the optimizer and the steps."""
        return 1.0

    @property
    def pace(self) -> Pace | None:
        """The steps that there will be, as far as they are known."""
        return self._pace

    def note_pace(self, pace: Pace) -> None:
        """Take note of the steps there will be, from which the learning rate of embeddings may follow."""
        self._pace = pace

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Return embeddings apart, where they learn at another rate."""
        embeddings = self.network.masking.bounded()
        return embeddings_apart(self.trained_parameters(), embeddings, self.embedding_lr_factor, self.pace)

    def begin_task(self, task: Task) -> None:
        """Open the task."""
        self.require_task(task)
        self._projection, self._trains_head_alone, self._standard = None, False, None
        self.open_task(task, self.setup.generator("head", task.name))

    def open_task(self, task: Task, generator: torch.Generator) -> None:
        """Add the task to the network, drawing from a generator."""
        self.network.add_task(task.name, task.num_classes, generator=generator)

    def optimizers(self) -> Iterable[torch.optim.Optimizer]:
        """Return the optimizers that the network keeps from frozen entries."""
        return self.network.protection.hooks.optimizers()

    def give_up(self, task: str) -> None:
        """Unlearn a task, whatever it has done to the weights; what it alone used is drawn anew with the run's seed."""
        if task not in self.network.task_names:
            return
        self.train_mode(False)
        with suppress(GuaranteeError):
            self.network.restore()
        self.network.forget(task, generator=self.setup.generator("forget", task))

    def loss(self, batch: Batch) -> Loss:
        """Return the task's loss and what the masks cost, as long as these are learned."""
        self.network.anneal(batch.progress)
        loss, strength = self.task_loss(batch), 0.0 if self._trains_head_alone else self.strength()
        return loss.plus(strength * self.network.regularization()) if strength else loss

    def task_loss(self, batch: Batch) -> Loss:
        """Return the loss of the task alone: contrast, or in training that of classes and turns, or that of answers."""
        task = batch.tasks[0]
        learns = self.network.training or (self._trains_head_alone and torch.is_grad_enabled())
        in_turns = self.turns and learns
        if not (in_turns or self._projection is not None or self._trains_head_alone):
            return Loss.of(self.predict(batch.x, task), batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._trains_head_alone):
            features = self.network.features(batch.x, task)
        state = self.network.tasks.named(task)
        if self._standard is not None:
            features = self._standard(features)
        if self._projection is not None:
            return Loss(contrast_of_turns(self._projection, features, batch.y), state.classify(features.detach()))
        return turned_loss(state.linear_head, features, batch) if in_turns else Loss.of(state.classify(features), batch)

    def phases(self, epochs: int) -> Sequence[int]:
        """Return the epochs of each part in which the mask is learned, and, after contrast, those of the head."""
        contrast = contrast_epochs(self.contrastive, epochs)
        masks = self.mask_phases(contrast or epochs)
        self._head_phase = len(masks) if contrast else None
        return (*masks, epochs - contrast) if contrast else masks

    def mask_phases(self, epochs: int) -> Sequence[int]:
        """Return the epochs of each part of a task's training in which the mask is learned, or settled."""
        return (epochs,)

    def begin_phase(self, index: int) -> None:
        """Get ready for a part: of the mask, for which contrast needs a projection, or of the head alone."""
        if self.begins_head(index):
            self._train_head_alone()
            return
        if index == 0 and self._head_phase is not None:
            self._make_projection()
        self.begin_mask_phase(index)

    def begin_mask_phase(self, index: int) -> None:
        """Get ready for a part in which the mask is learned, or settled."""

    def begin_epoch(self, epoch: int, epochs: int, samples: Batch) -> EpochPlan:
        """Measure how features are to be standardised before the head alone is trained on them."""
        if self._trains_head_alone and self._standard is None:
            some = samples.part(slice(STANDARDISED_ON), samples.progress)
            self.train_mode(False)
            with torch.no_grad():
                features = self.network.features(some.x, samples.tasks[0])
            self._standard = Standard.of(features, QuarterTurns.turns if self.turns else 1)
        return super().begin_epoch(epoch, epochs, samples)

    def end_phase(self, index: int, reached: Schedule) -> None:
        """Give the head that was trained alone weights for the features as they are."""
        task = self.network.task_in_training
        if self._standard is not None and task is not None:
            self._standard.fold_into(self.network.tasks.named(task).linear_head)
            self._standard = None

    def trains_head_after(self, index: int) -> bool:
        """Return whether a part of the head alone follows a part of the training."""
        return self._head_phase is not None and index < self._head_phase

    def begins_head(self, index: int) -> bool:
        """Return whether a part trains the head alone."""
        return index == self._head_phase

    @property
    def trains_head_alone(self) -> bool:
        """True in the part of a training that follows contrast."""
        return self._trains_head_alone

    def end_task(self, task: Task) -> None:
        """Consolidate the task, unless an interrupt came just behind that."""
        self._projection, self._trains_head_alone = None, False
        if not self.network.tasks.named(task.name).consolidated:
            self.network.consolidate(task.name)

    def predict(self, x: Inputs, task: str) -> Tensor:
        """Return logits under the task's mask."""
        logits: Tensor = self.network(x, task)
        return logits

    def trained_modules(self) -> Sequence[nn.Module]:
        """Return the whole network, and the projection that contrast looks at."""
        return [self.network, *([] if self._projection is None else [self._projection.module])]

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the backbone's shared parameters and the task's own, or the head's alone after contrast."""
        task = self.network.task_in_training
        assert task is not None
        if self._trains_head_alone:
            return list(self.network.tasks.named(task).head.parameters())
        projection = [] if self._projection is None else self._projection.module.parameters()
        return [*self.network.task_parameters(task), *projection]

    def trained_buffers(self) -> list[Tensor]:
        """Return the backbone's and the task's own: those of consolidated tasks do not move, however many there are."""
        task = self.network.task_in_training
        assert task is not None
        return self.network.task_buffers(task)

    def validating(self) -> AbstractContextManager[None]:
        """Return a block in which the part of the network that the task uses computes alone."""
        return self.network.validating()

    def train_mode(self, mode: bool) -> None:
        """Switch between training and evaluation mode; a head that is trained alone sees features as they will be."""
        super().train_mode(mode and not self._trains_head_alone)

    def training_state(self) -> Mapping[str, Tensor]:
        """Return what is trained, and how features are standardised if it is the head alone."""
        known = self._standard
        alone = {} if known is None else {HEAD_MEAN: known.mean, HEAD_SCALE: known.scale}
        return {**super().training_state(), **alone}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`training_state` gave."""
        if HEAD_MEAN in state:
            self._train_head_alone()
            self._standard = Standard(*(state[name].to(self.setup.device) for name in (HEAD_MEAN, HEAD_SCALE)))
        elif any(name.startswith("1.") for name in state):
            self._make_projection()
        super().load_training_state(
            {name: value for name, value in state.items() if name not in (HEAD_MEAN, HEAD_SCALE)}
        )

    def _make_projection(self) -> None:
        task = self.network.task_in_training
        assert task is not None
        head = self.network.tasks.named(task).linear_head
        turns = QuarterTurns.turns if self.turns else 1
        projection = Projection.of(head.in_features, turns, self.setup.generator("projection", task))
        projection.module.to(head.weight)  # the device and the type of features
        self._projection, self._trains_head_alone = projection, False

    def _train_head_alone(self) -> None:
        task = self.network.task_in_training
        assert task is not None
        if not self.network.is_settled(task):
            self.network.settle(task)
        self._projection, self._trains_head_alone = None, True

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
