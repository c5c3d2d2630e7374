"""The protocol of a method: one way to learn tasks one after the other."""

from __future__ import annotations

import abc
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from hatrack.errors import InputError
from hatrack.objectives import Classification, MultiLabel, Objective, Regression, joined_loss
from hatrack.protection.capacity import Capacity
from hatrack.state.turns import changing_all
from hatrack.state.undo import Snapshot
from hatrack.storage.checkpoint import part_of
from hatrack.streams import Task, seeded_generator
from hatrack.support.heads import linear_head
from hatrack.support.inputs import Inputs
from hatrack.support.interface import PLAIN, Interface
from hatrack.support.modes import evaluation_mode
from hatrack.support.ranges import require_types, require_usual

__all__ = [
    "Batch",
    "Earlier",
    "EpochPlan",
    "Loss",
    "Method",
    "NoSettings",
    "Pace",
    "ParameterGroup",
    "Schedule",
    "Setup",
    "joined",
]


def joined(parts: Mapping[Any, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of several parts by ``part.name``, which ``part_of`` in ``storage.checkpoint`` takes apart."""
    return {f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()}


@dataclass(frozen=True)
class NoSettings:
    """Settings of a method that has none."""


@dataclass(frozen=True)
class Setup:
    """Start of a method, which is equal for all methods of an experiment and seed.

    Attributes:
        build_backbone: makes the backbone with the seed's initial weights, afresh at every call.
        input_shape: shape of one sample; empty where there is an ``example``.
        seed: the run's seed, from which further randomness is derived.
        device: where to train.
        build_narrow: makes a copy of the backbone whose layers have a share of its units, above 0 and up to 1, with the
            initial weights of a seed; None where nobody knows how, as for a network of the user's own.
        classes: number of classes of every task to come, for methods whose parts are sized by how many they will be;
            empty where it is not known.
        example: a batch of samples where they are more than one tensor of real numbers; None elsewhere.
        interface: how the backbone is called with a batch, and what of its result the heads read.
    """

    build_backbone: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    seed: int
    device: torch.device
    build_narrow: Callable[[float, int], nn.Module] | None = None
    classes: tuple[int, ...] = ()
    example: Inputs = None
    interface: Interface = PLAIN

    @property
    def example_input(self) -> Inputs:
        """Batch of samples as the backbone expects them: the example, or one sample of zeros."""
        return torch.zeros(1, *self.input_shape) if self.example is None else self.example

    @property
    def is_plain(self) -> bool:
        """Return whether samples are one tensor of real numbers, which the backbone maps to features ``(N, F)``."""
        return self.example is None and self.interface == PLAIN

    def generator(self, *purpose: str | int) -> torch.Generator:
        """Make the generator, on the CPU, that draws for a purpose such as ``("head", task)`` with the run's seed."""
        return seeded_generator(self.seed, *purpose)

    def head(self, features: int, task: str, num_classes: int) -> nn.Linear:
        """Make a task's linear head on the CPU, with the initial weights that it has in every method."""
        return linear_head(features, num_classes, self.generator("head", task))

    def features_of(self, backbone: nn.Module) -> int:
        """Return how many features a backbone on the CPU maps a sample to; its mode stays as it is.

        The samples are one tensor, as :attr:`is_plain` says; nested ones have no shape to try it with.
        """
        with torch.no_grad(), evaluation_mode(backbone):
            features: int = backbone(torch.zeros(1, *self.input_shape)).shape[1]
        return features


@dataclass(frozen=True)
class Batch:
    """Samples to learn from.

    Attributes:
        x: samples ``(N, *input_shape)``, or nested tensors.
        y: their targets: classes within their task, int64 ``(N,)``, or those of another objective; for several tasks
            of different kinds as from :func:`hatrack.objectives.joined_targets`.
        tasks: names of the tasks that the samples may come from.
        task_of: for every sample the index of its task in ``tasks``, int64 ``(N,)``.
        progress: position within the epoch, 0 (first batch) to 1 (last); a 0-dimensional tensor on the samples' device
            in steps that are captured.
        rows: for every sample its place among all the training samples, int64 ``(N,)``; None outside of training steps.
        objectives: what the targets of each of ``tasks`` mean; empty where all are classes without weights.
        interface: how the backbone takes the samples.
    """

    x: Inputs
    y: Tensor
    tasks: tuple[str, ...]
    task_of: Tensor
    progress: float | Tensor
    rows: Tensor | None = None
    objectives: tuple[Objective, ...] = ()
    interface: Interface = PLAIN

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.y)

    def part(self, rows: Tensor | slice, progress: float | Tensor) -> Batch:
        """Return some of the samples, for a position within the epoch; only a tensor of rows is remembered."""
        known = rows if isinstance(rows, Tensor) else None
        x, y, task_of = self.interface.take(self.x, rows), self.y[rows], self.task_of[rows]
        return replace(self, x=x, y=y, task_of=task_of, progress=progress, rows=known)


@dataclass(frozen=True)
class EpochPlan:
    """Plan of an epoch.

    Attributes:
        rows: places of the training samples to learn from, int64 ``(N,)``, at least one; None for all of them.
        lr_factor: what the schedule's learning rate is multiplied by. While it is not 1, an epoch without a better
            validation loss does not count towards a lower learning rate.
    """

    rows: Tensor | None = None
    lr_factor: float = 1.0


class Loss(NamedTuple):
    """A loss and where it came from.

    Attributes:
        value: a scalar to minimise.
        logits: outputs, ``(N, outputs)``.
        penalty: the part of ``value`` that was added to the loss of the answers, a scalar; None where nothing was.
    """

    value: Tensor
    logits: Tensor
    penalty: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, batch: Batch) -> Loss:
        """Return the mean loss of a batch's outputs ``(N, most outputs)``, by the objectives of its tasks.

        For several tasks, logits of classes are −inf behind a task's last class.
        """
        objectives = batch.objectives or (ANY_CLASSES,) * len(batch.tasks)
        return cls(joined_loss(objectives, logits, batch.y, batch.task_of), logits)

    def plus(self, penalty: Tensor) -> Loss:
        """Return the loss with a scalar added to it."""
        added = penalty if self.penalty is None else self.penalty + penalty
        return Loss(self.value + penalty, self.logits, added)


