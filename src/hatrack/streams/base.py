"""Tasks that come one after the other: a split of samples, a task of three splits, a stream of tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch

from hatrack.errors import InputError
from hatrack.objectives import (
    ClassWeights,
    MetricName,
    Objective,
    TargetKind,
    as_targets,
    check_targets,
    kind_of,
    member_named,
    names_as_text,
    objective_of,
    require_different,
    strata,
)
from hatrack.streams.files_read import FilesRead
from hatrack.streams.sampling import EvaluationPart, StreamOptions, balanced_rows, stratified_split
from hatrack.streams.seeding import seeded_generator
from hatrack.streams.transforms import Scaling, Transform, scaling_of
from hatrack.support.inputs import Inputs, TensorKind, map_tensors, tensors_in
from hatrack.support.interface import PLAIN, Interface

__all__ = ["Split", "Task", "TaskStream", "check_name", "sampled_task"]

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, eq=False)
class Split:
    """A labelled part of a set of samples, made into floats only when it is loaded.

    Many splits may refer to one source; ten permutations of a data set hold its images once.

    Attributes:
        source: samples ``(M, ...)``, bytes or floats, or nested tensors; shared, so it must not be changed.
        rows: positions of the samples that belong to the split, int64 ``(N,)`` in 0..M-1, N at least 1.
        labels: their targets: classes within the task, int64 ``(N,)``, 0 and up; columns of numbers, float64
            ``(N, K)``; or several labels, bool ``(N, L)``.
        transform: applied to the samples on loading; None leaves them as they are.
        interface: how a backbone takes the samples, which are nested tensors or keep their type then; None for one
            tensor of samples, which becomes float32 on loading.

    Raises:
        InputError: rows and labels do not fit together or the source.
    """

    source: Inputs
    rows: torch.Tensor
    labels: torch.Tensor
    transform: Transform | None = None
    interface: Interface | None = None

    def __post_init__(self) -> None:
        if self.rows.dtype != torch.int64 or self.rows.dim() != 1:
            raise InputError(f"the rows of a split must be int64 (N,), not {self.rows.dtype} {tuple(self.rows.shape)}")
        check_targets(self.labels)
        if len(self.rows) != len(self.labels) or not len(self.rows):
            raise InputError(
                f"a split needs as many labels as rows, at least 1, not {len(self.labels)} and {len(self.rows)}"
            )
        count = (self.interface or PLAIN).samples(self.source)
        if self.rows.min() < 0 or self.rows.max() >= count:
            raise InputError(f"the rows of a split must lie within its source of {count} samples")

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.rows)

    @property
    def shape(self) -> Any:
        """Shape of one sample as loaded, a tuple of whole numbers; of nested tensors, the same structure of shapes."""
        if self.interface is not None:
            axis = self.interface.batch_axis
            return map_tensors(lambda tensor: TensorKind.of(tensor, axis).shape, self.source)
        return tuple(self._transformed(self.source[:1]).shape[1:])

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Smallest and largest value of the samples before the transform; None where they are no single tensor."""
        if self.interface is not None or not isinstance(self.source, torch.Tensor):
            return None
        parts = [self.source.index_select(0, rows) for rows in torch.split(self.rows, 4096)]
        return min(part.min().item() for part in parts), max(part.max().item() for part in parts)

    @property
    def scaling(self) -> Scaling:
        """Way in which the transform scales the samples."""
        return scaling_of(self.transform)

    def load(self) -> tuple[Inputs, torch.Tensor]:
        """Return the samples, float32 ``(N, *shape)``, and their targets, such as classes, int64 ``(N,)``.

        All are new, contiguous tensors that the caller may change. Where the split has an ``interface``, samples have
        the structure and the types of its source.
        """
        if self.interface is not None:
            taken = self._transformed(self.interface.take(self.source, self.rows))
            return map_tensors(lambda tensor: tensor.contiguous(), taken), self.labels.clone()
        x = self._transformed(self.source.index_select(0, self.rows))
        return x.to(torch.float32).contiguous(), self.labels.clone()

    def divided(self, validation: float, generator: torch.Generator) -> tuple[Split, Split]:
        """Divide the split into one for training and one for validation, stratified by class.

        What counts as classes of numbers and of several labels says :func:`hatrack.objectives.strata`.

        Args:
            validation: share to hold out, at least 0 and below 1. With 0 both are this very split: the training
                samples then serve as validation samples.
            generator: draws which samples are held out.

        Raises:
            InputError: ``validation`` is out of range, or the split is too small to hold out anything.
        """
        if validation == 0:
            return self, self
        train, valid = stratified_split(strata(self.labels), validation, generator)
        return self.part(train), self.part(valid)

    def part(self, chosen: torch.Tensor) -> Split:
        """Return the split of some of its samples, by their positions in it, int64 ``(N,)``."""
        return Split(self.source, self.rows[chosen], self.labels[chosen], self.transform, self.interface)

    def _transformed(self, x: Inputs) -> Inputs:
        return x if self.transform is None else self.transform(x)


