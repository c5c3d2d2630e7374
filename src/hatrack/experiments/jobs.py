"""A run as a job for some worker, and what is heard of it."""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hatrack.errors import CheckpointError, HatrackError, InputError
from hatrack.experiments.continuing import (
    KnownTask,
    are_tasks_of,
    first_difference,
    of_lines,
    of_record,
    other_data,
    require_comparable,
    require_same_forms,
)
from hatrack.experiments.experiment import completed
from hatrack.experiments.folder import RESULT, RunFolder
from hatrack.experiments.preparing import Run
from hatrack.experiments.request import RunRequest
from hatrack.experiments.results import RunResult, read_result
from hatrack.experiments.running import TaskBegun, TaskLearned, run
from hatrack.experiments.settings import StreamSettings, changed
from hatrack.methods import Method, find_method, require_learnable
from hatrack.objectives import Classification
from hatrack.streams import Task
from hatrack.support.environment import deterministic_cuda
from hatrack.train import BatchDone

__all__ = [
    "Job",
    "JobAdvanced",
    "JobBegun",
    "JobDone",
    "JobEvent",
    "JobFailed",
    "beside_each_other",
    "carry_out",
    "decode",
    "require_learnable_by",
]

_EVERY = 0.5
"""Seconds between two messages about one run."""


@dataclass(frozen=True)
class Job:
    """A run to be carried out somewhere.

    Attributes:
        request: the run; it has a folder.
        threads: number of CPU threads, part of what makes test logits reproducible.
        tasks: of one's own tasks, those that the run is to have; None where nobody has looked at their files.
        data: lines about the data that the runs beside it see, or have seen; a worker that finds other data does not
            train. What it does not name may be any.
    """

    request: RunRequest
    threads: int = 1
    tasks: tuple[KnownTask, ...] | None = field(default=None, compare=False, repr=False)
    data: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        assert self.request.out is not None
        return self.request.out

    @property
    def name(self) -> str:
        """The run in a few words."""
        return f"{self.request.method} seed {self.request.seed}"

    def recorded(self) -> RunResult | None:
        """Read the results that the job's folder holds; None where there are none, or damaged ones."""
        try:
            return read_result(self.folder / RESULT)
        except CheckpointError:
            return None

    def finished(self) -> RunResult | None:
        """Read the results of the whole run; None if it is not finished, or one on other data or fewer tasks.

        What is damaged, or has changed, the run itself will say.
        """
        recorded = self.recorded()
        if recorded is None or not recorded.is_whole:
            return None
        return recorded if self.tasks is None or are_tasks_of(recorded, self.tasks) else None

    def share_on_disk(self) -> float:
        """Return the share of the run's tasks that its folder holds; 0 where nothing can be read."""
        recorded = self.recorded()
        return 0.0 if recorded is None else len(recorded.scores) / len(recorded.tasks)

    def to_json(self) -> str:
        """One line that :meth:`from_json` reads, on any machine that sees the same folders."""
        request = self.request
        content = {key: getattr(request, key) for key in ("experiment", "method", "seed")}
        content["out"] = str(self.folder.absolute())
        content["data"] = None if request.data is None else str(request.data.absolute())
        content["sources"] = [str(path.absolute()) for path in request.sources]
        content |= {"overrides": dict(request.overrides), "device": request.device.type, "threads": self.threads}
        content["expected"] = self.data
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The job of a line of :meth:`to_json`."""
        data: dict[str, Any] = json.loads(text)
        threads, expected = data.pop("threads"), tuple(data.pop("expected"))
        out, folder = Path(data.pop("out")), data.pop("data")
        data["data"] = None if folder is None else Path(folder)
        sources = tuple(map(Path, data.pop("sources")))
        device = torch.device(data.pop("device"))
        return cls(RunRequest(**data, out=out, device=device, sources=sources), threads, data=expected)


def beside_each_other(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Prepare jobs whose runs are to be compared: all with the same defaults, and on the same data.

    Their data is looked at, once for all. Runs that folders hold already are not made again, and so
    they have to be those that would be made now.

    Args:
        jobs: the jobs, all on the same experiment.

    Raises:
        InputError: a folder holds a run with other settings or on other data, or runs of one method have the defaults
            of several versions; or one's own files do not exist.
        DataError: a file of one's own tasks cannot be opened.
    """
    alike = _with_recorded_defaults(jobs)
    found = _with_present_data(alike)
    records = [(job, recorded) for job in found if (recorded := job.recorded()) is not None]
    for job, recorded in records:
        _require_same_settings(job, recorded)
        if job.tasks is None:
            require_same_forms(job.folder, recorded, job.data)
        elif (difference := first_difference(of_record(recorded)[: len(recorded.scores)], job.tasks)) is not None:
            remedy = f"{difference.remedy} " if difference.remedy else ""
            raise InputError(f"{job.folder} holds a run {difference.what}; {remedy}choose another folder (`out`)")
    require_comparable((job.folder, recorded) for job, recorded in records)
    if any(job.tasks is not None for job in found):
        return found
    seen = dict.fromkeys(line for _, recorded in records for line in recorded.data)
    return tuple(replace(job, data=tuple(dict.fromkeys((*seen, *job.data)))) for job in found)


