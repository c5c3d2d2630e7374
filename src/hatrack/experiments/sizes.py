"""Size and speed of the tasks of a run once they are taken out of the network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from hatrack.errors import InputError
from hatrack.experiments.opening import masked_network, open_run
from hatrack.models.hat import HATNetwork
from hatrack.models.weight_masked import WeightMaskedNetwork
from hatrack.streams import Task
from hatrack.support.modes import evaluation_mode
from hatrack.support.names import look_up

__all__ = ["TaskSize", "measure_sizes"]

_OF_SUMMARY = ("parameters", "full_parameters", "nonzero", "flops", "full_flops", "deviation")

_WARM_UP = 2
"""Pairs of passes that are not counted."""


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
        full_seconds: the same in the masked network; both take turns.
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
    deviation: float

    @property
    def speedup(self) -> float:
        """Return the factor by which the extracted network is faster."""
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
        repetitions: pairs of passes that are timed, at least 1.

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
    with evaluation_mode(net):
        times = _pairs(lambda: net(x, task.name), lambda: compact(x), repetitions)
    state = net.tasks[net.task_names.index(task.name)]
    head = {name: value for name, value in state.state_dict().items() if name.startswith("head.")}
    return TaskSize(
        task=task.name,
        units=sum(summary.units.values()),
        full_units=sum(summary.full_units.values()),
        **{name: getattr(summary, name) for name in _OF_SUMMARY},
        file_bytes=_bytes(compact.state_dict()),
        full_file_bytes=_bytes({**net.backbone.state_dict(), **head}),
        seconds=min(own for _, own in times),
        full_seconds=min(full for full, _ in times),
    )


def _pairs(full: Callable[[], Any], own: Callable[[], Any], repetitions: int) -> list[tuple[float, float]]:
    return [(_seconds(full), _seconds(own)) for _ in range(_WARM_UP + repetitions)][_WARM_UP:]


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _bytes(state: dict[str, Tensor]) -> int:
    return len(safetensors.torch.save({name: value.detach().contiguous().clone() for name, value in state.items()}))