@dataclass(frozen=True, eq=False)
class Task:
    """One task: samples, and an objective that says what their targets mean.

    Attributes:
        name: letters, digits, ``_`` and ``-``.
        objective: its loss, its metric, and the names of its classes, labels or columns.
        train: samples that the task is learned from.
        valid: samples that decide when to stop; may be the training split itself.
        test: samples that the metric is measured on.
        files: the files that it was read from; None where it was not, or where the data set has no files of its own.
        test_seen: number of test samples that are identical with samples that a task trains on, by the name of that
            task, which may be this one; None where nobody compared them.
        scaled_over: number of samples that mean and deviation were computed of, by which its samples and numbers to
            predict are scaled; None where they were not computed, as with published constants.
        test_drawn: share of its samples that the seed drew to test on; None where the data say which these are.

    Raises:
        InputError: the name is unusable, two outputs have one name, targets do not fit the objective, or the splits
            differ in shape.
    """

    name: str
    objective: Objective
    train: Split
    valid: Split
    test: Split
    files: FilesRead | None = None
    test_seen: Mapping[str, int] | None = None
    scaled_over: int | None = None
    test_drawn: float | None = None

    def __post_init__(self) -> None:
        check_name("task", self.name)
        try:
            require_different(self.objective.names)
        except InputError as error:
            raise InputError(f"task {self.name}: {error}") from error
        for part, split in (("training", self.train), ("validation", self.valid), ("test", self.test)):
            try:
                self.objective.check(split.labels, part)
            except InputError as error:
                raise InputError(f"task {self.name}: {error}") from error
            if split.shape != self.train.shape:
                raise InputError(
                    f"task {self.name}: {part} samples are {split.shape}, training ones {self.train.shape}"
                )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs: of classes, where label ``i`` means ``classes[i]``, of labels, or of columns."""
        return self.objective.names

    @property
    def num_classes(self) -> int:
        """Number of outputs: of classes, labels or columns."""
        return self.objective.outputs

    @property
    def input_shape(self) -> Any:
        """Shape of one sample as loaded; see :attr:`Split.shape`."""
        return self.train.shape

    @classmethod
    def from_tensors(
        cls,
        name: str,
        x_train: Inputs,
        y_train: torch.Tensor,
        x_test: Inputs,
        y_test: torch.Tensor,
        *,
        classes: Sequence[str] | None = None,
        validation: float = 0.0,
        generator: torch.Generator | None = None,
        transform: Transform | None = None,
        target: TargetKind | str | None = None,
        metric: MetricName | str | None = None,
        class_weights: ClassWeights | None = None,
        interface: Interface | None = None,
    ) -> Task:
        """Make a task of a user's own tensors.

        The samples are used as they are, as float32; scale them beforehand or give a ``transform``. They are not
        copied, so they must not be changed afterwards.

        Args:
            name: letters, digits, ``_`` and ``-``.
            x_train: training samples ``(N, ...)``, real and finite.
            y_train: their classes ``(N,)``, integers 0..C-1; or numbers to predict, floats ``(N,)`` or ``(N, K)``; or
                several labels, truth values or zeros and ones ``(N, L)``.
            x_test: test samples ``(M, ...)`` of the same shape.
            y_test: the same of the test samples.
            classes: the C names of the classes. Without them C is told by the training labels, of which each of
                0..C-1 must then occur, and the names are ``"0"``, ``"1"``, ... Names of columns or labels likewise.
            validation: share of the training samples to hold out for validation, at least 0 and below 1, stratified
                by class. With 0 the training samples serve as validation samples.
            generator: draws the validation samples. Without it the draw depends on ``name`` alone.
            transform: applied to the samples on loading.
            target: what the targets are; None tells it by their type and shape.
            metric: the metric; None takes accuracy, R² or mean average precision.
            class_weights: weights of the classes or labels in the loss; None for equal ones.
            interface: how a backbone takes samples that are nested tensors, or that are to keep their type; None for
                one tensor of samples, or nested ones with samples along their first axes.

        Raises:
            InputError: the tensors are not as described.
        """
        check_name("task", name)
        kind, chosen = member_named(TargetKind, target, "target"), member_named(MetricName, metric, "metric")
        classes = None if classes is None else names_as_text(classes)
        interface = PLAIN if interface is None and not isinstance(x_train, torch.Tensor) else interface
        x_train, y_train = _checked_samples(name, "training", x_train, y_train, kind, interface)
        x_test, y_test = _checked_samples(name, "test", x_test, y_test, kind_of(y_train), interface)
        try:
            objective = objective_of(y_train, classes, None if chosen is None else chosen.metric)
            objective.check(y_train, "training")
            objective = objective if class_weights is None else class_weights.of(objective, y_train)
        except InputError as error:
            raise InputError(f"task {name}: {error}") from error
        everything = Split(x_train, torch.arange(len(y_train)), y_train, transform, interface)
        train, valid = _divided(name, everything, validation, generator or seeded_generator(0, "validation", name))
        test = Split(x_test, torch.arange(len(y_test)), y_test, transform, interface)
        return cls(name, objective, train, valid, test)


def sampled_task(
    name: str, objective: Objective, train: Split, test: Split, options: StreamOptions, *, index: int
) -> Task:
    """Make a task, taking of its training samples what the options say.

    Args:
        name: its name.
        objective: what its targets mean.
        train: all its training samples.
        test: its test samples, which stay complete, unless the validation samples stand for them.
        options: the seed, and which samples to take.
        index: position of the task in its stream; tasks at different positions draw their samples independently.

    Raises:
        InputError: an option is out of range, or as for :class:`Task`.
    """
    if options.limit is not None:
        rows = balanced_rows(strata(train.labels), options.limit, seeded_generator(options.seed, "limit", index))
        train = train.part(rows)
    if options.class_weights is not None:
        try:
            objective = options.class_weights.of(objective, train.labels)
        except InputError as error:
            raise InputError(f"task {name}: {error}") from error
    train, valid = _divided(name, train, options.validation, seeded_generator(options.seed, "validation", index))
    if options.tested_on is EvaluationPart.VALIDATION:
        if valid is train:
            raise InputError(
                "without validation samples (`validation=0`) a test on these would be one on the training samples; "
                "hold some out, or test on the test samples (`tested_on=test`)"
            )
        test = valid
    return Task(name, objective, train, valid, test)


def _divided(name: str, split: Split, validation: float, generator: torch.Generator) -> tuple[Split, Split]:
    """Divide a task's split, whose name a fault is told with."""
    try:
        return split.divided(validation, generator)
    except InputError as error:
        raise InputError(f"task {name}: {error}") from error


