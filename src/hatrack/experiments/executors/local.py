"""Runs in processes of this machine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from hatrack.errors import InputError
from hatrack.experiments.executors.child import Child
from hatrack.experiments.jobs import Job, JobBegun, JobEvent

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
        crew = _Crew(jobs)
        threads = [threading.Thread(target=crew.work, daemon=True) for _ in range(min(self.workers, len(jobs)))]
        for thread in threads:
            thread.start()
        working = len(threads)
        try:
            while working:
                try:
                    news = crew.news.get(timeout=_LOOK_UP)
                except queue.Empty:
                    continue
                if isinstance(news, BaseException):
                    raise news
                if news is None:
                    working -= 1
                else:
                    yield news
        finally:
            crew.stop()
            for thread in threads:
                thread.join()


class _Crew:
    """What the threads share, each of which looks after one process."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.news: queue.SimpleQueue[JobEvent | BaseException | None] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            self._jobs.put(job)
        self._lock = threading.Lock()
        self._children: list[Child] = []
        self._stopped = False

    def work(self) -> None:
        """Take jobs until there are no more; ``None`` is the last news of a thread."""
        child: Child | None = None
        try:
            while not self._stopped:
                job = self._jobs.get_nowait()
                if child is None or not child.alive:
                    child = self._start(job.threads)
                if child is None:
                    return
                self.news.put(JobBegun(job))
                for event in child.execute(job):
                    self.news.put(event)
        except queue.Empty:
            pass
        except BaseException as error:  # for the thread that can tell somebody
            self.news.put(error)
        finally:
            self.news.put(None)

    def stop(self) -> None:
        """End all processes, and start no more."""
        with self._lock:
            self._stopped = True
            for child in self._children:
                child.stop()

    def _start(self, threads: int) -> Child | None:
        with self._lock:
            if self._stopped:
                return None
            self._children.append(Child(threads))
            return self._children[-1]
