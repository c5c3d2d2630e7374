"""Running an experiment: task after task, resumable at every finished one."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hatrack.checkpoint import Checkpoint, write_checkpoint
from hatrack.data import DownloadMonitor
from hatrack.environment import describe_environment
from hatrack.errors import CheckpointError, InputError
from hatrack.experiments.backbones import build_backbone, narrow_builder
from hatrack.experiments.experiment import Experiment
from hatrack.experiments.own import own_experiment
from hatrack.experiments.presets import find_experiment
from hatrack.experiments.results import RunResult, Status, TaskHistory, TaskSummary, read_result, write_result
from hatrack.experiments.settings import Config
from hatrack.methods import METHODS, Method, Setup
from hatrack.parallel import ALONE, Ranks
from hatrack.streams import TaskStream
from hatrack.train import BatchDone, EpochDone, Score, fit, predict_split, require_finite, score

__all__ = [
    "CHECKPOINT",
    "LOGITS",
    "LOGITS_FORMAT",
    "RESULT",
    "Event",
    "Prepared",
    "RunRequest",
    "TaskBegun",
    "TaskLearned",
    "last_logits",
    "prepare",
    "run",
    "score_row",
]

RESULT = "run.json"
CHECKPOINT = "net.hat"
LOGITS = "logits.safetensors"
LOGITS_FORMAT = "hatrack.Logits"


@dataclass(frozen=True)
class RunRequest:
    """What to run.

    Attributes:
        experiment: name of the experiment; of one's own tasks, what they are called.
        method: name of the method.
        seed: the seed, 0 or more.
        out: folder of the run; None keeps nothing.
        data: folder to look for data in first.
        overrides: settings that differ from the experiment's, by key.
        device: where to train.
        sources: for one's own tasks, a ``tasks.toml``, or the files and folders of the tasks; empty for presets.
        ranks: the processes that share this run, of which this is one.
    """

    experiment: str
    method: str
    seed: int = 0
    out: Path | None = None
    data: Path | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    sources: tuple[Path, ...] = ()
    ranks: Ranks = ALONE

    def described(self) -> Experiment:
        """The experiment.

        Raises:
            InputError: there is none, or the sources cannot be used.
        """
        return own_experiment(self.sources) if self.sources else find_experiment(self.experiment)

    def command(self) -> str:
        """A command line that makes this run."""
        files = [str(path.absolute()) for path in self.sources]
        what = files if len(files) == 1 and files[0].endswith(".toml") else ["--tasks", *files]
        many = ["torchrun", "--nproc-per-node", str(self.ranks.size), "-m"] if self.ranks.size > 1 else []
        words = [*many, "hatrack", "run", *(what if files else [self.experiment])]
        words += ["--method", self.method, "--seed", str(self.seed)]
        words += ["--threads", str(torch.get_num_threads()), "--device", self.device.type]
        for key, value in self.overrides.items():
            text = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
            words += ["--set", f"{key}={text}"]
        return shlex.join(words)


@dataclass(frozen=True)
class TaskBegun:
    """A task is about to be learned; ``index`` counts from 0."""

    index: int
    task: TaskSummary
    max_epochs: int


@dataclass(frozen=True)
class TaskLearned:
    """A task was learned, all tasks so far were tested, and everything is on disk."""

    index: int
    result: RunResult


Event = TaskBegun | BatchDone | EpochDone | TaskLearned


@dataclass
class Prepared:
    """A run that is ready to start or to go on.

    Attributes:
        request: what was asked for.
        config: all settings.
        stream: the tasks.
        method: the method, with the tasks learned so far.
        result: the results so far.
    """

    request: RunRequest
    config: Config
    stream: TaskStream
    method: Method
    result: RunResult


def prepare(request: RunRequest, monitor: DownloadMonitor | None = None) -> Prepared:
    """Set up a run, or take up one that was interrupted or is finished.

    Args:
        request: what to run.
        monitor: told how the download of a data set goes on.

    Raises:
        InputError: an unknown name or setting, or the folder holds a run with other settings (they are named).
        DataError: the data is missing or damaged.
        CheckpointError: what the folder holds is damaged.
    """
    experiment = request.described()
    config = experiment.config(request.method).overridden(request.overrides)
    earlier = _earlier_result(request, config)
    stream = experiment.stream_of(config.stream, seed=request.seed, data_dir=request.data, monitor=monitor)
    setup = Setup(
        lambda: build_backbone(config.network, stream.input_shape, request.seed),
        stream.input_shape,
        request.seed,
        request.device,
        narrow_builder(config.network, stream.input_shape),
        tuple(task.num_classes for task in stream),
    )
    method = METHODS[request.method](setup, config.method)
    if earlier is not None:
        _require_same_data(request, earlier, stream.origins)
        prepared = Prepared(request, config, stream, method, earlier)
        _take_up(prepared)
        return prepared
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
        environment=describe_environment(request.device),
        status=Status.RUNNING,
        data=stream.origins,
        sources=tuple(str(path.absolute()) for path in request.sources),
    )
    return Prepared(request, config, stream, method, result)


def finished_result(request: RunRequest) -> RunResult | None:
    """The result of a run that its folder holds finished; None if it is not finished, or not begun.

    Of a preset it needs no data; one's own files are looked at, since they may have changed.

    Raises:
        InputError, DataError, CheckpointError: as :func:`prepare`.
    """
    experiment = request.described()
    config = experiment.config(request.method).overridden(request.overrides)
    earlier = _earlier_result(request, config)
    if earlier is None or earlier.status is not Status.FINISHED:
        return None
    if experiment.own is not None:
        _require_same_data(request, earlier, experiment.own.origins(config.stream.num_tasks))
    return earlier


def _require_same_data(request: RunRequest, earlier: RunResult, origins: tuple[str, ...]) -> None:
    """Refuse to go on with a run that was made of other data."""
    if earlier.data and earlier.data != origins:
        there = [line for line in earlier.data if line not in origins]
        now = [line for line in origins if line not in earlier.data]
        remedy = "its files have changed since;" if request.sources else "give that data with --data, or"
        raise InputError(
            f"{request.out} holds a run on other data ({'; '.join(there)} there, {'; '.join(now)} now); "
            f"{remedy} choose another folder with --out"
        )


def _take_up(prepared: Prepared) -> None:
    """Load the network of an earlier run of the same folder."""
    assert prepared.request.out is not None
    checkpoint, earlier = prepared.request.out / CHECKPOINT, prepared.result
    folder = prepared.request.out
    if not earlier.scores and not checkpoint.exists():
        return
    try:
        learned = prepared.method.load(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; or remove {folder} and run again") from error
    known = tuple(task.name for task in earlier.tasks)
    ahead = len(learned) - len(earlier.scores)
    if learned != known[: len(learned)] or ahead not in (0, 1):
        raise CheckpointError(f"{checkpoint} does not belong to {folder / RESULT}; remove {folder} and start again")
    if ahead:  # the run was stopped after writing the network and before writing that task's row
        _record(prepared, TaskHistory(), seconds=0.0)


def run(prepared: Prepared) -> Iterator[Event]:
    """Learn the tasks that are left; after each one everything is written to the folder.

    Yields:
        What happens, for whoever wants to show it. Stopping the iteration, or interrupting it, keeps finished tasks.

    Raises:
        TrainingError: the loss is not a number; finished tasks are kept.
        CheckpointError: something could not be written; finished tasks are kept.
    """
    method, stream, training = prepared.method, prepared.stream, prepared.config.training
    ranks = prepared.request.ranks
    out = prepared.request.out if ranks.rank == 0 else None
    ranks.wait()  # all have read what the folder holds
    if out is not None and not prepared.result.scores:
        write_result(out / RESULT, prepared.result)
    for index in range(len(prepared.result.scores), len(stream)):
        task = stream[index]
        started = time.perf_counter()
        history = TaskHistory()
        yield TaskBegun(index, prepared.result.tasks[index], sum(method.phases(training.epochs)))
        method.begin_task(task)
        if method.trains:
            for event in fit(method, stream[: index + 1], training, ranks):
                if isinstance(event, EpochDone):
                    history = history.with_epoch(event, method.usage())
                yield event
        method.end_task(task)
        if out is not None:
            method.save(out / CHECKPOINT)
        _record(prepared, history, time.perf_counter() - started)
        yield TaskLearned(index, prepared.result)


def last_logits(prepared: Prepared, learned: int) -> dict[str, Tensor]:
    """Test logits of the first ``learned`` tasks by name, the method run on each."""
    batch_size = prepared.config.training.eval_batch_size
    tasks = prepared.stream[:learned]
    return {task.name: predict_split(prepared.method, task.test, task.name, batch_size) for task in tasks}


def score_row(prepared: Prepared, logits: Mapping[str, Tensor]) -> tuple[Score, ...]:
    """The scores of test logits, by name of the task."""
    tasks = prepared.stream[: len(logits)]
    return tuple(score(logits[task.name], task.test.labels) for task in tasks)


def _record(prepared: Prepared, history: TaskHistory, seconds: float) -> None:
    """Test on all tasks learned, and write the logits and the result."""
    logits = last_logits(prepared, len(prepared.result.scores) + 1)
    capacity, reuse = prepared.method.capacity(), prepared.method.reuse()
    history = replace(history, capacity=None if capacity is None else dataclasses.asdict(capacity))
    shares = None if reuse is None else tuple(tuple(round(share, 5) for share in row) for row in reuse.tolist())
    row = score_row(prepared, logits)
    for task, of_task in zip(prepared.result.tasks, row, strict=False):
        require_finite(of_task.loss, "test loss", task.name)
    here = describe_environment(prepared.request.device)
    prepared.result = replace(prepared.result.with_row(row, history, round(seconds, 3), shares), environment=here)
    out = prepared.request.out
    if out is not None and prepared.request.ranks.rank == 0:
        write_checkpoint(out / LOGITS, Checkpoint(logits, {"format": LOGITS_FORMAT}))
        write_result(out / RESULT, prepared.result)


def _earlier_result(request: RunRequest, config: Config) -> RunResult | None:
    """What the folder holds of the same run, or None.

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
            raise InputError(f"{request.out} holds a {CHECKPOINT} but no {RESULT}; choose another folder with --out")
        return None
    earlier = read_result(request.out / RESULT)
    wanted = {"experiment": request.experiment, "method": request.method, "seed": request.seed, **config.flat()}
    found = {"experiment": earlier.experiment, "method": earlier.method, "seed": earlier.seed, **earlier.config}
    differing = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    now = describe_environment(request.device)
    for key in ("threads", "device"):
        if earlier.environment.get(key) != now[key]:
            differing.append(key)
            found[key], wanted[key] = earlier.environment.get(key), now[key]
    if differing:
        changes = ", ".join(f"{key} ({found.get(key)} there, {wanted.get(key)} now)" for key in differing)
        raise InputError(f"{request.out} holds a run with other settings: {changes}; choose another folder with --out")
    return earlier