@dataclass(frozen=True, eq=False)
class TaskStream(Sequence[Task]):
    """Tasks in the order in which they are to be learned.

    Attributes:
        name: letters, digits, ``_`` and ``-``.
        tasks: the tasks, at least one, with different names and the same shape of samples.
        origins: origin of the data, one line for each data set, for results to record; empty if unknown.
        notes: sentences for people about what was decided by looking at the data.

    Raises:
        InputError: the name is unusable, there is no task, two tasks share a name, or their shapes differ.
    """

    name: str
    tasks: tuple[Task, ...]
    origins: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("stream", self.name)
        object.__setattr__(self, "tasks", tuple(self.tasks))  # a list is welcome, but must not stay one
        if not self.tasks:
            raise InputError(f"stream {self.name}: needs at least one task")
        seen: set[str] = set()
        for task in self.tasks:
            if task.name in seen:
                raise InputError(f"stream {self.name}: two tasks are named {task.name!r}; give each its own name")
            if task.input_shape != self.input_shape:
                raise InputError(
                    f"stream {self.name}: samples of {task.name} are {task.input_shape}, "
                    f"those of {self.tasks[0].name} {self.input_shape}; one network needs one shape"
                )
            seen.add(task.name)

    @property
    def input_shape(self) -> Any:
        """Shape of one sample, the same in all tasks; see :attr:`Split.shape`."""
        return self.tasks[0].input_shape

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self.tasks)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Task, ...]: ...
    def __getitem__(self, index: int | slice) -> Task | tuple[Task, ...]:
        """Return one task, or a tuple of tasks."""
        return self.tasks[index]


_NAMED_AFTER = {
    "task": "; of data of your own a task is named after its file or folder, unless a tasks.toml names it "
    "(name = '...' under [[task]])"
}


def check_name(what: str, name: str) -> None:
    """Refuse names that could not be a file name or a column title anywhere."""
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise InputError(
            f"{what} name {name!r}: use letters, digits, '_' and '-' only, letters from a to z"
            f"{_NAMED_AFTER.get(what, '')}"
        )


def _checked_samples(
    task: str, part: str, x: Inputs, y: torch.Tensor, target: TargetKind | None, interface: Interface | None
) -> tuple[Inputs, torch.Tensor]:
    """Return a user's samples and targets on the CPU, the targets as those of an objective, if they are usable."""
    least, way = (2, PLAIN) if interface is None else (0, interface)
    try:
        x = way.accepted(x)
    except InputError as error:
        raise InputError(f"task {task}: {part} samples: {error}") from error
    for tensor in tensors_in(x):
        if tensor.dim() < least or tensor.is_complex() or not tensor.numel():
            raise InputError(
                f"task {task}: {part} samples must be real and (N, ...), none of it 0, not {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
        if not (tensor.to(torch.float32) if interface is None else tensor).isfinite().all():
            raise InputError(f"task {task}: {part} samples hold infinite values or NaN; clean them first")
    count = way.samples(x)
    if y.shape[:1] != (count,):
        raise InputError(f"task {task}: {count} {part} samples need labels of shape ({count},), not {tuple(y.shape)}")
    return map_tensors(lambda tensor: tensor.detach().cpu(), x), as_targets(y, target, f"task {task}: {part} labels")