def require_learnable_by(jobs: Sequence[Job]) -> None:
    """Refuse methods that cannot learn the tasks, before anything is trained; runs that have begun are left out.

    One's own files are read where a method is among them that does not learn every kind of task. A preset has tasks of
    classes, and its data is not looked at.

    Args:
        jobs: the jobs, all on the same experiment.

    Raises:
        InputError: a method cannot learn a task, or one's own files and the settings do not go together.
        DataError: a file of one's own tasks cannot be read.
    """
    known: dict[StreamSettings, tuple[Task, ...]] = {}
    refused: dict[str, InputError] = {}
    for job in jobs:
        request, kind = job.request, find_method(job.request.method)
        picky = kind.objectives != Method.objectives or kind.learns.__func__ is not Method.learns.__func__  # type: ignore[attr-defined]
        if not picky or request.method in refused or job.recorded() is not None:
            continue
        subject = request.described()
        settings = replace(subject.config(request.method).overridden(request.overrides).stream, infer=False)
        if subject.own is None:
            if settings.weights is not None and not kind.learns(WEIGHTED):
                refused[request.method] = InputError(
                    f"{request.method} cannot learn with class weights; leave out `class_weights`, or the method"
                )
            continue
        if settings not in known:
            known[settings] = tuple(subject.stream_of(settings, seed=request.seed, data_dir=request.data))
        try:
            require_learnable(kind, known[settings])
        except InputError as error:
            refused[request.method] = error
    if len(refused) > 1:
        first = next(iter(refused.values()))
        raise InputError(f"{', '.join(refused)} cannot learn these tasks; leave them out (`methods`): {first}")
    for refusal in refused.values():
        raise refusal


WEIGHTED = Classification(("rare", "common"), (2.0, 1.0))
"""Kind of the tasks of a preset where classes have weights."""


