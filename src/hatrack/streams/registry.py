"""The streams that can be asked for by name, the table ``streams.toml``, and the ways in which it has them made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from hatrack.data import DownloadMonitor, ImageDataset, as_rgb32, load_dataset
from hatrack.errors import DataError, InputError
from hatrack.streams.base import TaskStream
from hatrack.streams.groups import ClassGroup, all_classes, consecutive_groups
from hatrack.streams.image_streams import (
    class_stream,
    drawn_angles,
    first_parts,
    incremental_stream,
    mixture_stream,
    permuted_stream,
    rotated_stream,
    shuffled_class_stream,
)
from hatrack.streams.sampling import StreamOptions
from hatrack.support.names import look_up
from hatrack.support.toml import read_packaged_toml

__all__ = ["STREAMS", "StreamSpec", "build_stream", "find_origins"]

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


@dataclass(frozen=True)
class StreamSpec:
    """A stream that can be asked for by name.

    Attributes:
        name: the name.
        description: one line on its tasks.
        datasets: names of the data sets it is made of.
        num_tasks: number of tasks if none is asked for.
        builder: makes it of its data sets.
        rgb32: whether the images become colour images of 32 x 32 first.
    """

    name: str
    description: str
    datasets: tuple[str, ...]
    num_tasks: int
    builder: StreamBuilder
    rgb32: bool = False


def _spec(
    name: str,
    *,
    description: str,
    datasets: Sequence[str],
    tasks: int,
    builder: str,
    rgb32: bool = False,
    **arguments: Any,
) -> StreamSpec:
    """Make the description of a stream of a row."""
    return StreamSpec(name, description, tuple(datasets), tasks, partial(BUILDERS[builder], **arguments), rgb32)


STREAMS: Mapping[str, StreamSpec] = MappingProxyType(
    {name: _spec(name, **row) for name, row in read_packaged_toml("hatrack.streams", "streams.toml").items()}
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
        name: one of :data:`STREAMS`.
        options: the seed, and which samples to take.
        data_dir: folder to look for the data sets in first; see :func:`hatrack.data.load_dataset`.
        num_tasks: number of tasks, at least 1; fewer than the stream's own are its first ones, and more are
            possible with permutations only. None takes the stream's own.
        download: whether a data set found nowhere may be fetched from the network.
        monitor: told how downloads go on.

    Raises:
        InputError: there is no such stream, or a number is out of range.
        DataError: the data set is missing or damaged; the message says how to get it.
    """
    spec = look_up("stream", name, STREAMS)
    tasks = spec.num_tasks if num_tasks is None else num_tasks
    if tasks < 1:
        raise InputError(f"a stream needs at least 1 task, not {tasks}")
    datasets = [load_dataset(name, data_dir, download=download, monitor=monitor) for name in spec.datasets]
    if spec.rgb32:
        datasets = [as_rgb32(dataset) for dataset in datasets]
    return spec.builder(datasets=datasets, num_tasks=tasks, options=options, name=spec.name)


def find_origins(name: str, data_dir: Path | None = None) -> tuple[str, ...]:
    """Return the lines that a stream's ``origins`` would have of the data sets on this machine.

    Data sets that are not here, or damaged, are left out, and so are all where ``data_dir`` is no folder. They are
    loaded one after the other: where their files are verified, decoding them takes little more.

    Args:
        name: one of :data:`STREAMS`.
        data_dir: folder to look for the data sets in first.

    Raises:
        InputError: there is no such stream.
    """
    spec, lines = look_up("stream", name, STREAMS), []
    if data_dir is not None and not data_dir.is_dir():
        return ()
    for dataset in spec.datasets:
        with suppress(DataError):
            lines.append(f"{dataset}: {load_dataset(dataset, data_dir, download=False).origin or 'unknown'}")
    return tuple(lines)
