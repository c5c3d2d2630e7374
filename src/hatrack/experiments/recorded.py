"""Reading of a run's folder: its configuration, and its network."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import torch

from hatrack.data import DownloadMonitor
from hatrack.errors import CheckpointError, DamagedFileError, InputError
from hatrack.experiments.folder import CHECKPOINT, RESULT, previous, require_run, require_whole
from hatrack.experiments.preparing import Run, load_method, prepare
from hatrack.experiments.request import RunRequest
from hatrack.experiments.results import RunResult, read_result
from hatrack.streams import TaskStream
from hatrack.support.environment import deterministic_cuda

__all__ = ["load_recorded", "recorded_result", "recorded_run", "request_of"]


def recorded_result(folder: Path) -> RunResult:
    """The record of a run.

    Raises:
        InputError: the folder holds no run, or one in which no task was learned.
        CheckpointError: its record is damaged, or forgetting a task was interrupted.
    """
    require_run(folder)
    recorded = read_result(folder / RESULT)
    require_whole(folder, recorded)
    if not recorded.scores and recorded.forgotten:
        raise InputError(f"in {folder} all tasks that were learned have been forgotten; choose another run")
    if not recorded.scores:
        raise InputError(f"in {folder} no task has been learned yet; run this first: {recorded.command}")
    return recorded


def recorded_run(folder: Path, data: Path | None = None, out: Path | None = None) -> tuple[RunResult, RunRequest]:
    """The record of a run, and what to ask for to get the same one again.

    The number of threads is set to the recorded one for this process, since the last bits depend on it.

    Args:
        folder: the run's folder.
        data: folder to look for data in first.
        out: the folder of the new run; None keeps nothing.

    Raises:
        InputError, CheckpointError: as :func:`recorded_result`.
    """
    recorded = recorded_result(folder)
    torch.set_num_threads(recorded.environment["threads"])
    on_cuda = recorded.environment["device"] != "cpu" and torch.cuda.is_available()
    device = deterministic_cuda() if on_cuda else None
    return recorded, request_of(recorded, data, out, device)


def request_of(
    recorded: RunResult, data: Path | None, out: Path | None = None, device: torch.device | None = None
) -> RunRequest:
    """Return what to ask for to get the run of a record again.

    Args:
        recorded: the record.
        data: folder to look for data in first.
        out: the folder of the new run; None keeps nothing.
        device: where to train; None for the CPU.
    """
    sources = tuple(map(Path, recorded.sources))
    asked = (recorded.experiment, recorded.method, recorded.seed, out, data, recorded.config)
    return RunRequest(*asked, device or torch.device("cpu"), sources)


def load_recorded(
    folder: Path, recorded: RunResult, request: RunRequest, monitor: DownloadMonitor | None = None
) -> Run:
    """Load the network of a run.

    Args:
        folder: the run's folder.
        recorded: its record.
        request: what to ask for to get it again, without a folder.
        monitor: told how the download of a data set goes on.

    Returns:
        The run with its method loaded; its stream has the run's tasks alone, without those that were forgotten.

    Raises:
        InputError: the data lacks one of its tasks.
        CheckpointError: the network is damaged, or not the one of the record.
        DataError: the data is missing.
    """
    prepared = prepare(request, monitor)
    prepared.stream = _tasks_of(folder, recorded, prepared.stream)
    try:
        learned = load_method(folder / CHECKPOINT, prepared.method)
    except DamagedFileError as error:
        raise DamagedFileError(f"{error}; or mend it: {recorded.command} `out={shlex.quote(str(folder))}`") from error
    names = tuple(task.name for task in recorded.tasks[: len(recorded.scores)])
    if len(learned) == len(names) + 1:  # the run was stopped before the row of the last one
        prepared.method = prepared.fresh_method()
        learned = load_method(previous(folder / CHECKPOINT), prepared.method)
    if learned != names:
        raise CheckpointError(f"{folder / CHECKPOINT} does not belong to {folder / RESULT}; its tasks are others")
    return prepared


def _tasks_of(folder: Path, recorded: RunResult, stream: TaskStream) -> TaskStream:
    by_name = {task.name: task for task in stream}
    names = [task.name for task in recorded.tasks]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise InputError(f"{folder} has learned {missing[0]!r}, which the data does not have any more")
    return replace(stream, tasks=tuple(by_name[name] for name in names))