def _with_present_data(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Look at the data that jobs would find now, once for all of them."""
    known: dict[int | None, tuple[tuple[str, ...], tuple[KnownTask, ...] | None]] = {}
    found = []
    for job in jobs:
        request = job.request
        described = request.described()
        own, settings = described.own, described.config(request.method).overridden(request.overrides)
        key = None if own is None else settings.stream.num_tasks
        if key not in known:
            lines = described.find_data(request.data, key)
            known[key] = lines, None if own is None else of_lines(lines)
        lines, tasks = known[key]
        found.append(replace(job, data=lines, tasks=tasks))
    return tuple(found)


def _require_same_settings(job: Job, recorded: RunResult) -> None:
    """Refuse to take a run for that of a job which has other settings; one that has forgotten a task is over anyway."""
    if recorded.forgotten or recorded.forgetting is not None:
        return
    request = job.request
    wanted: dict[str, Any] = {"experiment": request.described().name, "method": request.method, "seed": request.seed}
    if recorded.sources and request.sources:
        del wanted["experiment"]  # named after its files, which are compared with their contents
    found = {key: getattr(recorded, key) for key in wanted}
    versions = [wanted]
    if recorded.method == request.method:
        experiment = request.described()
        found |= completed(recorded.method, recorded.config)
        configs = (experiment.config(request.method), *experiment.earlier_configs(request.method))
        versions = [{**wanted, **config.overridden(request.overrides).flat()} for config in configs]
    if changes := changed(found, *versions):
        raise InputError(
            f"{job.folder} holds a run with other settings: {changes}; choose another folder (`out`), or remove it"
        )


def _with_recorded_defaults(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Give all jobs of a method the defaults of an earlier version, if that has begun some of them.

    Runs of one method are compared with each other, and so all of them have to be made alike.

    Raises:
        InputError: runs of a method have the defaults of several versions.
    """
    defaults: dict[str, list[dict[str, Any]]] = {}  # by method, how those of versions differ from those of now
    for job in jobs:
        request, recorded = job.request, job.recorded()
        if recorded is None or recorded.method != request.method:
            continue
        experiment, found = request.described(), completed(request.method, recorded.config)
        now = experiment.config(request.method)
        for config in (now, *experiment.earlier_configs(request.method)):
            if found == config.overridden(request.overrides).flat():
                known, present = defaults.setdefault(request.method, []), now.flat()
                changes = {key: value for key, value in config.flat().items() if value != present[key]}
                known += [] if changes in known else [changes]
                break
    for method, versions in defaults.items():
        if len(versions) > 1:
            said = [
                ", ".join(f"{key} was {value}" for key, value in changes.items()) for changes in versions if changes
            ]
            raise InputError(
                f"the folder holds runs of {method} with the defaults of several versions ({'; '.join(said)}), which "
                "cannot be compared; choose another folder (`out`)"
            )
    return tuple(
        replace(job, request=replace(job.request, overrides={**changes, **job.request.overrides}))
        for job in jobs
        for changes in defaults.get(job.request.method, [{}])
    )


@dataclass(frozen=True)
class JobBegun:
    """A worker has taken up a job."""

    job: Job


@dataclass(frozen=True)
class JobAdvanced:
    """A job is done to a share, in [0, 1]."""

    job: Job
    share: float


@dataclass(frozen=True)
class JobDone:
    """A run is finished and on disk."""

    job: Job


@dataclass(frozen=True)
class JobFailed:
    """A run cannot be finished; what it had learned before is on disk."""

    job: Job
    error: str


JobEvent = JobBegun | JobAdvanced | JobDone | JobFailed
"""Event of a job that an executor tells of."""


def encode(event: JobAdvanced | JobDone | JobFailed) -> str:
    """One line that :func:`decode` reads."""
    return json.dumps({key: value for key, value in vars(event).items() if key != "job"})


def decode(job: Job, line: str) -> JobAdvanced | JobDone | JobFailed:
    """Read the line that a worker writes about a job."""
    data: dict[str, Any] = json.loads(line)
    kind = JobAdvanced if "share" in data else JobFailed if "error" in data else JobDone
    return kind(job, **data)


def carry_out(job: Job) -> Iterator[JobAdvanced | JobDone | JobFailed]:
    """Make a run, or what is left of it, in this process.

    A lock on the run's folder makes it wait for another process that still works there, such as one on another machine
    whose comparison was interrupted. Errors end the run, not the process.

    Yields:
        How far it is, and last that it is done, or why it failed.
    """
    try:
        torch.set_num_threads(job.threads)
        request = job.request
        if request.device.type == "cuda":
            request = replace(request, device=deterministic_cuda())
        with RunFolder.alone(job.folder, math.inf) as folder:
            going = Run(request, folder)
            if going.finished is None:
                for share in _seldom(_shares(going, job.data)):
                    yield JobAdvanced(job, share)
            else:
                folder.forget_training()  # left where a process was killed just before its end
        yield JobDone(job)
    except HatrackError as error:
        yield JobFailed(job, str(error))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        yield JobFailed(job, f"{type(error).__name__}: {error}")


def _shares(going: Run, expected: Sequence[str]) -> Iterator[float]:
    going.prepare()
    if said := other_data(expected, going.stream.origins):
        raise InputError(
            f"the runs beside this one are on other data ({said}); give all of them the same (`data_dir`), on every "
            "machine"
        )
    tasks = len(going.result.tasks)
    index, epochs, max_epochs = 0, 0.0, 1
    for event in run(going):
        match event:
            case TaskBegun():
                index, epochs, max_epochs = event.index, event.epochs, max(1, event.max_epochs)
            case BatchDone():
                epochs = event.epoch - 1 + event.done / event.total
            case TaskLearned():
                epochs = max_epochs
        yield (index + min(1.0, epochs / max_epochs)) / tasks


def _seldom(shares: Iterator[float]) -> Iterator[float]:
    """Some of many numbers: as many as somebody can look at."""
    last = -math.inf
    for share in shares:
        if time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            yield share
