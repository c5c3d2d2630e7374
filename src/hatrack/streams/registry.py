"""The streams that can be asked for by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from hatrack.data import DATASETS, DownloadMonitor, ImageDataset, load_dataset
from hatrack.errors import InputError
from hatrack.names import look_up
from hatrack.streams.base import TaskStream
from hatrack.streams.image_streams import (
    ClassGroup,
    consecutive_groups,
    permuted_stream,
    shuffled_class_stream,
    split_stream,
)

__all__ = ["STREAMS", "ByClass", "ByPermutation", "ByShuffledClasses", "StreamBuilder", "StreamSpec", "build_stream"]


class StreamBuilder(Protocol):
    """A way to make a stream of one data set or of several."""

    @property
    def num_tasks(self) -> int:
        """Number of tasks if none is asked for."""
        ...

    def __call__(
        self,
        datasets: Sequence[ImageDataset],
        num_tasks: int,
        *,
        name: str,
        seed: int,
        validation: float,
        limit: int | None,
    ) -> TaskStream:
        """Make the stream of the data sets that its :class:`StreamSpec` names; see :func:`build_stream`."""
        ...


@dataclass(frozen=True)
class ByClass:
    """Make every task of a few classes.

    Attributes:
        groups: The classes of each task.
    """

    groups: Sequence[ClassGroup]

    @property
    def num_tasks(self) -> int:
        """Number of groups."""
        return len(self.groups)

    def __call__(
        self,
        datasets: Sequence[ImageDataset],
        num_tasks: int,
        *,
        name: str,
        seed: int,
        validation: float,
        limit: int | None,
    ) -> TaskStream:
        """Make the stream of the first ``num_tasks`` groups.

        Raises:
            InputError: There are not so many groups.
        """
        if num_tasks > len(self.groups):
            raise InputError(f"stream {name} has {len(self.groups)} tasks; {num_tasks} cannot be made of its classes")
        (dataset,) = datasets
        groups = self.groups[:num_tasks]
        return split_stream(dataset, groups, name=name, seed=seed, validation=validation, limit=limit)


@dataclass(frozen=True)
class ByPermutation:
    """Make every task of all classes, with the pixels in an order of its own.

    Attributes:
        num_tasks: Number of tasks if none is asked for.
    """

    num_tasks: int

    def __call__(
        self,
        datasets: Sequence[ImageDataset],
        num_tasks: int,
        *,
        name: str,
        seed: int,
        validation: float,
        limit: int | None,
    ) -> TaskStream:
        """Make a stream of ``num_tasks`` permutations, of which there are as many as one likes."""
        (dataset,) = datasets
        return permuted_stream(dataset, num_tasks, name=name, seed=seed, validation=validation, limit=limit)


@dataclass(frozen=True)
class ByShuffledClasses:
    """Make every task of a few classes of one of several data sets; the seed draws the classes and the order.

    Attributes:
        sizes: Classes per task, for each data set.
        num_tasks: Number of tasks if none is asked for.
    """

    sizes: tuple[int, ...]
    num_tasks: int

    def __call__(
        self,
        datasets: Sequence[ImageDataset],
        num_tasks: int,
        *,
        name: str,
        seed: int,
        validation: float,
        limit: int | None,
    ) -> TaskStream:
        """Make the first ``num_tasks`` tasks.

        Raises:
            InputError: There are not so many.
        """
        return shuffled_class_stream(
            datasets, self.sizes, num_tasks, seed=seed, name=name, validation=validation, limit=limit
        )


@dataclass(frozen=True)
class StreamSpec:
    """A stream that can be asked for by name.

    Attributes:
        name: The name.
        description: One line on what its tasks are.
        datasets: Names of the data sets it is made of.
        builder: How it is made.
        validation: Share of the training images held out for validation if none is asked for; with 0 the training
            images serve as validation images.
    """

    name: str
    description: str
    datasets: tuple[str, ...]
    builder: StreamBuilder
    validation: float = 0.0


_FASHION_PAIRS = ByClass(consecutive_groups(DATASETS["fashion-mnist"].class_names, 2))
_DIGIT_HALVES = ByClass((ClassGroup("digits-0-4", (0, 1, 2, 3, 4)), ClassGroup("digits-5-9", (5, 6, 7, 8, 9))))

STREAMS: Mapping[str, StreamSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            StreamSpec(
                name="demo",
                description="5 tasks of 2 classes from the part of Fashion-MNIST that is shipped with hatrack",
                datasets=("fashion-mnist-subset",),
                builder=_FASHION_PAIRS,
                validation=0.15,
            ),
            StreamSpec(
                name="split-fashion-mnist",
                description="5 tasks of 2 classes of clothing",
                datasets=("fashion-mnist",),
                builder=_FASHION_PAIRS,
                validation=0.15,
            ),
            StreamSpec(
                name="permuted-fashion-mnist",
                description="10 tasks of 10 classes of clothing, each with the pixels in another order",
                datasets=("fashion-mnist",),
                builder=ByPermutation(10),
            ),
            StreamSpec(
                name="split-mnist",
                description="2 tasks of 5 handwritten digits",
                datasets=("mnist",),
                builder=_DIGIT_HALVES,
            ),
            StreamSpec(
                name="permuted-mnist",
                description="10 tasks of 10 handwritten digits, each with the pixels in another order",
                datasets=("mnist",),
                builder=ByPermutation(10),
            ),
            StreamSpec(
                name="split-cifar10",
                description="5 tasks of 2 classes of photographs",
                datasets=("cifar10",),
                builder=ByClass(consecutive_groups(DATASETS["cifar10"].class_names, 2)),
                validation=0.15,
            ),
            StreamSpec(
                name="split-cifar100",
                description="5 tasks of 20 classes of photographs",
                datasets=("cifar100",),
                builder=ByClass(consecutive_groups(DATASETS["cifar100"].class_names, 20)),
                validation=0.15,
            ),
            StreamSpec(
                name="residual-cifar",
                description="5 tasks of 2 classes of CIFAR-10 and 5 of 20 of CIFAR-100: classes and order by the seed",
                datasets=("cifar10", "cifar100"),
                builder=ByShuffledClasses(sizes=(2, 20), num_tasks=10),
                validation=0.15,
            ),
        )
    }
)
"""Every known stream by name."""


def build_stream(
    name: str,
    *,
    seed: int,
    data_dir: Path | str | None = None,
    validation: float | None = None,
    limit: int | None = None,
    num_tasks: int | None = None,
    download: bool = True,
    monitor: DownloadMonitor | None = None,
) -> TaskStream:
    """Make a stream by name. The same arguments give the same stream.

    Args:
        name: One of :data:`STREAMS`.
        seed: Determines permutations, shuffled classes and tasks, and which images are held out and kept.
        data_dir: Folder to look for the data sets in first; see :func:`hatrack.data.load_dataset`.
        validation: Share of the training images to hold out, stratified; with 0 the training images serve as
            validation images. None takes the stream's own.
        limit: Training images per task, balanced over its classes, before any are held out; None keeps all.
        num_tasks: Number of tasks, at least 1; fewer than the stream's own are its first ones, and more are
            possible with permutations only. None takes the stream's own.
        download: Whether a data set found nowhere may be fetched from the network.
        monitor: Told how downloads go on.

    Raises:
        InputError: There is no such stream, or a number is out of range.
        DataError: The data set is missing or damaged; the message says how to get it.
    """
    spec = look_up("stream", name, STREAMS)
    tasks = spec.builder.num_tasks if num_tasks is None else num_tasks
    if tasks < 1:
        raise InputError(f"a stream needs at least 1 task, not {tasks}")
    return spec.builder(
        [load_dataset(dataset, data_dir, download=download, monitor=monitor) for dataset in spec.datasets],
        tasks,
        name=spec.name,
        seed=seed,
        validation=spec.validation if validation is None else validation,
        limit=limit,
    )
