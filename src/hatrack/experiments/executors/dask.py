"""Runs on a Dask cluster."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from hatrack.errors import InputError
from hatrack.experiments.executors.base import follow, optional_module, stamps
from hatrack.experiments.executors.child import run_in_child
from hatrack.experiments.jobs import Job, JobEvent

__all__ = ["DaskExecutor"]


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
        """Carry out jobs; closing the generator takes back those that have not begun, the others go on to their end."""
        distributed = optional_module("distributed", "dask")
        try:
            client = distributed.Client(self.scheduler, timeout=self.patience, set_as_default=False)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"no Dask scheduler answers at {self.scheduler} ({reason})") from error
        with client:
            seen = stamps(jobs)
            waiting = [(client.submit(run_in_child, job.to_json(), pure=False), job) for job in jobs]
            try:
                yield from follow(waiting, seen, "Dask", self.pause)
            finally:
                client.cancel([future for future, _ in waiting])
