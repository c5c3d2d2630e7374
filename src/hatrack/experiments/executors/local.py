"""Runs in processes of this machine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass

from hatrack.errors import InputError
from hatrack.experiments.executors.child import Child
from hatrack.experiments.jobs import Job, JobBegun, JobDone, JobEvent, JobFailed

__all__ = ["LocalExecutor"]

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
