"""The streams that can be asked for by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from hatrack.data import DATASETS, DownloadMonitor, load_dataset
from hatrack.errors import InputError
from hatrack.names import look_up
from hatrack.streams.base import TaskStream
from hatrack.streams.builders import (
    ByClass,
    ByPermutation,
    ByRotation,
    Mixture,
    OfFewClasses,
    StreamBuilder,
    Whole,
)
from hatrack.streams.groups import ClassGroup, consecutive_groups
from hatrack.streams.image_streams import incremental_stream, shuffled_class_stream
from hatrack.streams.sampling import StreamOptions

__all__ = ["STREAMS", "StreamSpec", "build_stream"]


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

_MIXTURE = ("cifar10", "cifar100", "facescrub", "fashion-mnist", "notmnist", "mnist", "svhn", "traffic-signs")
_OPEN_MIXTURE = ("mnist", "fashion-mnist", "notmnist", "cifar10", "traffic-signs", "animals")

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
                builder=OfFewClasses(shuffled_class_stream, sizes=(2, 20), num_tasks=10),
            ),
            StreamSpec(
                name="incremental-cifar",
                description="5 tasks of 2 classes of CIFAR-10 and 5 of 20 of CIFAR-100, in an order by the seed",
                datasets=("cifar10", "cifar100"),
                builder=OfFewClasses(incremental_stream, sizes=(2, 20), num_tasks=10),
            ),
            StreamSpec(
                name="incremental-cifar10",
                description="5 tasks of 2 classes of CIFAR-10, in an order by the seed: half of incremental-cifar",
                datasets=("cifar10",),
                builder=OfFewClasses(incremental_stream, sizes=(2,), num_tasks=5),
            ),
            StreamSpec(
                name="mixture",
                description="8 data sets as colour images of 32 x 32, in an order by the seed",
                datasets=_MIXTURE,
                builder=Mixture(len(_MIXTURE)),
            ),
            StreamSpec(
                name="mixture-open",
                description="6 data sets that are freely at hand as colour images of 32 x 32, in an order by the seed",
                datasets=_OPEN_MIXTURE,
                builder=Mixture(len(_OPEN_MIXTURE)),
            ),
            StreamSpec(
                name="rotated-mnist",
                description="10 tasks of 10 handwritten digits, each turned by an angle of its own",
                datasets=("mnist",),
                builder=ByRotation(10),
            ),
            StreamSpec(
                name="rotated-fashion-mnist",
                description="10 tasks of 10 classes of clothing, each turned by an angle of its own",
                datasets=("fashion-mnist",),
                builder=ByRotation(10),
            ),
            StreamSpec(
                name="transfer-mnist-fashion",
                description="2 tasks: handwritten digits, then clothing",
                datasets=("mnist", "fashion-mnist"),
                builder=Mixture(2, drawn=False),
            ),
            StreamSpec(
                name="all-mnist",
                description="1 task of 10 handwritten digits",
                datasets=("mnist",),
                builder=Whole(),
            ),
            *(
                StreamSpec(
                    name=f"all-{name}-rgb32",
                    description=f"1 task of all classes of {name} as colour images of 32 x 32",
                    datasets=(name,),
                    builder=Mixture(1),
                )
                for name in _MIXTURE
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
    monitor: DownloadMonitor | None = None,
) -> TaskStream:
    """Make a stream by name. The same arguments give the same stream.

    Args:
        name: One of :data:`STREAMS`.
        options: The seed, and which samples to take.
        data_dir: Folder to look for the data sets in first; see :func:`hatrack.data.load_dataset`.
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
    datasets = [load_dataset(name, data_dir, download=download, monitor=monitor) for name in spec.datasets]
    return spec.builder(datasets, tasks, options, name=spec.name)
