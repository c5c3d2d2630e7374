"""Runs as jobs of Slurm."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hatrack.errors import InputError
from hatrack.experiments.executors.base import follow, optional_module, stamps
from hatrack.experiments.executors.child import run_in_child
from hatrack.experiments.jobs import Job, JobEvent

__all__ = ["SlurmExecutor"]


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
            raise InputError(f"Slurm does not take the jobs: {str(error).splitlines()[0]}") from error
        waiting = list(zip(submitted, jobs, strict=True))
        try:
            yield from follow(waiting, seen, "Slurm", self.pause)
        finally:
            for handle, _ in waiting:
                handle.cancel()