ANY_CLASSES = Classification(())
"""Objective of classes whose names and weights do not matter: its loss is the cross-entropy."""

EVERY_KIND: tuple[type[Objective], ...] = (Classification, Regression, MultiLabel)
"""All kinds of tasks."""


class Schedule(NamedTuple):
    """Position in the learning-rate schedule of a part of a training.

    Attributes:
        lr: the learning rate; along a cosine the one to begin with.
        patience: how many more epochs without a better validation loss until it falls.
        best_loss: the lowest validation loss, which the next one is compared with; infinite before the first.
    """

    lr: float
    patience: int
    best_loss: float = math.inf


class Pace(NamedTuple):
    """Pace at which a task is going to be learned.

    Attributes:
        lr: learning rate to begin with.
        batches: number of batches of an epoch of all training samples.
        lr_left: function from the share of all steps that are made to the share of ``lr`` that is left then, both 0 to
            1; always 1 where the learning rate falls on plateaus alone, which nobody knows beforehand.
        epochs: largest number of epochs; 0 if it is not known.
        adaptive: whether the optimizer's steps are of the learning rate's size, whatever the size of gradients, as
            those of Adam.
    """

    lr: float
    batches: int
    lr_left: Callable[[float], float] = lambda progress: 1.0
    epochs: int = 0
    adaptive: bool = False

    def mean_lr(self, begin: float, end: float) -> float:
        """Return the mean learning rate from one share of all steps to another, 0 ≤ begin < end ≤ 1; of 64 places."""
        places = (begin + (index + 0.5) / 64 * (end - begin) for index in range(64))
        return self.lr * statistics.fmean(map(self.lr_left, places))


class ParameterGroup(NamedTuple):
    """Parameters that learn at one rate.

    Attributes:
        parameters: the parameters.
        lr_factor: what the schedule's learning rate is multiplied by.
        decays: whether the training's weight decay acts on them.
    """

    parameters: list[nn.Parameter]
    lr_factor: float = 1.0
    decays: bool = True


