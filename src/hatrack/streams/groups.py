"""Groups of classes of a data set that make up tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hatrack.data import ImageDataset
from hatrack.errors import InputError
from hatrack.streams.seeding import seeded_generator

__all__ = ["ClassGroup", "all_classes", "consecutive_groups", "shuffled_groups"]

FEW = 3
"""Largest number of classes that are all named in a task's name."""


@dataclass(frozen=True)
class ClassGroup:
    """The classes of a data set that make up one task.

    Attributes:
        name: name of the task.
        classes: their labels in the data set; the first becomes label 0 of the task, and so on.
    """

    name: str
    classes: tuple[int, ...]


def all_classes(dataset: ImageDataset) -> ClassGroup:
    """Return the group of all classes of a data set, named after it."""
    return ClassGroup(dataset.name, tuple(range(len(dataset.class_names))))


def consecutive_groups(
    class_names: Sequence[str], size: int | Sequence[int], *, prefix: str = ""
) -> tuple[ClassGroup, ...]:
    """Group classes in their order.

    A group is named after its classes, ``tshirt-trouser``; one of more than three after its first and last,
    ``apple-to-bed``.

    Args:
        class_names: the names of all classes.
        size: classes per group, at least 1; a last, smaller group takes what is left. Or the sizes of all groups, which
            may differ; classes that are left over belong to none.
        prefix: beginning of all names, as ``cifar10``, followed by ``-``; empty for none.

    Raises:
        InputError: a size is below 1, or the sizes need more classes than there are.
    """
    groups = []
    for classes in _chunks(list(range(len(class_names))), size):
        slugs = [_slug(class_names[label]) for label in classes]
        name = "-".join(slugs) if len(slugs) <= FEW else f"{slugs[0]}-to-{slugs[-1]}"
        groups.append(ClassGroup(f"{prefix}-{name}" if prefix else name, classes))
    return tuple(groups)


def shuffled_groups(dataset: ImageDataset, size: int, seed: int) -> tuple[ClassGroup, ...]:
    """Group the classes of a data set at random, ``size`` at a time; a last, smaller group takes what is left.

    A group is named after the data set and its classes, ``cifar10-frog-ship``; one of more than three after the data
    set and its number, ``cifar100-2``.

    Args:
        dataset: the data set with the classes.
        size: classes per group, at least 1.
        seed: determines the groups, together with the data set's name.

    Raises:
        InputError: ``size`` is below 1.
    """
    order = torch.randperm(len(dataset.class_names), generator=seeded_generator(seed, "classes", dataset.name))
    groups = []
    for number, classes in enumerate(_chunks(order.tolist(), size), 1):
        slugs = [_slug(dataset.class_names[label]) for label in classes]
        name = "-".join((dataset.name, *slugs)) if len(slugs) <= FEW else f"{dataset.name}-{number}"
        groups.append(ClassGroup(name, classes))
    return tuple(groups)


def _chunks(labels: list[int], size: int | Sequence[int]) -> list[tuple[int, ...]]:
    for one in (size,) if isinstance(size, int) else size:
        if one < 1:
            raise InputError(f"a group needs at least 1 class, not {one}")
    if isinstance(size, int):
        return [tuple(labels[start : start + size]) for start in range(0, len(labels), size)]
    if sum(size) > len(labels):
        raise InputError(f"groups of {', '.join(map(str, size))} classes need {sum(size)}; there are {len(labels)}")
    starts = [sum(size[:index]) for index in range(len(size))]
    return [tuple(labels[start : start + one]) for start, one in zip(starts, size, strict=True)]


def _slug(class_name: str) -> str:
    """Return a class name as part of a task name: before any ``/``, in lower case, ASCII letters and digits only."""
    head = class_name.split("/")[0].lower()
    return "".join(character for character in head if character.isascii() and character.isalnum())
