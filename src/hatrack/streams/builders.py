"""Ways to make a stream of one data set or of several, by the names that ``streams.toml`` gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

from hatrack.data import ImageDataset
from hatrack.streams.base import TaskStream
from hatrack.streams.groups import ClassGroup, all_classes, consecutive_groups
from hatrack.streams.image_streams import (
    class_stream,
    first_parts,
    incremental_stream,
    mixture_stream,
    shuffled_class_stream,
)
from hatrack.streams.pixel_streams import drawn_angles, permuted_stream, rotated_stream
from hatrack.streams.sampling import StreamOptions

__all__ = ["BUILDERS", "StreamBuilder"]


StreamBuilder: TypeAlias = Callable[..., TaskStream]
"""Makes the first tasks of a stream of some data sets, given ``datasets num_tasks options name`` and its own arguments.

It raises InputError if there are not so many tasks, or an option is out of range.
"""


def _split(
    *,
    datasets: Sequence[ImageDataset],
    num_tasks: int,
    options: StreamOptions,
    name: str,
    size: int = 1,
    groups: Mapping[str, Sequence[int]] | None = None,
) -> TaskStream:
    """Make every task of ``size`` classes of one data set in their order, or of the classes that ``groups`` names."""
    (dataset,) = datasets
    found = consecutive_groups(dataset.class_names, size)
    if groups is not None:
        found = tuple(ClassGroup(task, tuple(classes)) for task, classes in groups.items())
    return class_stream(first_parts([(dataset, group) for group in found], num_tasks, name), options, name=name)


def _permuted(*, datasets: Sequence[ImageDataset], num_tasks: int, options: StreamOptions, name: str) -> TaskStream:
    """Make every task of all classes, with the pixels in an order of its own; as many tasks as one likes."""
    (dataset,) = datasets
    return permuted_stream(dataset, num_tasks, options, name=name)


def _rotated(*, datasets: Sequence[ImageDataset], num_tasks: int, options: StreamOptions, name: str) -> TaskStream:
    """Make every task of all classes, turned by an angle that the seed draws; as many tasks as one likes."""
    (dataset,) = datasets
    return rotated_stream(dataset, drawn_angles(num_tasks, options.seed), options, name=name)


def _whole(*, datasets: Sequence[ImageDataset], num_tasks: int, options: StreamOptions, name: str) -> TaskStream:
    """Make every task of a whole data set, in the order of the data sets."""
    parts = [(dataset, all_classes(dataset)) for dataset in datasets]
    return class_stream(first_parts(parts, num_tasks, name), options, name=name)


BUILDERS: Mapping[str, StreamBuilder] = MappingProxyType(
    {
        "split": _split,
        "permuted": _permuted,
        "rotated": _rotated,
        "incremental": incremental_stream,
        "shuffled": shuffled_class_stream,
        "mixture": mixture_stream,
        "whole": _whole,
    }
)
"""Every way to make a stream by its name; some need arguments of their own."""
