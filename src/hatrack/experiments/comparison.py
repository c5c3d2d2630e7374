"""Many runs side by side: making those that the folder of a comparison lacks, and reading what it holds."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hatrack.errors import CheckpointError, InputError
from hatrack.experiments.continuing import are_tasks_of, require_comparable, require_same_samples
from hatrack.experiments.executors import Executor
from hatrack.experiments.folder import PLAN, RESULT, require_alone
from hatrack.experiments.jobs import (
    Job,
    JobDone,
    JobEvent,
    JobFailed,
    beside_each_other,
    require_learnable_by,
)
from hatrack.experiments.plan import JOINT, REFERENCES, ComparisonPlan, read_plan, run_folder, write_plan
from hatrack.experiments.request import RunRequest
from hatrack.experiments.results import RunResult, read_result
from hatrack.experiments.statistics import Spread, spread
from hatrack.functional import forgetting_ratio
from hatrack.objectives import Metric, common_metric
from hatrack.storage.checked_json import read_checked_json, write_checked_json
from hatrack.storage.locks import locked
from hatrack.support.environment import describe_environment
from hatrack.support.names import unknown_name
from hatrack.support.notebook import html_table

__all__ = [
    "FAILURE",
    "FIGURES",
    "SUMMARY",
    "Comparison",
    "compare",
    "execute_recorded",
    "jobs_of",
    "read_failure",
    "write_failure",
]

FAILURE = "failure.json"
"""The file in a run's folder that says why the run failed."""

FIGURES = (
    *("average_accuracy", "average_score", "forgetting", "backward_transfer", "forgetting_ratio"),
    *("class_incremental_accuracy", "task_recognised"),
)
"""Figures that a comparison gives for every run, after its last task."""


