"""Parts that all executors have in common."""

from __future__ import annotations

import importlib
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from hatrack.errors import InputError
from hatrack.experiments.folder import RESULT
from hatrack.experiments.jobs import Job, JobAdvanced, JobBegun, JobDone, JobEvent, JobFailed, decode

__all__ = ["Executor", "follow", "optional_module", "stamps"]


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


Stamps = dict[Path, int | None]
"""When the results in folders were written last; None where there are none."""


def stamps(jobs: Sequence[Job]) -> Stamps:
    """Return when the results of jobs were written last, to be asked before the jobs are handed over."""
    return {job.folder: _stamp(job) for job in jobs}


def _stamp(job: Job) -> int | None:
    try:
        return (job.folder / RESULT).stat().st_mtime_ns
    except OSError:
        return None


def follow(waiting: list[tuple[Any, Job]], seen: Stamps, engine: str, pause: float) -> Iterator[JobEvent]:
    """Yield what becomes of jobs that are carried out elsewhere, as their folders say, until there are none left.

    Args:
        waiting: the engine's handles, whose results are those of ``run_in_child``, and their jobs; those that have
            ended are taken out.
        seen: what :func:`stamps` gave before the jobs were handed over; it is kept up to date.
        engine: its name, for messages.
        pause: seconds between two looks.
    """
    begun = set()
    while waiting:
        ended = [pair for pair in waiting if pair[0].done()]
        for handle, job in ended:
            waiting.remove((handle, job))
            yield _outcome(handle, job, engine)
        for _, job in waiting:
            stamp = _stamp(job)
            if stamp != seen[job.folder]:
                seen[job.folder] = stamp
                if job.folder not in begun:
                    begun.add(job.folder)
                    yield JobBegun(job)
                yield JobAdvanced(job, job.share_on_disk())
        if not ended:
            time.sleep(pause)


def _outcome(handle: Any, job: Job, engine: str) -> JobEvent:
    try:
        outcome = decode(job, handle.result())
    except Exception as error:  # whatever became of it: out of time, out of memory, a broken machine
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return JobFailed(job, f"{engine} could not carry it out: {reason}")
    if isinstance(outcome, JobDone) and job.share_on_disk() < 1.0:
        return JobFailed(job, f"it finished elsewhere, but {job.folder} is not there; use a shared folder")
    return outcome


def optional_module(name: str, extra: str) -> Any:
    """A module that only an extra brings.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"this needs {name}, which is not installed: pip install 'hatrack[{extra}]'") from error
