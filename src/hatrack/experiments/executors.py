"""Places where runs are carried out: processes of this machine, a Dask cluster, or Slurm."""

from __future__ import annotations

import importlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hatrack.errors import InputError
from hatrack.experiments.folder import RESULT
from hatrack.experiments.jobs import Job, JobAdvanced, JobBegun, JobDone, JobEvent, JobFailed, decode, encode

__all__ = ["DaskExecutor", "Executor", "LocalExecutor", "SlurmExecutor"]


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
"""Times of the last writing of results, by folder; None where there are none."""


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
        return JobFailed(job, f"{engine} could not carry it out: {_in_short(error)}")
    if isinstance(outcome, JobDone) and job.share_on_disk() < 1.0:
        return JobFailed(job, f"it finished elsewhere, but {job.folder} is not there; use a shared folder")
    return outcome


def _in_short(error: Exception) -> str:
    """Return the first line of what an error says, or what kind of error it is where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def optional_module(name: str, extra: str) -> Any:
    """A module that only an extra brings.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"this needs {name}, which is not installed: pip install 'hatrack[{extra}]'") from error


class Child:
    """A process that carries out one job after the other, see :mod:`hatrack.experiments.worker`.

    Args:
        threads: CPU threads that the libraries in it may use.
    """

    def __init__(self, threads: int) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hatrack.experiments.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, **dict.fromkeys(libraries, str(threads))},
            start_new_session=True,  # Ctrl-C is for the parent, which then stops its children
        )

    @property
    def alive(self) -> bool:
        """Return whether it can take another job."""
        return self._process.poll() is None

    def execute(self, job: Job) -> Iterator[JobAdvanced | JobDone | JobFailed]:
        """Have a job carried out; the last event says what came of it, also if the process dies."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(job.to_json() + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                if not line.endswith("\n"):  # it died while it wrote
                    break
                event = decode(job, line)
                yield event
                if not isinstance(event, JobAdvanced):
                    return
        except BrokenPipeError:
            pass
        yield JobFailed(job, self._epitaph(self._process.wait()))

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:
                pass  # what was still to be written to a dead process

    def _epitaph(self, code: int) -> str:
        if code < 0:
            known = {each.value: each.name for each in signal.Signals}
            name = known.get(-code, f"signal {-code}")
            return f"its process was killed ({name}); if memory was short, try fewer at a time (`workers=1`)"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with code {code}" + (f": {lines[-1]}" if lines else "")


def run_in_child(text: str) -> str:
    """Carry out a job in a process of its own and wait for it: what engines call on other machines.

    Args:
        text: the job's JSON.

    Returns:
        How it ended, as JSON.
    """
    job = Job.from_json(text)
    child = Child(job.threads)
    try:
        *_, end = child.execute(job)
    finally:
        child.stop()
    return encode(end)


_LOOK_UP = 0.5
"""Seconds after which waiting for news is interrupted, since Ctrl-C cannot interrupt it everywhere."""


@dataclass(frozen=True)
class LocalExecutor:
    """Carries out runs in some processes of this machine.

    Attributes:
        workers: how many processes, at least 1.
    """

    workers: int

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"`workers` must be at least 1, not {self.workers}")

    def execute(self, jobs: Sequence[Job]) -> Generator[JobEvent, None, None]:
        """Carry out jobs; a process that dies takes its job with it, and another one goes on with the next."""
        crew = _Crew()
        with ThreadPoolExecutor(min(self.workers, len(jobs))) as threads:
            try:
                for job in jobs:
                    threads.submit(crew.work, job)
                ended = 0
                while ended < len(jobs):
                    try:
                        news = crew.news.get(timeout=_LOOK_UP)
                    except queue.Empty:
                        continue
                    if isinstance(news, BaseException):
                        raise news
                    ended += isinstance(news, (JobDone, JobFailed))
                    yield news
            finally:
                crew.stop()
                threads.shutdown(cancel_futures=True)


class _Crew:
    """Processes, each of which takes one job after the other, and what is heard of them."""

    def __init__(self) -> None:
        self.news: queue.SimpleQueue[JobEvent | BaseException] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._children: list[Child] = []
        self._idle: list[Child] = []
        self._stopped = False

    def work(self, job: Job) -> None:
        """Have a process carry out a job."""
        try:
            child = self._take(job.threads)
            self.news.put(JobBegun(job))
            for event in child.execute(job):
                self.news.put(event)
            self._idle.append(child)
        except BaseException as error:  # for the thread that can tell somebody
            self.news.put(error)

    def stop(self) -> None:
        """End all processes, and start no more."""
        with self._lock:
            self._stopped = True
            for child in self._children:
                child.stop()

    def _take(self, threads: int) -> Child:
        """Return a process that has nothing to do, or a new one."""
        with self._lock:
            if self._stopped:
                raise CancelledError
            while self._idle:
                if (child := self._idle.pop()).alive:
                    return child
            self._children.append(Child(threads))
            return self._children[-1]


@dataclass(frozen=True)
class DaskExecutor:
    """Carries out runs on the workers of a Dask cluster, which must see the same folders as this machine.

    A worker takes as many runs at a time as it has threads; each is a process of its own, since random numbers and
    numbers of threads belong to a process. If a worker dies, Dask gives its runs to another one, which goes on after
    the last finished task.

    Attributes:
        scheduler: the scheduler's address, such as ``tcp://host:8786``.
        patience: seconds to wait for the scheduler.
        pause: seconds between two looks at how far runs are.
    """

    scheduler: str
    patience: float = 10.0
    pause: float = 1.0

    def execute(self, jobs: Sequence[Job]) -> Generator[JobEvent, None, None]:
        """Carry out jobs; closing the generator takes back those that have not begun, the others go on to their end.

        Raises:
            InputError: distributed is not installed, or no scheduler answers.
        """
        distributed = optional_module("distributed", "dask")
        try:
            client = distributed.Client(self.scheduler, timeout=self.patience, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(f"no Dask scheduler answers at {self.scheduler} ({_in_short(error)})") from error
        with client:
            seen = stamps(jobs)
            waiting = [(client.submit(run_in_child, job.to_json(), pure=False), job) for job in jobs]
            try:
                yield from follow(waiting, seen, "Dask", self.pause)
            finally:
                client.cancel([future for future, _ in waiting])


@dataclass(frozen=True)
class SlurmExecutor:
    """Submits every run as a job of Slurm, by submitit; all machines must see the same folders.

    Attributes:
        logs: folder for the jobs' own files.
        workers: how many runs at a time; None leaves that to Slurm.
        options: options of the jobs by submitit's names, such as ``slurm_partition`` or ``timeout_min``.
        cluster: what submitit submits to; ``local`` tries everything out on this machine, without Slurm.
        pause: seconds between two looks at how far runs are.
    """

    logs: Path
    workers: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    cluster: str = "slurm"
    pause: float = 2.0

    def execute(self, jobs: Sequence[Job]) -> Generator[JobEvent, None, None]:
        """Carry out jobs; closing the generator cancels those that are left.

        Raises:
            InputError: submitit or Slurm is not there, or an option does not exist.
        """
        submitit = optional_module("submitit", "slurm")
        seen = stamps(jobs)
        try:
            engine = submitit.AutoExecutor(folder=self.logs, cluster=self.cluster)
            engine.update_parameters(name="hatrack", cpus_per_task=max(job.threads for job in jobs))
            if self.workers is not None:
                engine.update_parameters(slurm_array_parallelism=self.workers)
            engine.update_parameters(**self.options)
            with engine.batch():
                submitted = [engine.submit(run_in_child, job.to_json()) for job in jobs]
        except (RuntimeError, NameError, ValueError, TypeError, OSError) as error:
            raise InputError(f"Slurm does not take the jobs: {_in_short(error)}") from error
        waiting = list(zip(submitted, jobs, strict=True))
        try:
            yield from follow(waiting, seen, "Slurm", self.pause)
        finally:
            for handle, _ in waiting:
                handle.cancel()