@dataclass(frozen=True)
class Earlier:
    """Defaults of an earlier version, by which a run that it made is verified, made again and gone on with.

    Attributes:
        settings: earlier defaults of the method's own settings, by name, as far as they differ from those of now; for a
            setting that did not exist, the value that does what was done then.
        training: what :attr:`Method.training` was; None if it was the same.
        before: defaults of a version before that one; None if there were no others.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] | None = None
    before: Earlier | None = None

    def versions(self) -> tuple[Earlier, ...]:
        """Return the defaults of all earlier versions, the newest first."""
        return (self, *(() if self.before is None else self.before.versions()))


class Method(abc.ABC):
    """One way to learn tasks one after the other; a subclass is one small file and one line in the registry.

    For every task the trainer calls :meth:`begin_task`, then :meth:`loss` for batches of :meth:`training_tasks`, then
    :meth:`end_task`; between tasks :meth:`predict`. A method that trains in several parts says so in :meth:`phases`.

    Args:
        setup: what all methods start from.
        settings: an instance of :attr:`settings_type`.

    Raises:
        InputError: the setup has nested samples or a choice of features, and the method does not take them.

    Attributes:
        name: what the command line calls it.
        description: one line for a list.
        source: the paper that it comes from.
        settings_type: a frozen dataclass of the method's own settings, with its paper's values as defaults.
        trains: False for a method without anything to train.
        training: settings of the training that the source has other values for than experiments, such as its optimizer;
            of the baselines of the HAT paper the norms that its authors' code clips gradients to.
        objectives: kinds of tasks that it can learn; by default all.
        takes_nested: whether samples may be nested tensors, and features a part of the backbone's result.
        grid: for settings by name, the values that the source of the defaults chose from; empty where it had no choice.
        earlier: defaults of earlier versions; None where they were the same.
        capturable: whether all steps of an epoch do the same with other batches, so that a CUDA graph can repeat one of
            them: :meth:`loss`, :meth:`before_step` and :meth:`after_step` read no value of a tensor, keep tensors for
            later steps only by writing into them, and count nothing.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    source: ClassVar[str]
    settings_type: ClassVar[type] = NoSettings
    trains: ClassVar[bool] = True
    training: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = MappingProxyType({})
    objectives: ClassVar[tuple[type[Objective], ...]] = EVERY_KIND
    takes_nested: ClassVar[bool] = False
    earlier: ClassVar[Earlier | None] = None
    capturable: ClassVar[bool] = False

    def __init__(self, setup: Setup, settings: Any) -> None:
        if not (setup.is_plain or self.takes_nested):
            raise InputError(
                f"{self.name} takes samples of one tensor of real numbers and backbones that map them to features "
                "(N, F); hat and the methods of its kind take nested inputs and `features`"
            )
        if is_dataclass(settings):
            require_types(settings)
            require_usual(settings)
        self.setup = setup
        self.settings = settings

    @property
    def is_capturable(self) -> bool:
        """True if steps of this method are :attr:`capturable` with its settings, too."""
        return self.capturable

    @classmethod
    def learns(cls, objective: Objective) -> bool:
        """Return whether the method can learn tasks of a kind."""
        return isinstance(objective, cls.objectives)

    def require_task(self, task: Task) -> None:  # noqa: B027 - settings seldom matter
        """Check that a task of a kind that the method learns goes with its settings.

        Raises:
            InputError: it does not.
        """

    @abc.abstractmethod
    def begin_task(self, task: Task) -> None:
        """Get ready to learn a task that was never seen before."""

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Undo :meth:`begin_task`, and all else that makes no step, after any error while this lasts.

        Nothing is copied: attributes of the method, and structure and tensors of its modules, are recorded by
        reference. Containers of other kinds that a method fills stay filled until :meth:`give_up`, which empties them.
        Threads that ask a network wait while it is restored.
        """
        before = dict(vars(self))
        parts = [part for part in before.values() if isinstance(part, nn.Module)]
        snapshots = [Snapshot(part, self.optimizers()) for part in parts]
        try:
            yield
        except BaseException:
            with changing_all(parts):
                for name in vars(self).keys() - before.keys():
                    delattr(self, name)
                vars(self).update(before)
                for snapshot in snapshots:
                    snapshot.restore()
            raise

    def optimizers(self) -> Iterable[torch.optim.Optimizer]:
        """Return optimizers of earlier tasks that beginning a task may change, as widening does."""
        return ()

    def give_up(self, task: str) -> None:  # noqa: B027 - a method may keep nothing of a task
        """Remove the task in training, and all that it owns, so that one of its name, or another, can begin.

        Nothing happens if there is none. What tasks share stays as the task left it, where no copy of it is kept: so
        do the weights of methods with a head per task, whose old tasks may answer otherwise from then on. Methods that
        promise that old tasks answer as they did keep that promise.

        By default nothing is removed. That is right only where :meth:`begin_task` overwrites all that was kept of a
        task of the same name: a method that keeps tasks in order, or by number, removes the task here.
        """

    @abc.abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """Return the loss of a batch, in the mode that :meth:`train_mode` set; also what validation looks at.

        Args:
            batch: samples of the task in training, or of those of :meth:`training_tasks`.

        Returns:
            The loss, a scalar with a graph, beside the logits ``(N, most outputs)`` and what was added to their loss.
        """

    def end_task(self, task: Task) -> None:  # noqa: B027 - some methods are done then
        """Do what follows training: consolidate, measure importance, merge.

        It is called again if an error cut it off. Masked methods do then what is left, and those that add up importance
        or fill a memory begin anew (:func:`hatrack.methods.at_once.at_once`).

        Args:
            task: the task that was begun last; its training samples may be looked at.

        Raises:
            GuaranteeError: what earlier tasks rely on has moved since, of methods that promise that it does not.
        """

    @abc.abstractmethod
    def predict(self, x: Inputs, task: str) -> Tensor:
        """Return logits of samples for a learned task, in evaluation mode.

        Of a task in training most methods answer with what it has learned so far; those that make its network at the
        end of the task, as IMM does, refuse.

        Args:
            x: samples ``(N, *input_shape)``.
            task: name of the task.

        Returns:
            ``(N, classes)``, or ``(N, outputs)`` of a task of another kind.

        Raises:
            InputError: there is no such task.
        """

    @abc.abstractmethod
    def trained_modules(self) -> Sequence[nn.Module]:
        """Return the modules in training: their mode is switched, and their best state is kept."""

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizer of this task gets: all of the modules in training."""
        return [parameter for module in self.trained_modules() for parameter in module.parameters()]

    def trained_buffers(self) -> list[Tensor]:
        """Return the buffers that training may change, such as statistics: those of all modules in training."""
        return [buffer for module in self.trained_modules() for buffer in module.buffers()]

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Return the trained parameters by the rate at which they learn; here all learn at the schedule's."""
        return [ParameterGroup(self.trained_parameters())]

    @abc.abstractmethod
    def save(self, path: Path) -> None:
        """Write all that :meth:`predict` and further tasks need to one file, atomically."""

    @abc.abstractmethod
    def load(self, path: Path) -> tuple[str, ...]:
        """Read a file that :meth:`save` wrote, into a method that was just made.

        Returns:
            Names of the tasks learned so far, in order.
        """

    def training_tasks(self, seen: Sequence[Task]) -> Sequence[Task]:
        """Return the tasks to draw samples from, of those seen so far; usually the last one alone."""
        return seen[-1:]

    def phases(self, epochs: int) -> Sequence[int]:
        """Return the epochs of each part of a task's training: one part, unless a method prunes or selects in between.

        Every part has its own optimizer and, unless :meth:`schedule` says otherwise, its own learning-rate schedule,
        and ends with the weights of its best epoch.

        Args:
            epochs: largest number of epochs that the task may take.
        """
        return (epochs,)

    def begin_phase(self, index: int) -> None:  # noqa: B027 - most methods have one phase
        """Get ready for a part of the training; the first has index 0."""

    def schedule(self, index: int, fresh: Schedule) -> Schedule:
        """Return the schedule that a part of the training begins with, just after :meth:`begin_phase`.

        A part makes no epoch if its learning rate has fallen below the least one before it begins.

        Args:
            index: number of the part, from 0.
            fresh: the beginning of the schedule, which is where parts usually begin.
        """
        return fresh

    def continues(self, index: int) -> bool:
        """Return whether a part goes on along the cosine of the part before; by default each has one of its own."""
        return False

    def begins_learned(self, index: int, epochs: int) -> bool:
        """Return whether a part begins with a network of the task that is kept if no epoch of the part is better.

        By default only what an epoch leaves is chosen from: many parts begin with a network that is not what they are
        to end with, such as one whose units have just been drawn.

        Args:
            index: number of the part, from 0.
            epochs: largest number of epochs of the part.
        """
        return False

    def goes_on(self, index: int, left: int, reached: Schedule, least: float) -> bool:
        """Return whether a part of the training that is at its end will be followed by another epoch.

        Args:
            index: number of the part, from 0.
            left: number of parts that follow it, 1 or more.
            reached: where its schedule ends.
            least: the learning rate below which parts make no epoch.
        """
        return True

    def end_phase(self, index: int, reached: Schedule) -> None:  # noqa: B027
        """Do what follows a part of the training, with its best validation loss and where its schedule ended."""

    def note_pace(self, pace: Pace) -> None:  # noqa: B027 - what few methods go by
        """Take note of how fast the task that has begun is going to be learned, before its first part.

        Whoever does not know it, as where samples arrive one after the other, leaves this out.
        """

    def begin_epoch(self, epoch: int, epochs: int, samples: Batch) -> EpochPlan:
        """Get ready for an epoch, and say what it is to be like: a curriculum, or a warm-up of the learning rate.

        Args:
            epoch: counted from 1 within the part of the training.
            epochs: largest number of epochs of the part.
            samples: all the training samples.
        """
        return EpochPlan()

    def note_loss(self, loss: float) -> None:  # noqa: B027 - what few methods go by
        """Take note of the loss of an epoch, after its last step.

        Args:
            loss: mean over the epoch's steps of the loss of the answers, without :attr:`Loss.penalty`.
        """

    def training_state(self) -> Mapping[str, Tensor]:
        """Return all that the rest of a task's training depends on, between two epochs; here what is trained alone.

        A method that gathers more while it trains, such as a memory or a path, or draws random numbers from one
        generator over many epochs, adds that. The optimizer's own state is not a method's business.
        """
        state = joined(dict(enumerate(module.state_dict() for module in self.trained_modules())))
        return {name: value for name, value in state.items() if not name.endswith("_extra_state")}  # never trained

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`training_state` gave, after :meth:`begin_task`.

        It stands for every call since then: :meth:`begin_phase` is not called again for the part that had begun.
        """
        for index, module in enumerate(self.trained_modules()):
            module.load_state_dict({**module.state_dict(), **part_of(state, f"{index}.")})

    def protect(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Have :meth:`before_step` and :meth:`after_step` called around the optimizer's steps; return the optimizer."""
        optimizer.register_step_pre_hook(lambda *_: self.before_step())
        optimizer.register_step_post_hook(lambda *_: self.after_step())
        return optimizer

    def before_step(self) -> None:  # noqa: B027 - most methods leave gradients alone
        """Change or read the gradients that the optimizer is about to use."""

    def after_step(self) -> None:  # noqa: B027
        """Look at what a step of the optimizer has changed."""

    def train_mode(self, mode: bool) -> None:
        """Switch between training and evaluation mode."""
        for module in self.trained_modules():
            module.train(mode)

    def validating(self) -> AbstractContextManager[None]:
        """Return a block in which the losses of validation are asked for, which a method may compute faster."""
        return nullcontext()

    def foresight(self) -> str:
        """Say what was decided by how many tasks are to come, before the first; empty for methods that do not ask.

        A run goes on with further tasks only if a run that had had them from the start would have decided likewise.
        """
        return ""

    def capacity(self) -> Capacity | None:
        """Return the share of the network in use, for methods that know it."""
        return None

    def usage(self) -> float | None:
        """Return the share of units, or of weights where masks are about weights, in use while a task is in training.

        The task in training counts with what consolidating it now would give. None for methods without masks.
        """
        return None

    def remembered(self) -> int | None:
        """Return the number of earlier tasks' samples that are kept to learn from again, for methods that keep some."""
        return None

    def reuse(self) -> Tensor | None:
        """Return the share of the weights of task i that task j uses too, ``(T, T)``, for methods that know it."""
        return None
