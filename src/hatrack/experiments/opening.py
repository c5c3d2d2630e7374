"""Using the network of a run: exporting its tasks, and measuring their size and speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from hatrack.compact.export import Exported, Labels, export_all_tasks, export_task
from hatrack.errors import InputError
from hatrack.experiments.preparing import Run
from hatrack.experiments.recorded import load_recorded, recorded_result, request_of, require_same_data
from hatrack.models.hat import HATNetwork
from hatrack.models.taking_out import take_whole
from hatrack.models.weight_masked import WeightMaskedNetwork
from hatrack.objectives import Classification
from hatrack.streams import Task
from hatrack.streams.own.columns import TableRows
from hatrack.streams.transforms import Chain, Normalise, Permute, Standardise, Transform
from hatrack.support.modes import evaluation_mode
from hatrack.support.names import look_up

__all__ = [
    "TaskSize",
    "describe_transform",
    "export_run",
    "measure_sizes",
    "open_run",
]

COMPARED = 256
"""On how many test samples of a task an export is compared."""


def open_run(folder: Path, data: Path | None = None) -> tuple[Run, tuple[Task, ...]]:
    """Load the network of a run, and the tasks that it has learned.

    Args:
        folder: the run's folder.
        data: folder to look for data in first; classes and preprocessing come from there.

    Raises:
        InputError: the folder holds no run, or one in which no task was learned, or one's own files have changed since.
        CheckpointError: a file is damaged, or forgetting a task was interrupted.
        DataError: the data is missing.
    """
    recorded = recorded_result(folder)
    prepared = load_recorded(folder, recorded, request_of(folder, recorded, data))
    if recorded.sources:  # a preset's data sets are the same in any form
        require_same_data(folder, recorded, prepared.stream)
    prepared.method.train_mode(False)
    return prepared, prepared.stream[: len(recorded.scores)]


def masked_network(folder: Path, prepared: Run) -> HATNetwork | WeightMaskedNetwork:
    """The network of a run, out of which tasks can be taken.

    Raises:
        InputError: the run's method has no masks.
    """
    net = getattr(prepared.method, "network", None)
    if not isinstance(net, (HATNetwork, WeightMaskedNetwork)):
        method = prepared.request.method
        raise InputError(f"{folder} was made by {method}; only tasks of hat, pmask and their kin can be taken out")
    return net


def describe_transform(transform: Transform | None) -> dict[str, Any]:
    """Describe, in JSON values, the way from the bytes of a picture, an array or a row of a table to a sample.

    A mean and a deviation stand for every channel, or for every position of a sample in the order of its axes, or for
    every feature of a table: its columns in their order, where one of categories is a feature of 0 and 1 for each.

    Raises:
        InputError: the transform is of a kind that has no description.
    """
    match transform:
        case None:
            return {}
        case Normalise():
            return {"divide_by": 255, "mean": list(transform.mean), "std": list(transform.std)}
        case TableRows():
            named = {column.name: list(column.categories) for column in transform.columns if column.categories}
            columns = {"columns": [column.name for column in transform.columns], "categories": named}
            return {**columns, **describe_transform(transform.scale)}
        case Standardise():
            return {"mean": transform.mean.flatten().tolist(), "std": transform.std.flatten().tolist()}
        case Permute():
            return {"permutation": transform.permutation.tolist()}
        case Chain():
            return {"steps": [describe_transform(step) for step in transform.steps]}
        case _:
            raise InputError(f"samples go through {type(transform).__name__}, which no file could describe")


def export_run(folder: Path, task: str | None, to: Path, data: Path | None = None) -> Exported:
    """Export a task of a run, or all of them to one file.

    Args:
        folder: the run's folder.
        task: the task; None for all.
        to: the file.
        data: folder to look for data in first; test samples are what the file is compared on.

    Raises:
        InputError: there is no such task or kind of file, or the method has no masks, or masks of weights and all tasks
            are to go into one file.
        UnsupportedError, GuaranteeError: as :func:`hatrack.compact.export.export_task`.
    """
    prepared, tasks = open_run(folder, data)
    net = masked_network(folder, prepared)
    if task is None and not isinstance(net, HATNetwork):
        method = prepared.request.method
        raise InputError(f"{folder} was made by {method}, whose masks of weights do not mix; export tasks with `task`")
    names = [each.name for each in tasks] if task is None else [task]
    tests = {each.name: each.test for each in tasks}
    samples = {name: look_up("task", name, tests).load()[0][:COMPARED] for name in names}
    labels = {each.name: _labels(each) for each in tasks}
    if task is None:
        assert isinstance(net, HATNetwork)
        return export_all_tasks(net, to, samples, labels)
    return export_task(net, task, to, samples[task], labels[task])


def _labels(task: Task) -> Labels:
    objective = {} if isinstance(task.objective, Classification) else task.objective.to_json()
    return Labels(task.classes, describe_transform(task.test.transform), objective)


_OF_SUMMARY = ("parameters", "full_parameters", "nonzero", "flops", "full_flops", "deviation")

_WARM_UP = 2
"""Rounds of passes that are not counted."""


@dataclass(frozen=True)
class TaskSize:
    """A task as a network of its own, beside the whole network with that task's head and norms.

    Attributes:
        task: its name.
        units: how many units it has; 0 where they are not known.
        full_units: how many the whole network has.
        parameters: number of its parameters.
        full_parameters: the same of the whole network.
        nonzero: how many of its parameters are not 0.
        flops: operations per sample, see :class:`hatrack.compact.Summary`.
        full_flops: the same of the whole network.
        file_bytes: size of its ``.safetensors`` file.
        full_file_bytes: size of the whole network's.
        seconds: time of a batch in the extracted network, the least of all passes: other work only ever adds to it.
        full_seconds: the same in the masked network, which computes masks or gates, too.
        plain_seconds: the same in the whole network without gates and masks. Passes of all three take turns.
        deviation: largest difference of a logit, relative to the largest.
    """

    task: str
    units: int
    full_units: int
    parameters: int
    full_parameters: int
    nonzero: int
    flops: int
    full_flops: int
    file_bytes: int
    full_file_bytes: int
    seconds: float
    full_seconds: float
    plain_seconds: float
    deviation: float

    @property
    def speedup(self) -> float:
        """Return the factor by which the extracted network is faster than the whole one without gates and masks."""
        return self.plain_seconds / self.seconds

    @property
    def speedup_over_masked(self) -> float:
        """Return the factor by which it is faster than the masked network, also because it has no gates."""
        return self.full_seconds / self.seconds


@torch.no_grad()
def measure_sizes(
    folder: Path, task: str | None = None, data: Path | None = None, *, batch: int = 64, repetitions: int = 20
) -> tuple[TaskSize, ...]:
    """Extract tasks of a run, and measure them on test samples.

    Args:
        folder: the run's folder.
        task: the task; None for all.
        data: folder to look for data in first.
        batch: samples per pass, or as many as there are to test with.
        repetitions: rounds of passes that are timed, at least 1.

    Raises:
        InputError: there is no such task, the method has no masks, or a number is below 1.
        UnsupportedError: a task cannot be extracted.
    """
    for name, value in (("batch", batch), ("repetitions", repetitions)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    prepared, tasks = open_run(folder, data)
    net = masked_network(folder, prepared)
    chosen = tasks if task is None else (look_up("task", task, {each.name: each for each in tasks}),)
    return tuple(_size_of(net, each, batch, repetitions) for each in chosen)


def _size_of(net: HATNetwork | WeightMaskedNetwork, task: Task, batch: int, repetitions: int) -> TaskSize:
    x = task.test.part(torch.arange(min(batch, len(task.test)))).load()[0]
    compact = net.extract(task.name, x)
    summary = compact.summary
    assert summary is not None
    plain = take_whole(net, task.name)
    with evaluation_mode(net):
        times = _in_turns((lambda: net(x, task.name), lambda: plain(x), lambda: compact(x)), repetitions)
    state = net.tasks[net.task_names.index(task.name)]
    head = {name: value for name, value in state.state_dict().items() if name.startswith("head.")}
    return TaskSize(
        task=task.name,
        units=sum(summary.units.values()),
        full_units=sum(summary.full_units.values()),
        **{name: getattr(summary, name) for name in _OF_SUMMARY},
        file_bytes=_bytes(compact.state_dict()),
        full_file_bytes=_bytes({**net.backbone.state_dict(), **head}),
        full_seconds=times[0],
        plain_seconds=times[1],
        seconds=times[2],
    )


def _in_turns(passes: Sequence[Callable[[], Any]], repetitions: int) -> list[float]:
    """Return the least time of every pass, in seconds; passes take turns, so that a slow moment hits all of them."""
    rounds = [[_seconds(each) for each in passes] for _ in range(_WARM_UP + repetitions)][_WARM_UP:]
    return [min(times) for times in zip(*rounds, strict=True)]


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _bytes(state: dict[str, Tensor]) -> int:
    return len(safetensors.torch.save({name: value.detach().contiguous().clone() for name, value in state.items()}))