@dataclass(frozen=True)
class Comparison:
    """A comparison as its folder holds it.

    Attributes:
        plan: which runs belong to it.
        results: the runs that have begun, by method and seed.
        failures: why runs failed, by method and seed; a failed run may have a result up to where it failed.
        environment: what the comparison was started with.
    """

    plan: ComparisonPlan
    results: Mapping[tuple[str, int], RunResult]
    failures: Mapping[tuple[str, int], str]
    environment: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Comparison:
        """Read the folder of a comparison; nothing is written, and runs may be going on.

        A run whose file is damaged counts as failed.

        Raises:
            InputError: the folder holds no comparison, or runs on different data, or, of an earlier version, runs whose
                settings chose different samples.
            CheckpointError: the plan is damaged, or from a newer version.
        """
        if not (folder / PLAN).exists():
            raise InputError(f"{folder} holds no {PLAN}; give the folder of a comparison (`compare`)")
        plan, environment = read_plan(folder)
        results, failures = {}, {}
        for method in plan.methods:
            for seed in plan.seeds:
                place = run_folder(folder, method, seed)
                failure = read_failure(place)
                if failure is not None:
                    failures[method, seed] = failure
                try:
                    if (place / RESULT).exists():
                        results[method, seed] = read_result(place / RESULT)
                except CheckpointError as error:  # one bad file is no reason to lose sight of the other runs
                    failures[method, seed] = str(error)
        found = [(run_folder(folder, *key), result) for key, result in results.items()]
        require_comparable(found)
        require_same_samples(found)
        return cls(plan, results, failures, environment)

    def _repr_html_(self) -> str:
        metric, missing = self.metric, len(self.missing)
        figures = ("average_score", "forgetting", "forgetting_ratio") if metric is not None else ()
        rows = []
        for method in self.methods:
            spreads = [self.spread(method, figure) for figure in figures]
            finished = sum(self.run(method, seed) is not None for seed in self.seeds)
            of_score = None if metric is None or not metric.is_share else metric.say
            forms = (of_score, of_score, "{:.3f}".format)[: len(figures)]
            said = [None if each is None else each.say(form) for each, form in zip(spreads, forms, strict=True)]
            rows.append((method, f"{finished} of {len(self.seeds)}", *said))
        notes = [f"{method}, seed {seed}, failed: {why}" for (method, seed), why in self.failures.items()]
        title = f"{self.plan.subject}: {len(self.methods) * len(self.seeds) - missing} runs finished, {missing} to go"
        head = ("method", "runs", *(figure.replace("_", " ") for figure in figures))
        return html_table(title, head, rows, notes)

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return self.plan.experiment

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, the references included."""
        return self.plan.methods

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return self.plan.seeds

    def run(self, method: str, seed: int) -> RunResult | None:
        """The finished run of a method and seed; None if it is not finished, or failed, or has forgotten a task.

        One that has learned all its tasks is not finished where others go on with further ones.

        Raises:
            InputError: the comparison has no such method or seed.
        """
        if method not in self.methods:
            raise unknown_name("method", method, self.methods)
        if seed not in self.seeds:
            raise unknown_name("seed", str(seed), map(str, self.seeds))
        result = self.results.get((method, seed))
        return result if result is not None and result.is_whole and len(result.tasks) == self._tasks else None

    @property
    def _tasks(self) -> int:
        """Return the number of tasks that runs have in the end."""
        return max((len(result.tasks) for result in self.results.values() if not result.forgotten), default=0)

    @property
    def metric(self) -> Metric | None:
        """Metric of all tasks; None where they have different ones, or no run has begun."""
        return common_metric(tuple({metric for run in self.results.values() for metric in (run.metric,) if metric}))

    @property
    def missing(self) -> tuple[tuple[str, int], ...]:
        """Method and seed of every run that is not finished."""
        return tuple((m, s) for m in self.methods for s in self.seeds if self.run(m, s) is None)

    def forgetting_ratio(self, method: str, seed: int) -> tuple[float, ...] | None:
        """The forgetting ratio ``ρ^{≤t}`` after every task t (Eq. 6): the mean over τ ≤ t of ``ρ^{τ≤t}``.

        Joint training and guessing are the runs of the same seed.

        Returns:
            One number per task, t = 1 … T: 0 is as good as joint training, −1 is chance. Not a number where joint
            training is no better than chance on some task. None while one of the three runs is not finished, and where
            tasks have different metrics.

        Raises:
            InputError: the comparison has no such method or seed.
        """
        runs = [self.run(name, seed) for name in (method, *REFERENCES)]
        if any(run is None or run.metric is None for run in runs):
            return None
        ours, joint, random = (run.matrix("score") for run in runs if run is not None)
        ratios = []
        for t in range(len(ours)):
            parts = [forgetting_ratio(ours[t][tau], random[t][tau], joint[t][tau]) for tau in range(t + 1)]
            ratios.append(math.fsum(parts) / (t + 1))
        return tuple(ratios)

    def spread(self, method: str, figure: str) -> Spread | None:
        """Mean and standard deviation over seeds of a figure after the last task; None if no run has it.

        Args:
            method: name of the method.
            figure: one of :data:`FIGURES`.

        Raises:
            InputError: there is no such method or figure.
        """
        values = self.figures(method, figure).values()
        return spread(list(values)) if values else None

    def figures(self, method: str, figure: str) -> dict[int, float]:
        """A figure after the last task by seed, for the seeds that have it.

        Args:
            method: name of the method.
            figure: one of :data:`FIGURES`.

        Raises:
            InputError: there is no such method or figure.
        """
        if figure not in FIGURES:
            raise unknown_name("figure", figure, FIGURES)
        values = {}
        for seed in self.seeds:
            result = self.run(method, seed)
            if figure == "forgetting_ratio":
                ratios = self.forgetting_ratio(method, seed)
                value = None if ratios is None or math.isnan(ratios[-1]) else ratios[-1]
            else:
                value = None if result is None else result.metrics()[figure]
            if value is not None:
                values[seed] = float(value)
        return values


def read_failure(folder: Path) -> str | None:
    """Return the reason for which the run in a folder failed; None if it did not."""
    path = folder / FAILURE
    if not path.exists():
        return None
    try:
        return str(read_checked_json(path)["error"])
    except (CheckpointError, KeyError):
        return f"it failed, but {path} does not say why"


def write_failure(folder: Path, error: str | None) -> None:
    """Record why a run failed; None takes back what was recorded."""
    if error is None:
        (folder / FAILURE).unlink(missing_ok=True)
    else:
        write_checked_json(folder / FAILURE, {"error": error})


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

    Raises:
        InputError: the folder holds something else, or a run with other settings or on other data, also of a method or
            seed that this plan leaves out, or runs of a method with the defaults of several versions; or methods would
            have different samples, or cannot learn the tasks.
        CheckpointError: the folder's plan is damaged.
        DataError: a file of one's own tasks cannot be opened.
    """
    require_alone(folder, PLAN)
    plan.require_same_samples()
    whole = plan.joined(read_plan(folder)[0]) if (folder / PLAN).exists() else plan
    wanted = {(seed, method): plan for seed in plan.seeds for method in plan.methods}
    others = {(seed, method): whole for seed in whole.seeds for method in whole.methods}
    request = RunRequest(plan.experiment, "", data=data, sources=plan.sources, description=plan.described)
    request = replace(request, device=device or request.device)
    found = []
    for (seed, method), of in {**wanted, **{key: of for key, of in others.items() if key not in wanted}}.items():
        at, overrides = run_folder(folder, method, seed), of.overrides(method)
        found.append(Job(replace(request, method=method, seed=seed, out=at, overrides=overrides), threads))
    jobs = beside_each_other(found)
    for job in jobs[len(wanted) :]:
        _require_same_tasks(job)
    require_learnable_by(jobs[: len(wanted)])
    return jobs[: len(wanted)]


def _require_same_tasks(job: Job) -> None:
    """Refuse a finished run of one's own tasks that is compared with others, and not gone on with, on fewer or more."""
    recorded = job.recorded()
    if recorded is None or job.tasks is None or not recorded.is_whole or are_tasks_of(recorded, job.tasks):
        return
    raise InputError(
        f"{job.folder} holds a run of {len(recorded.tasks)} tasks, and there are {len(job.tasks)} now; compare it, too "
        "(`methods` and `seeds`), or choose another folder (`out`)"
    )


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
        InputError: the folder holds something else, or runs with other settings, or is in use; or the executor does not
            take the jobs.
        CheckpointError: the folder's plan is damaged.
    """
    require_alone(folder, PLAN)
    with locked(folder, _PATIENCE):
        whole = plan.joined(read_plan(folder)[0]) if (folder / PLAN).exists() else plan
        # The device's name is in every run: other machines may have one that this one has not.
        on = {"threads": jobs[0].threads, "device": jobs[0].request.device.type}
        write_plan(folder, whole, {**describe_environment(), **on})
        yield from execute_recorded(_longest_first(jobs), executor)
        write_summary(folder)


def _longest_first(jobs: Sequence[Job]) -> list[Job]:
    """Put joint training before the other runs of its seed.

    It learns all tasks again with every new one, and whatever takes longest is waited for if it begins last.
    """
    seeds = list(dict.fromkeys(job.request.seed for job in jobs))
    return sorted(jobs, key=lambda job: (seeds.index(job.request.seed), job.request.method != JOINT))


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
