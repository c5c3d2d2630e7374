"""Streams that show all classes of one data set again and again, each time seen in another way.

Sources: I. J. Goodfellow et al., "An empirical investigation of catastrophic forgetting in gradient-based neural
networks", arXiv:1312.6211, 2013 (permutations); D. Lopez-Paz, M. Ranzato, "Gradient episodic memory for continual
learning", NIPS 2017 (rotations).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hatrack.data import ImageDataset
from hatrack.streams.base import TaskStream
from hatrack.streams.groups import ClassGroup, all_classes
from hatrack.streams.image_streams import class_task, origins_of
from hatrack.streams.sampling import StreamOptions
from hatrack.streams.seeding import seeded_generator
from hatrack.streams.transforms import Chain, Normalise, Permute, Rotate, Transform

__all__ = ["drawn_angles", "permuted_stream", "rotated_stream"]


def permuted_stream(
    dataset: ImageDataset, num_tasks: int, options: StreamOptions, *, name: str | None = None
) -> TaskStream:
    """Make tasks of all classes in which the pixels have another order each time, also in the first.

    The tasks are ``permutation-1``, ``permutation-2``, ...; a longer stream begins with the tasks of a shorter one.

    Args:
        dataset: source of the images; all tasks share them in memory.
        num_tasks: number of tasks, at least 1.
        options: the seed, which determines the permutations too, and which samples to take.
        name: name of the stream, by default ``permuted-`` and the data set's.

    Raises:
        InputError: ``num_tasks`` or an option is out of range.
    """
    pixels = dataset.x_train.shape[-2:].numel()
    orders = [
        torch.randperm(pixels, generator=seeded_generator(options.seed, "permutation", index))
        for index in range(num_tasks)
    ]
    name = name or f"permuted-{dataset.name}"
    return _seen_through([Permute(order) for order in orders], "permutation", dataset, options, name)


def rotated_stream(
    dataset: ImageDataset, angles: Sequence[float], options: StreamOptions, *, name: str | None = None
) -> TaskStream:
    """Make tasks of all classes in which the images are turned by another angle each time.

    The tasks are ``rotation-1``, ``rotation-2``, ...

    Args:
        dataset: source of the images; all tasks share them in memory.
        angles: the angle of each task in degrees, anticlockwise, at least one; see :func:`drawn_angles`.
        options: the seed, and which samples to take.
        name: name of the stream, by default ``rotated-`` and the data set's.

    Raises:
        InputError: there is no angle, or one or an option is out of range.
    """
    name = name or f"rotated-{dataset.name}"
    return _seen_through([Rotate(angle) for angle in angles], "rotation", dataset, options, name)


def drawn_angles(num_tasks: int, seed: int, *, largest: float = 180.0) -> tuple[float, ...]:
    """Draw an angle for every task, uniformly from 0 to ``largest`` degrees; more tasks keep the angles of fewer."""
    draws = (torch.rand((), generator=seeded_generator(seed, "rotation", index)) for index in range(num_tasks))
    return tuple(float(draw) * largest for draw in draws)


def _seen_through(
    views: Sequence[Transform], what: str, dataset: ImageDataset, options: StreamOptions, name: str
) -> TaskStream:
    """Make one task of each view of the images as bytes."""
    everything, normalise = all_classes(dataset).classes, Normalise(dataset.mean, dataset.std)
    tasks = []
    for index, view in enumerate(views):
        group = ClassGroup(f"{what}-{index + 1}", everything)
        # The view first: moving bytes is cheaper than moving floats, and what a rotation uncovers is black.
        tasks.append(class_task(dataset, group, options, index=index, transform=Chain((view, normalise))))
    return TaskStream(name, tuple(tasks), origins_of([dataset]))
