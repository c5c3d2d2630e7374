"""What all executors have in common."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from hatrack.errors import InputError
from hatrack.experiments.folder import RESULT
from hatrack.experiments.jobs import Job, JobAdvanced, JobBegun, JobDone, JobEvent, JobFailed, share_on_disk

__all__ = ["DiskWatch", "Executor", "checked", "optional_module"]


class Executor(Protocol):
    """Carries out many runs."""

    def execute(self, jobs: Sequence[Job]) -> Generator[JobEvent, None, None]:
        """Carry out jobs, several at a time.

        Every job ends with a :class:`JobDone` or a :class:`JobFailed`, whatever becomes of the others. Closing the
        generator stops what is going on as far as the engine lets it; finished tasks stay on disk.

        Raises:
            InputError: the engine is not installed or cannot be reached.
        """
        ...


class DiskWatch:
    """How far runs are that are carried out elsewhere: read from their folders.

    Args:
        jobs: the jobs, before they are handed over.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._seen = {job.folder: _stamp(job) for job in jobs}
        self._begun: set[Path] = set()

    def news(self, job: Job) -> Iterator[JobEvent]:
        """What has been written since the last look."""
        stamp = _stamp(job)
        if stamp == self._seen[job.folder]:
            return
        self._seen[job.folder] = stamp
        if job.folder not in self._begun:
            self._begun.add(job.folder)
            yield JobBegun(job)
        yield JobAdvanced(job, share_on_disk(job))


def _stamp(job: Job) -> int | None:
    try:
        return (job.folder / RESULT).stat().st_mtime_ns
    except OSError:
        return None


def checked(end: JobDone | JobFailed) -> JobDone | JobFailed:
    """What came of a job on another machine, after a look at the folder that both should see."""
    if isinstance(end, JobDone) and share_on_disk(end.job) < 1.0:
        return JobFailed(end.job, f"it finished elsewhere, but {end.job.folder} is not there; use a shared folder")
    return end


def optional_module(name: str, extra: str) -> Any:
    """A module that only an extra brings.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"this needs {name}, which is not installed: pip install 'hatrack[{extra}]'") from error
