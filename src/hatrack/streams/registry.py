"""The streams that can be asked for by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from hatrack.data import DATASETS, ImageDataset, load_dataset
from hatrack.errors import InputError
from hatrack.names import look_up
from hatrack.streams.base import TaskStream
from hatrack.streams.groups import ClassGroup, consecutive_groups
from hatrack.streams.image_streams import shuffled_class_stream, split_stream
from hatrack.streams.pixel_streams import permuted_stream
from hatrack.streams.sampling import StreamOptions

__all__ = ["STREAMS", "ByClass", "ByPermutation", "ByShuffledClasses", "StreamBuilder", "StreamSpec", "build_stream"]


class StreamBuilder(Protocol):
    """A way to make a stream of one data set or of several."""

    @property
    def num_tasks(self) -> int:
        """Number of tasks if none is asked for."""
        ...

    def __call__(
        self, datasets: Sequence[ImageDataset], num_tasks: int, options: StreamOptions, *, name: str
    ) -> TaskStream:
        """Make the first ``num_tasks`` tasks, of the data sets that its :class:`StreamSpec` names.

        Raises:
            InputError: There are not so many, or an option is out of range.
        """
        ...


@dataclass(frozen=True)
class ByClass:
    """Make every task of a few classes of one data set, in fixed order.

    Attributes:
        groups: The classes of each task.
    """

    groups: Sequence[ClassGroup]

    @property
    def num_tasks(self) -> int:
        """Number of groups."""
        return len(self.groups)

    def __call__(
        self, datasets: Sequence[ImageDataset], num_tasks: int, options: StreamOptions, *, name: str
    ) -> TaskStream:
        """See :class:`StreamBuilder`."""
        if num_tasks > len(self.groups):
            raise InputError(f"stream {name} has {len(self.groups)} tasks; {num_tasks} cannot be made of its classes")
        (dataset,) = datasets
        return split_stream(dataset, self.groups[:num_tasks], options, name=name)


@dataclass(frozen=True)
class ByPermutation:
    """Make every task of all classes, with the pixels in an order of its own; as many tasks as one likes.

    Attributes:
        num_tasks: Number of tasks if none is asked for.
    """

    num_tasks: int

    def __call__(
        self, datasets: Sequence[ImageDataset], num_tasks: int, options: StreamOptions, *, name: str
    ) -> TaskStream:
        """See :class:`StreamBuilder`."""
        (dataset,) = datasets
        return permuted_stream(dataset, num_tasks, options, name=name)


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
        self, datasets: Sequence[ImageDataset], num_tasks: int, options: StreamOptions, *, name: str
    ) -> TaskStream:
        """See :class:`StreamBuilder`."""
        return shuffled_class_stream(datasets, self.sizes, options, num_tasks=num_tasks, name=name)


@dataclass(frozen=True)
class StreamSpec:
    """A stream that can be asked for by name.

    Attributes:
        name: The name.
        description: One line on what its tasks are.
        datasets: Names of the data sets it is made of.
        builder: How it is made.
    """

    name: str
    description: str
    datasets: tuple[str, ...]
    builder: StreamBuilder


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
            ),
            StreamSpec(
                name="split-fashion-mnist",
                description="5 tasks of 2 classes of clothing",
                datasets=("fashion-mnist",),
                builder=_FASHION_PAIRS,
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
            ),
            StreamSpec(
                name="split-cifar100",
                description="5 tasks of 20 classes of photographs",
                datasets=("cifar100",),
                builder=ByClass(consecutive_groups(DATASETS["cifar100"].class_names, 20)),
            ),
            StreamSpec(
                name="residual-cifar",
                description="5 tasks of 2 classes of CIFAR-10 and 5 of 20 of CIFAR-100: classes and order by the seed",
                datasets=("cifar10", "cifar100"),
                builder=ByShuffledClasses(sizes=(2, 20), num_tasks=10),
            ),
        )
    }
)
"""Every known stream by name."""


def build_stream(
    name: str,
    options: StreamOptions,
    *,
    data_dir: Path | str | None = None,
    num_tasks: int | None = None,
    download: bool = True,
) -> TaskStream:
    """Make a stream by name. The same arguments give the same stream.

    Args:
        name: One of :data:`STREAMS`.
        options: The seed, and which samples to take.
        data_dir: Folder to look for the data sets in first; see :func:`hatrack.data.load_dataset`.
        num_tasks: Number of tasks, at least 1; fewer than the stream's own are its first ones, and more are
            possible with permutations only. None takes the stream's own.
        download: Whether a data set found nowhere may be fetched from the network.

    Raises:
        InputError: There is no such stream, or a number is out of range.
        DataError: The data set is missing or damaged; the message says how to get it.
    """
    spec = look_up("stream", name, STREAMS)
    tasks = spec.builder.num_tasks if num_tasks is None else num_tasks
    if tasks < 1:
        raise InputError(f"a stream needs at least 1 task, not {tasks}")
    datasets = [load_dataset(dataset, data_dir, download=download) for dataset in spec.datasets]
    return spec.builder(datasets, tasks, options, name=spec.name)
