"""Streams made of one image data set: by its classes, a few at a time, or by permutations of its pixels.

The same seed gives the same stream, whatever is then done with it. The two kinds are those of the literature on
catastrophic forgetting: I. J. Goodfellow et al., "An empirical investigation of catastrophic forgetting in
gradient-based neural networks", arXiv:1312.6211, 2013 (permutations); F. Zenke, B. Poole, S. Ganguli, "Continual
learning through synaptic intelligence", ICML 2017 (classes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hatrack.data import ImageDataset
from hatrack.errors import InputError
from hatrack.streams.base import Split, Task, TaskStream
from hatrack.streams.sampling import balanced_rows
from hatrack.streams.seeding import seeded_generator
from hatrack.streams.transforms import Chain, Normalise, Permute, Transform

__all__ = ["ClassGroup", "consecutive_groups", "permuted_stream", "split_stream"]


@dataclass(frozen=True)
class ClassGroup:
    """The classes of a data set that make up one task.

    Attributes:
        name: Name of the task.
        classes: Their labels in the data set; the first becomes label 0 of the task, and so on.
    """

    name: str
    classes: tuple[int, ...]


def consecutive_groups(class_names: Sequence[str], size: int) -> tuple[ClassGroup, ...]:
    """Group classes in their order, ``size`` at a time; a last, smaller group takes what is left.

    A group is named after its classes, ``tshirt-trouser``; one of more than three after its first and last,
    ``apple-to-bed``.

    Args:
        class_names: The names of all classes.
        size: Classes per group, at least 1.

    Raises:
        InputError: ``size`` is below 1.
    """
    if size < 1:
        raise InputError(f"a group needs at least 1 class, not {size}")
    groups = []
    for start in range(0, len(class_names), size):
        slugs = [_slug(name) for name in class_names[start : start + size]]
        name = "-".join(slugs) if len(slugs) <= 3 else f"{slugs[0]}-to-{slugs[-1]}"
        groups.append(ClassGroup(name, tuple(range(start, start + len(slugs)))))
    return tuple(groups)


def split_stream(
    dataset: ImageDataset,
    groups: Sequence[ClassGroup],
    *,
    seed: int,
    name: str | None = None,
    validation: float = 0.0,
    limit: int | None = None,
) -> TaskStream:
    """Make one task of each group of classes.

    Args:
        dataset: Where the images come from.
        groups: The classes of each task.
        seed: Determines which images are held out and kept; used for nothing else.
        name: Name of the stream, by default ``split-`` and the data set's.
        validation: Share of a task's training images to hold out, stratified; with 0 the training images serve as
            validation images too.
        limit: Training images per task, balanced over its classes, before any are held out; None keeps all. The
            test images are always complete.

    Raises:
        InputError: A group names no class, one twice or an unknown one; or ``validation`` or ``limit`` is out of range.
    """
    transform = Normalise(dataset.mean, dataset.std)
    tasks = []
    for index, group in enumerate(groups):
        different = set(group.classes) & set(range(len(dataset.class_names)))
        if not group.classes or len(different) != len(group.classes):
            raise InputError(
                f"task {group.name}: needs classes of {dataset.name}, each once, "
                f"out of 0..{len(dataset.class_names) - 1}; not {group.classes}"
            )
        tasks.append(
            _task(dataset, group, transform=transform, index=index, seed=seed, validation=validation, limit=limit)
        )
    return TaskStream(name or f"split-{dataset.name}", tuple(tasks))


def permuted_stream(
    dataset: ImageDataset,
    num_tasks: int,
    *,
    seed: int,
    name: str | None = None,
    validation: float = 0.0,
    limit: int | None = None,
) -> TaskStream:
    """Make tasks of all classes in which the pixels have another order each time, also in the first.

    The tasks are ``permutation-1``, ``permutation-2``, ...; a longer stream begins with the tasks of a shorter one.

    Args:
        dataset: Where the images come from; all tasks share them in memory.
        num_tasks: How many tasks, at least 1.
        seed: Determines the permutations and which images are held out and kept.
        name: Name of the stream, by default ``permuted-`` and the data set's.
        validation: As for :func:`split_stream`.
        limit: As for :func:`split_stream`.

    Raises:
        InputError: ``num_tasks``, ``validation`` or ``limit`` is out of range.
    """
    pixels = dataset.x_train.shape[-2:].numel()
    normalise = Normalise(dataset.mean, dataset.std)
    everything = tuple(range(len(dataset.class_names)))
    tasks = []
    for index in range(num_tasks):
        order = torch.randperm(pixels, generator=seeded_generator(seed, "permutation", index))
        group = ClassGroup(f"permutation-{index + 1}", everything)
        transform = Chain((Permute(order), normalise))  # permuted first: moving bytes is cheaper than moving floats
        tasks.append(
            _task(dataset, group, transform=transform, index=index, seed=seed, validation=validation, limit=limit)
        )
    return TaskStream(name or f"permuted-{dataset.name}", tuple(tasks))


def _task(
    dataset: ImageDataset,
    group: ClassGroup,
    *,
    transform: Transform,
    index: int,
    seed: int,
    validation: float,
    limit: int | None,
) -> Task:
    """The task of one group of classes, with its images chosen by generators of its own."""
    rows, labels = _rows_of(dataset.y_train, group)
    if limit is not None:
        kept = balanced_rows(labels, limit, seeded_generator(seed, "limit", index))
        rows, labels = rows[kept], labels[kept]
    everything = Split(dataset.x_train, rows, labels, transform)
    train, valid = everything.divided(validation, seeded_generator(seed, "validation", index))
    test = Split(dataset.x_test, *_rows_of(dataset.y_test, group), transform)
    return Task(group.name, tuple(dataset.class_names[label] for label in group.classes), train, valid, test)


def _rows_of(labels: torch.Tensor, group: ClassGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose label is in the group, ascending, and their labels counted within the group."""
    within = torch.full((max(*group.classes, int(labels.max())) + 1,), -1)
    within[list(group.classes)] = torch.arange(len(group.classes))
    renumbered = within[labels]
    rows = (renumbered >= 0).nonzero().flatten()
    return rows, renumbered[rows]


def _slug(class_name: str) -> str:
    """A class name as part of a task name: before any ``/``, in lower case, ASCII letters and digits only."""
    head = class_name.split("/")[0].lower()
    return "".join(character for character in head if character.isascii() and character.isalnum())
