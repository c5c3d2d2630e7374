"""Streams made of streams: in another order, one after the other, taking turns, or coming back.

What is put together is any stream, of whichever data; the tasks themselves stay as they are but for their names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import zip_longest

import torch

from hatrack.data.arrays import rows_by_class
from hatrack.errors import InputError
from hatrack.objectives import strata
from hatrack.streams.base import Split, Task, TaskStream
from hatrack.streams.seeding import seeded_generator

__all__ = ["concatenated", "in_portions", "interleaved", "repeated", "shuffled"]


def shuffled(stream: TaskStream, seed: int) -> TaskStream:
    """Put the tasks in an order drawn from the seed."""
    order = torch.randperm(len(stream), generator=seeded_generator(seed, "order", stream.name))
    return dataclasses.replace(stream, tasks=tuple(stream[index] for index in order.tolist()))


def concatenated(streams: Sequence[TaskStream], *, name: str) -> TaskStream:
    """Put all tasks of one stream after all of another.

    Raises:
        InputError: there is no stream, two tasks share a name, or the shapes of samples differ.
    """
    return TaskStream(name, tuple(task for stream in streams for task in stream), _origins(streams))


def interleaved(streams: Sequence[TaskStream], *, name: str) -> TaskStream:
    """Take turns: the first task of every stream, then the second of every one, and so on until all are used.

    Raises:
        InputError: there is no stream, two tasks share a name, or the shapes of samples differ.
    """
    rounds = zip_longest(*streams)
    return TaskStream(name, tuple(task for turn in rounds for task in turn if task is not None), _origins(streams))


def repeated(stream: TaskStream, times: int) -> TaskStream:
    """Learn the whole stream several times, as if the tasks were new each time.

    A task that comes back has a name of its own, ``NAME-2`` for the second time: a method is not told that it knows it.

    Args:
        stream: the tasks.
        times: number of passes, at least 1; with 1 it stays as it is.

    Raises:
        InputError: ``times`` is below 1, or a task's new name is taken.
    """
    if times < 1:
        raise InputError(f"a stream must be repeated at least once, not {times} times")
    visits = (_renamed(task, visit) for visit in range(1, times + 1) for task in stream)
    return dataclasses.replace(stream, tasks=tuple(visits))


def in_portions(stream: TaskStream, portions: int, seed: int) -> TaskStream:
    """Let every task come several times, each time with another part of its training samples.

    The training and validation samples are divided class by class, so that no two visits share one; the test samples
    are the same at every visit. Visits take turns, as with :func:`repeated`, and are named as there.

    Args:
        stream: the tasks.
        portions: visits to every task, at least 1.
        seed: draws which samples belong to which visit.

    Raises:
        InputError: ``portions`` is below 1, or a class of a task has fewer training samples than that.
    """
    visits = repeated(stream, portions)  # checks the number
    divided = [_divided(task, portions, seed) for task in stream]
    tasks = []
    for index, visit in enumerate(visits):
        train, valid = divided[index % len(stream)][index // len(stream)]
        tasks.append(dataclasses.replace(visit, train=train, valid=valid))
    return dataclasses.replace(stream, tasks=tuple(tasks))


def _divided(task: Task, portions: int, seed: int) -> list[tuple[Split, Split]]:
    """Return the training and validation samples of every visit to a task."""

    def parts(split: Split, what: str) -> list[Split]:
        generator = seeded_generator(seed, "portions", task.name, what)
        return _parts(split, portions, generator, f"task {task.name}: {what}")

    train = parts(task.train, "training")
    return list(zip(train, train if task.valid is task.train else parts(task.valid, "validation"), strict=True))


def _parts(split: Split, portions: int, generator: torch.Generator, what: str) -> list[Split]:
    """Divide a split so that the parts differ by at most one sample of every class."""
    part_of = torch.zeros(len(split), dtype=torch.int64)
    for rows in rows_by_class(strata(split.labels)):
        if len(rows) < portions:
            raise InputError(f"{what} samples: {len(rows)} of a class cannot be divided into {portions} portions")
        part_of[rows] = torch.randperm(len(rows), generator=generator) % portions
    return [split.part((part_of == part).nonzero().flatten()) for part in range(portions)]


def _renamed(task: Task, visit: int) -> Task:
    return task if visit == 1 else dataclasses.replace(task, name=f"{task.name}-{visit}")


def _origins(streams: Iterable[TaskStream]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(origin for stream in streams for origin in stream.origins))
