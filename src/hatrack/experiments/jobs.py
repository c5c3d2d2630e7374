"""A run as a job for some worker, and what is heard of it."""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hatrack.environment import deterministic_cuda
from hatrack.errors import CheckpointError, HatrackError
from hatrack.experiments.folder import RESULT, forget_training
from hatrack.experiments.preparing import finished_result, prepare
from hatrack.experiments.request import RunRequest
from hatrack.experiments.results import Status, read_result
from hatrack.experiments.running import TaskBegun, TaskLearned, run
from hatrack.locks import locked
from hatrack.train import BatchDone, EpochDone

__all__ = ["Job", "JobAdvanced", "JobBegun", "JobDone", "JobEvent", "JobFailed", "carry_out", "decode", "share_on_disk"]

_EVERY = 0.5
"""Seconds between two messages about one run."""


@dataclass(frozen=True)
class Job:
    """A run to be carried out somewhere.

    Attributes:
        request: the run; it has a folder.
        threads: number of CPU threads, part of what makes test logits reproducible.
    """

    request: RunRequest
    threads: int = 1

    @property
    def folder(self) -> Path:
        """The run's folder."""
        assert self.request.out is not None
        return self.request.out

    @property
    def name(self) -> str:
        """The run in a few words."""
        return f"{self.request.method} seed {self.request.seed}"

    def to_json(self) -> str:
        """One line that :meth:`from_json` reads, on any machine that sees the same folders."""
        request = self.request
        return json.dumps(
            {
                "experiment": request.experiment,
                "method": request.method,
                "seed": request.seed,
                "out": str(self.folder.absolute()),
                "data": None if request.data is None else str(request.data.absolute()),
                "overrides": dict(request.overrides),
                "device": request.device.type,
                "sources": [str(path.absolute()) for path in request.sources],
                "threads": self.threads,
            }
        )

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
    match event:
        case JobAdvanced():
            return json.dumps({"share": event.share})
        case JobDone():
            return json.dumps({"done": True})
        case JobFailed():
            return json.dumps({"error": event.error})


def decode(job: Job, line: str) -> JobAdvanced | JobDone | JobFailed:
    """Read the line that a worker writes about a job."""
    data: dict[str, Any] = json.loads(line)
    if "share" in data:
        return JobAdvanced(job, float(data["share"]))
    return JobFailed(job, str(data["error"])) if "error" in data else JobDone(job)


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
        with locked(job.folder, math.inf):
            if finished_result(request) is None:
                for share in _seldom(_shares(request)):
                    yield JobAdvanced(job, share)
            else:
                forget_training(job.folder)  # left where a process was killed just before its end
        yield JobDone(job)
    except HatrackError as error:
        yield JobFailed(job, str(error))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        yield JobFailed(job, f"{type(error).__name__}: {error}")


def _shares(request: RunRequest) -> Iterator[float]:
    prepared = prepare(request)
    tasks = len(prepared.result.tasks)
    index, epochs, max_epochs = 0, 0, 1
    for event in run(prepared):
        match event:
            case TaskBegun():
                index, epochs, max_epochs = event.index, event.epochs, max(1, event.max_epochs)
                yield (index + min(1.0, epochs / max_epochs)) / tasks
            case BatchDone():
                yield (index + min(1.0, (epochs + event.done / event.total) / max_epochs)) / tasks
            case EpochDone():
                epochs += 1
            case TaskLearned():
                yield (event.index + 1) / tasks


def _seldom(shares: Iterator[float]) -> Iterator[float]:
    """Some of many numbers: as many as somebody can look at."""
    last = -math.inf
    for share in shares:
        if time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            yield share


def share_on_disk(job: Job) -> float:
    """Return the share of a job's tasks that its folder holds; 0 where nothing can be read."""
    try:
        result = read_result(job.folder / RESULT)
    except CheckpointError:
        return 0.0
    return 1.0 if result.status is Status.FINISHED else len(result.scores) / len(result.tasks)
