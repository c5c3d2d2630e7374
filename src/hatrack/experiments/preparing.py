"""Getting a run ready to start, or to go on where it stopped."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hatrack.data import DownloadMonitor
from hatrack.errors import CheckpointError, DamagedFileError, GuaranteeError, InputError, NewerFileError
from hatrack.experiments.backbones import build_backbone, narrow_builder
from hatrack.experiments.folder import (
    CHECKPOINT,
    LOGITS,
    RESULT,
    TRAINING,
    InTask,
    previous,
    read_in_task,
    read_recorded,
    require_whole,
)
from hatrack.experiments.request import RunRequest, environment_of
from hatrack.experiments.results import RunResult, Status, TaskSummary
from hatrack.experiments.settings import Config
from hatrack.methods import METHODS, Method, Setup
from hatrack.storage.checkpoint import is_damaged
from hatrack.streams import TaskStream

__all__ = ["Prepared", "finished_result", "load_method", "prepare"]


@dataclass
class Prepared:
    """A run that is ready to start or to go on.

    Attributes:
        request: what was asked for.
        config: all settings.
        stream: the tasks.
        method: the method, with the tasks learned so far.
        result: the results so far.
        learned: number of tasks that the method has learned; one more than there are results for, where a process was
            stopped between the two.
        in_task: where the training of the first task stands that there are no results for; None if it has not begun.
        fresh: whether the folder holds nothing of this run yet.
        repairs: damaged files, which are replaced by the ones before when the run goes on.
        notes: what was damaged, and what is done about it, for people.
    """

    request: RunRequest
    config: Config
    stream: TaskStream
    method: Method
    result: RunResult
    learned: int = 0
    in_task: InTask | None = None
    fresh: bool = False
    repairs: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def prepare(request: RunRequest, monitor: DownloadMonitor | None = None) -> Prepared:
    """Set up a run, or take up one that was interrupted or is finished.

    What is damaged in the folder of an interrupted run is replaced by what was kept before it; ``notes`` say so.

    Args:
        request: what to run.
        monitor: told how the download of a data set goes on.

    Raises:
        InputError: an unknown name or setting, or the folder holds a run with other settings (they are named).
        DataError: the data is missing or damaged.
        CheckpointError: what the folder holds is damaged, and so is what was kept before it.
    """
    experiment = request.described()
    config = experiment.config(request.method).overridden(request.overrides)
    earlier, damaged = _earlier_result(request, config)
    stream = experiment.stream_of(config.stream, seed=request.seed, data_dir=request.data, monitor=monitor)
    if earlier is not None:
        _require_same_data(request, earlier, stream.origins)
        return _taken_up(request, config, stream, earlier, damaged)
    result = RunResult(
        experiment=experiment.name,
        method=request.method,
        seed=request.seed,
        command=request.command(),
        config=config.flat(),
        tasks=tuple(TaskSummary(t.name, t.num_classes, len(t.train), len(t.valid), len(t.test)) for t in stream),
        scores=(),
        capacity=None,
        epochs=(),
        seconds=(),
        environment=environment_of(request),
        status=Status.RUNNING,
        data=stream.origins,
        sources=tuple(str(path.absolute()) for path in request.sources),
    )
    return Prepared(request, config, stream, _fresh_method(request, config, stream), result, fresh=True)


def _fresh_method(request: RunRequest, config: Config, stream: TaskStream) -> Method:
    setup = Setup(
        lambda: build_backbone(config.network, stream.input_shape, request.seed),
        stream.input_shape,
        request.seed,
        request.device,
        narrow_builder(config.network, stream.input_shape),
        tuple(task.num_classes for task in stream),
    )
    return METHODS[request.method](setup, config.method)


def _taken_up(request: RunRequest, config: Config, stream: TaskStream, earlier: RunResult, damaged: bool) -> Prepared:
    """A run of which the folder holds some tasks already."""
    folder, rows = request.out, len(earlier.scores)
    assert folder is not None
    repairs = [folder / RESULT] if damaged else []
    notes = [f"{folder / RESULT} is damaged; going on from {previous(folder / RESULT)}"] if damaged else []

    def load(path: Path, needed: bool) -> tuple[Method, int]:
        method = _fresh_method(request, config, stream)
        return method, _learned(path, method, earlier) if path.exists() or needed else 0

    try:
        method, learned = load(folder / CHECKPOINT, needed=rows > 0)
    except (DamagedFileError, _ForeignFileError, GuaranteeError) as error:  # another backbone is no damage
        damage = isinstance(error, DamagedFileError)
        try:
            method, learned = load(previous(folder / CHECKPOINT), needed=rows > 1 or not damage)
        except (CheckpointError, GuaranteeError):
            raise CheckpointError(f"{error}; or remove {folder} and run again") from error
        repairs.append(folder / CHECKPOINT)
        notes.append(f"{error}; going on from {previous(folder / CHECKPOINT) if learned else 'the beginning'}")
    index = min(rows, learned)
    in_task, more = read_in_task(folder, index, earlier.tasks[index].name) if index < len(stream) else (None, ())
    repairs += [folder / TRAINING] if more else []
    if learned > rows and method.trains and not (in_task is not None and in_task.over):
        # What happened in the epochs of the task is lost: it is learned again, if that can be done.
        with suppress(CheckpointError, GuaranteeError):
            before = load(previous(folder / CHECKPOINT), needed=rows > 0)
            if before[1] == rows:
                method, learned = before
                repairs.append(folder / CHECKPOINT)
    if is_damaged(folder / LOGITS):
        repairs.append(folder / LOGITS)
        notes.append(f"{folder / LOGITS} is damaged; asking the network again")
    result = earlier if index == rows else earlier.first(index)
    return Prepared(
        request, config, stream, method, result, learned, in_task, repairs=tuple(repairs), notes=(*notes, *more)
    )


class _ForeignFileError(CheckpointError):
    """A whole file that belongs to another run."""


def _learned(path: Path, method: Method, earlier: RunResult) -> int:
    """Load a method; how many tasks it has learned.

    Raises:
        CheckpointError: the file is damaged, or does not belong to the results, or is of another network.
    """
    learned, rows = load_method(path, method), len(earlier.scores)
    if learned != tuple(task.name for task in earlier.tasks)[: len(learned)] or abs(len(learned) - rows) > 1:
        raise _ForeignFileError(f"{path} does not belong to {path.with_name(RESULT)}")
    return len(learned)


def load_method(path: Path, method: Method) -> tuple[str, ...]:
    """Load a method, and return the names of the tasks that it has learned.

    Raises:
        CheckpointError: the file is damaged, or of another network.
    """
    try:
        return method.load(path)
    except RuntimeError as error:  # weights that fit in name and not in shape
        raise CheckpointError(
            f"{path} was saved with another backbone, whose weights had other shapes; build it exactly as it was"
        ) from error


def finished_result(request: RunRequest) -> RunResult | None:
    """The result of a run that its folder holds finished; None if it is not finished, or not begun, or damaged.

    Of a preset it needs no data; one's own files are looked at, since they may have changed.

    Raises:
        InputError, DataError, CheckpointError: as :func:`prepare`.
    """
    experiment = request.described()
    config = experiment.config(request.method).overridden(request.overrides)
    earlier, damaged = _earlier_result(request, config)
    if earlier is None or damaged or earlier.status is not Status.FINISHED:
        return None
    assert request.out is not None
    if is_damaged(request.out / CHECKPOINT) or is_damaged(request.out / LOGITS):
        return None  # taking it up mends it
    if experiment.own is not None:
        _require_same_data(request, earlier, experiment.own.origins(config.stream.num_tasks))
    return earlier


def _require_same_data(request: RunRequest, earlier: RunResult, origins: tuple[str, ...]) -> None:
    """Refuse to go on with a run that was made of other data."""
    if earlier.data != origins:
        there = [line for line in earlier.data if line not in origins]
        now = [line for line in origins if line not in earlier.data]
        remedy = "its files have changed since;" if request.sources else "give that data with --data, or"
        raise InputError(
            f"{request.out} holds a run on other data ({'; '.join(there)} there, {'; '.join(now)} now); "
            f"{remedy} choose another folder with --out"
        )


def _earlier_result(request: RunRequest, config: Config) -> tuple[RunResult | None, bool]:
    """Read the same run from the folder, or None; and say whether it is the copy before a damaged newest one.

    Raises:
        InputError: it holds another run, or other files, or cannot be such a folder.
    """
    if request.seed < 0:
        raise InputError(f"the seed must be 0 or more, not {request.seed}")
    for place in () if request.out is None else (request.out, *request.out.parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"{place} is a file; give a folder as --out")
    if request.out is None or not (request.out / RESULT).exists():
        if request.out is not None and (request.out / CHECKPOINT).exists():
            raise InputError(
                f"{request.out} holds a {CHECKPOINT} but no {RESULT}; choose another folder with --out, or remove this "
                "one to begin anew"
            )
        return None, False
    try:
        earlier, damaged = read_recorded(request.out)
    except NewerFileError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{error}; to begin anew, remove {request.out}") from error
    require_whole(request.out, earlier)
    if earlier.forgotten:
        tasks = "a task was" if earlier.forgotten == 1 else f"{earlier.forgotten} tasks were"
        raise InputError(f"in {request.out} {tasks} forgotten, so that this run is over; choose another --out")
    wanted = {"experiment": request.experiment, "method": request.method, "seed": request.seed, **config.flat()}
    found = {"experiment": earlier.experiment, "method": earlier.method, "seed": earlier.seed, **earlier.config}
    differing = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    now = environment_of(request)
    for key in ("threads", "device", "processes"):
        before, here = earlier.environment.get(key, 1), now.get(key, 1)
        if before != here:
            differing.append(key)
            found[key], wanted[key] = before, here
    if differing:
        changes = ", ".join(f"{key} ({found.get(key)} there, {wanted.get(key)} now)" for key in differing)
        raise InputError(f"{request.out} holds a run with other settings: {changes}; choose another folder with --out")
    return earlier, damaged
