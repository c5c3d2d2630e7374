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
from hatrack.streams.image_streams import ClassGroup, consecutive_groups, permuted_stream, split_stream

__all__ = ["STREAMS", "ByClass", "ByPermutation", "StreamBuilder", "StreamSpec", "build_stream"]


class StreamBuilder(Protocol):
    """A way to make a stream of a data set."""

    @property
    def num_tasks(self) -> int:
        """Number of tasks if none is asked for."""
        ...

    def __call__(
        self, dataset: ImageDataset, num_tasks: int, *, name: str, seed: int, validation: float, limit: int | None
    ) -> TaskStream:
        """Make the stream; see :func:`build_stream`."""
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
        self, dataset: ImageDataset, num_tasks: int, *, name: str, seed: int, validation: float, limit: int | None
    ) -> TaskStream:
        """Make the stream of the first ``num_tasks`` groups.

        Raises:
            InputError: There are not so many groups.
        """
        if num_tasks > len(self.groups):
            raise InputError(f"stream {name} has {len(self.groups)} tasks; {num_tasks} cannot be made of its classes")
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
        self, dataset: ImageDataset, num_tasks: int, *, name: str, seed: int, validation: float, limit: int | None
    ) -> TaskStream:
        """Make a stream of ``num_tasks`` permutations, of which there are as many as one likes."""
        return permuted_stream(dataset, num_tasks, name=name, seed=seed, validation=validation, limit=limit)


@dataclass(frozen=True)
class StreamSpec:
    """A stream that can be asked for by name.

    Attributes:
        name: The name.
        description: One line on what its tasks are.
        dataset: Name of the data set it is made of.
        builder: How it is made.
        validation: Share of the training images held out for validation if none is asked for; with 0 the training
            images serve as validation images.
    """

    name: str
    description: str
    dataset: str
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
                dataset="fashion-mnist-subset",
                builder=_FASHION_PAIRS,
                validation=0.15,
            ),
            StreamSpec(
                name="split-fashion-mnist",
                description="5 tasks of 2 classes of clothing",
                dataset="fashion-mnist",
                builder=_FASHION_PAIRS,
                validation=0.15,
            ),
            StreamSpec(
                name="permuted-fashion-mnist",
                description="10 tasks of 10 classes of clothing, each with the pixels in another order",
                dataset="fashion-mnist",
                builder=ByPermutation(10),
            ),
            StreamSpec(
                name="split-mnist",
                description="2 tasks of 5 handwritten digits",
                dataset="mnist",
                builder=_DIGIT_HALVES,
            ),
            StreamSpec(
                name="permuted-mnist",
                description="10 tasks of 10 handwritten digits, each with the pixels in another order",
                dataset="mnist",
                builder=ByPermutation(10),
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
) -> TaskStream:
    """Make a stream by name. The same arguments give the same stream.

    Args:
        name: One of :data:`STREAMS`.
        seed: Determines permutations and which images are held out and kept.
        data_dir: Folder to look for the data set in first; see :func:`hatrack.data.load_dataset`.
        validation: Share of the training images to hold out, stratified; with 0 the training images serve as
            validation images. None takes the stream's own.
        limit: Training images per task, balanced over its classes, before any are held out; None keeps all.
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
    return spec.builder(
        load_dataset(spec.dataset, data_dir, download=download),
        tasks,
        name=spec.name,
        seed=seed,
        validation=spec.validation if validation is None else validation,
        limit=limit,
    )
