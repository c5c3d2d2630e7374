"""Carrying out a comparison: the runs that its folder does not hold yet."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hatrack.errors import InputError
from hatrack.experiments.comparison import FIGURES, Comparison, write_failure
from hatrack.experiments.executors import Executor
from hatrack.experiments.folder import RESULT
from hatrack.experiments.jobs import Job, JobDone, JobEvent, JobFailed
from hatrack.experiments.plan import PLAN, ComparisonPlan, read_plan, run_folder, write_plan
from hatrack.experiments.request import RunRequest
from hatrack.storage.checked_json import write_checked_json
from hatrack.storage.locks import locked
from hatrack.support.environment import describe_environment

__all__ = ["SUMMARY", "compare", "execute_recorded", "jobs_of", "write_summary"]

SUMMARY = "summary.json"
"""The file at the top of the folder that holds the figures of every run and their means."""

_PATIENCE = 5.0
"""Seconds to wait for a comparison that is just ending."""


def jobs_of(
    plan: ComparisonPlan,
    folder: Path,
    *,
    data: Path | None = None,
    device: torch.device | None = None,
    threads: int = 1,
) -> tuple[Job, ...]:
    """Every run of a plan, finished or not, all methods of the first seed first.

    Args:
        plan: which runs.
        folder: the comparison's folder.
        data: folder to look for data in first.
        device: where to train; the CPU by default.
        threads: CPU threads of every run.
    """
    request = RunRequest(plan.experiment, "", data=data, sources=plan.sources)
    request = replace(request, device=device or request.device)
    found = []
    for seed in plan.seeds:
        for method in plan.methods:
            at, overrides = run_folder(folder, method, seed), plan.overrides(method)
            found.append(Job(replace(request, method=method, seed=seed, out=at, overrides=overrides), threads))
    return tuple(found)


def compare(
    plan: ComparisonPlan, folder: Path, jobs: Sequence[Job], executor: Executor
) -> Generator[JobEvent, None, None]:
    """Carry out the jobs of a plan that are not finished, and keep everything in the folder.

    The folder may hold a comparison already, interrupted or finished; methods and seeds are added to it. Runs that
    failed are tried again.

    Args:
        plan: which runs.
        folder: the comparison's folder.
        jobs: its jobs, see :func:`jobs_of`.
        executor: where to carry them out.

    Yields:
        What happens. Closing the generator stops the workers; finished tasks are kept.

    Raises:
        InputError: the folder holds something else, or runs with other settings, or is in use.
        CheckpointError: the folder's plan is damaged.
    """
    if (folder / RESULT).exists():
        raise InputError(f"{folder} holds a single run; choose another folder (`out`)")
    with locked(folder, _PATIENCE):
        whole = plan.joined(read_plan(folder)[0]) if (folder / PLAN).exists() else plan
        # The device's name is in every run: other machines may have one that this one has not.
        on = {"threads": jobs[0].threads, "device": jobs[0].request.device.type}
        write_plan(folder, whole, {**describe_environment(), **on})
        yield from execute_recorded(jobs, executor)
        write_summary(folder)


def execute_recorded(jobs: Sequence[Job], executor: Executor) -> Generator[JobEvent, None, None]:
    """Carry out those jobs that are not finished; a failure is written to its run's folder."""
    left = [job for job in jobs if job.finished() is None]
    for job in jobs:
        if job not in left:  # if it failed before, it was finished by other means since
            write_failure(job.folder, None)
    if not left:
        return
    with closing(executor.execute(left)) as events:
        for event in events:
            match event:
                case JobFailed():
                    write_failure(event.job.folder, event.error)
                case JobDone():
                    write_failure(event.job.folder, None)
            yield event


def write_summary(folder: Path) -> None:
    """Write what a comparison has found so far: for every method the figures by seed, their mean and deviation."""
    comparison = Comparison.read(folder)
    methods = {}
    for method in comparison.methods:
        row: dict[str, Any] = {}
        for figure in FIGURES:
            found = comparison.spread(method, figure)
            row[figure] = {
                "mean": None if found is None else found.mean,
                "sd": None if found is None else found.sd,
                "by_seed": {str(seed): value for seed, value in comparison.figures(method, figure).items()},
            }
        row["failures"] = {str(s): error for (m, s), error in comparison.failures.items() if m == method}
        methods[method] = row
    write_checked_json(folder / SUMMARY, {"schema": 1, "experiment": comparison.experiment, "methods": methods})
