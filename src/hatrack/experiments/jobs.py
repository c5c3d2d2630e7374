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
from hatrack.experiments.continuing import KnownTask, are_tasks_of, of_own
from hatrack.experiments.experiment import completed
from hatrack.experiments.folder import RESULT, RunFolder
from hatrack.experiments.preparing import Run
from hatrack.experiments.request import RunRequest
from hatrack.experiments.results import RunResult, read_result
from hatrack.experiments.running import TaskBegun, TaskLearned, run
from hatrack.methods import METHODS
from hatrack.support.environment import deterministic_cuda
from hatrack.train import BatchDone

__all__ = [
    "Job",
    "JobAdvanced",
    "JobBegun",
    "JobDone",
    "JobEvent",
    "JobFailed",
    "carry_out",
    "decode",
    "with_known_tasks",
    "with_recorded_defaults",
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
    """

    request: RunRequest
    threads: int = 1
    tasks: tuple[KnownTask, ...] | None = field(default=None, compare=False, repr=False)

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
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The job of a line of :meth:`to_json`."""
        data: dict[str, Any] = json.loads(text)
        threads = data.pop("threads")
        out, folder = Path(data.pop("out")), data.pop("data")
        data["data"] = None if folder is None else Path(folder)
        sources = tuple(map(Path, data.pop("sources")))
        device = torch.device(data.pop("device"))
        return cls(RunRequest(**data, out=out, device=device, sources=sources), threads)


def with_known_tasks(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Look at the files of one's own tasks, once for all jobs, so that finished runs on other tasks are told.

    Raises:
        InputError, DataError: a file does not exist or cannot be opened.
    """
    known: dict[tuple[tuple[Path, ...], int | None], tuple[KnownTask, ...]] = {}
    found = []
    for job in jobs:
        request = job.request
        if (own := request.described().own) is not None:
            settings = request.described().config(request.method).overridden(request.overrides)
            key = (request.sources, settings.stream.num_tasks)
            if key not in known:
                known[key] = of_own(own, settings.stream.num_tasks)
            job = replace(job, tasks=known[key])
        found.append(job)
    return tuple(found)


def with_recorded_defaults(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Give all jobs of a method the defaults of an earlier version, if that has begun some of them.

    Runs of one method are compared with each other, and so all of them have to be made alike.

    Raises:
        InputError: some runs of a method have the defaults of an earlier version, others those of this one.
    """
    versions: dict[str, set[bool]] = {}
    changes: dict[str, dict[str, Any]] = {}
    for job in jobs:
        request, recorded = job.request, job.recorded()
        if recorded is None or recorded.method != request.method or METHODS[request.method].earlier is None:
            continue
        experiment = request.described()
        then, now = experiment.earlier_config(request.method), experiment.config(request.method)
        assert then is not None
        found = completed(request.method, recorded.config)
        for is_earlier, config in ((False, now), (True, then)):
            if found == config.overridden(request.overrides).flat():
                versions.setdefault(request.method, set()).add(is_earlier)
                break
        defaults = now.flat()
        changes[request.method] = {key: value for key, value in then.flat().items() if value != defaults[key]}
    for method, of in versions.items():
        if len(of) > 1:
            words = ", ".join(f"{key} was {value}" for key, value in changes[method].items())
            raise InputError(
                f"the folder holds runs of {method} with the defaults of this version and of an earlier one ({words}), "
                "which cannot be compared; choose another folder (`out`)"
            )
    return tuple(
        replace(job, request=replace(job.request, overrides={**changes[job.request.method], **job.request.overrides}))
        if True in versions.get(job.request.method, ())
        else job
        for job in jobs
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
                for share in _seldom(_shares(going)):
                    yield JobAdvanced(job, share)
            else:
                folder.forget_training()  # left where a process was killed just before its end
        yield JobDone(job)
    except HatrackError as error:
        yield JobFailed(job, str(error))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        yield JobFailed(job, f"{type(error).__name__}: {error}")


def _shares(going: Run) -> Iterator[float]:
    going.prepare()
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
