"""How the streams that can be asked for by name are made of their data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hatrack.data import ImageDataset, as_rgb32
from hatrack.errors import InputError
from hatrack.streams.base import TaskStream
from hatrack.streams.groups import ClassGroup, all_classes
from hatrack.streams.image_streams import (
    class_stream,
    mixture_stream,
    split_stream,
)
from hatrack.streams.pixel_streams import drawn_angles, permuted_stream, rotated_stream
from hatrack.streams.sampling import StreamOptions

__all__ = [
    "ByClass",
    "ByPermutation",
    "ByRotation",
    "Mixture",
    "OfFewClasses",
    "StreamBuilder",
    "Whole",
]


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
class ByRotation:
    """Make every task of all classes, turned by an angle that the seed draws; as many tasks as one likes.

    Attributes:
        num_tasks: Number of tasks if none is asked for.
        largest: Angles are drawn from 0 to this many degrees.
    """

    num_tasks: int
    largest: float = 180.0

    def __call__(
        self, datasets: Sequence[ImageDataset], num_tasks: int, options: StreamOptions, *, name: str
    ) -> TaskStream:
        """See :class:`StreamBuilder`."""
        (dataset,) = datasets
        angles = drawn_angles(num_tasks, options.seed, largest=self.largest)
        return rotated_stream(dataset, angles, options, name=name)


class _FewClasses(Protocol):
    """A function that makes tasks of a few classes each of one of several data sets."""

    def __call__(
        self,
        datasets: Sequence[ImageDataset],
        sizes: Sequence[int],
        options: StreamOptions,
        *,
        num_tasks: int,
        name: str,
    ) -> TaskStream:
        """Make them."""
        ...


@dataclass(frozen=True)
class OfFewClasses:
    """Make every task of a few classes of one of several data sets.

    Attributes:
        make: Says what the seed draws: the order alone (:func:`incremental_stream`), or the classes too
            (:func:`shuffled_class_stream`).
        sizes: Classes per task, for each data set.
        num_tasks: Number of tasks if none is asked for.
    """

    make: _FewClasses
    sizes: tuple[int, ...]
    num_tasks: int

    def __call__(
        self, datasets: Sequence[ImageDataset], num_tasks: int, options: StreamOptions, *, name: str
    ) -> TaskStream:
        """See :class:`StreamBuilder`."""
        return self.make(datasets, self.sizes, options, num_tasks=num_tasks, name=name)


@dataclass(frozen=True)
class Mixture:
    """Make every task of a whole data set, as colour images of 32 × 32.

    Attributes:
        num_tasks: Number of data sets.
        drawn: Whether the seed draws the order; otherwise it is that of the data sets.
    """

    num_tasks: int
    drawn: bool = True

    def __call__(
        self, datasets: Sequence[ImageDataset], num_tasks: int, options: StreamOptions, *, name: str
    ) -> TaskStream:
        """See :class:`StreamBuilder`."""
        alike = [as_rgb32(dataset) for dataset in datasets]
        if self.drawn:
            return mixture_stream(alike, options, num_tasks=num_tasks, name=name)
        if num_tasks > len(alike):
            raise InputError(f"stream {name} has {len(alike)} tasks; {num_tasks} cannot be made of its data sets")
        return class_stream([(dataset, all_classes(dataset)) for dataset in alike[:num_tasks]], options, name=name)


@dataclass(frozen=True)
class Whole:
    """Make a single task of all classes of one data set, its images as they are."""

    @property
    def num_tasks(self) -> int:
        """One."""
        return 1

    def __call__(
        self, datasets: Sequence[ImageDataset], num_tasks: int, options: StreamOptions, *, name: str
    ) -> TaskStream:
        """See :class:`StreamBuilder`."""
        if num_tasks > 1:
            raise InputError(f"stream {name} has 1 task; {num_tasks} cannot be made of its data set")
        (dataset,) = datasets
        return class_stream([(dataset, all_classes(dataset))], options, name=name)
