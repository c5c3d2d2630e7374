"""The commands that make many runs, comparing methods and searching settings, and the options of where to make them."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from hatrack.cli.options import (
    DEFAULTS,
    WHOLE,
    Device,
    ExperimentName,
    InterruptedRun,
    Learning,
    MethodName,
    Settings,
    check_threads,
    make_console,
    read_overrides,
    say,
    take_device,
    warn,
    with_options,
)
from hatrack.errors import HatrackError, InputError
from hatrack.support.names import file_name_of

if TYPE_CHECKING:
    import torch

    from hatrack.experiments import Executor, Job, JobEvent, RunResult
    from hatrack.experiments.tuning import Candidate
    from hatrack.streams import EvaluationPart

__all__ = ["compare_command", "read_seeds", "tune_command"]


@Parameter(name="*")
@dataclass(frozen=True)
class Engine:
    """Place where runs are carried out.

    Parameters
    ----------
    workers
        How many runs at a time; by default one per processor. With `slurm` the limit of a job array; a Dask
        cluster decides by itself.
    threads
        CPU threads of every run. With more runs than processors, 1 is fastest by far.
    executor
        `local` takes processes of this machine; `dask` and `slurm` take others, which must see the same folders.
    scheduler
        With `dask`: address of the scheduler, such as `tcp://host:8786`.
    dry_run
        Say what would be run, and run nothing.
    slurm
        With `slurm`: an option of the jobs by submitit's names, `key=value`, as often as needed:
        `--slurm slurm_partition=long --slurm timeout_min=600`.
    """

    workers: Annotated[int | None, WHOLE] = None
    threads: Annotated[int, WHOLE] = 1
    executor: Literal["local", "dask", "slurm"] = "local"
    scheduler: str | None = None
    slurm: Annotated[tuple[str, ...], Parameter(name="--slurm", negative="", consume_multiple=False)] = ()
    dry_run: Annotated[bool, Parameter(negative="")] = False

    def build(self, folder: Path) -> Executor:
        """The executor of these options.

        Raises:
            InputError: options that do not fit each other.
        """
        from hatrack.experiments import DaskExecutor, LocalExecutor, SlurmExecutor

        check_threads(self.threads)
        if (self.scheduler is not None) != (self.executor == "dask"):
            raise InputError("--executor dask and --scheduler tcp://HOST:PORT go together")
        if self.slurm and self.executor != "slurm":
            raise InputError("--slurm is for --executor slurm")
        match self.executor:
            case "local":
                return LocalExecutor(self.at_a_time)
            case "dask":
                if self.workers is not None:
                    raise InputError("with --executor dask the cluster has workers of its own; leave out --workers")
                return DaskExecutor(self.scheduler or "")
            case "slurm":
                options = {key: _number_or_text(value) for key, value in read_overrides(self.slurm, "--slurm").items()}
                return SlurmExecutor(folder / "slurm", self.workers, options)

    def take_device(self, choice: Device) -> torch.device:
        """The device of the runs; whether other machines have a GPU cannot be seen from here.

        Raises:
            InputError: a GPU of this machine was asked for and there is none.
        """
        import torch

        return torch.device("cuda") if choice == "cuda" and self.executor != "local" else take_device(choice)

    @property
    def at_a_time(self) -> int:
        """Return the number of runs that go on at a time, as far as it is known."""
        if self.workers is None:
            return max(1, _processors() // self.threads) if self.executor == "local" else 1
        return self.workers


LOCAL = Engine()
"""Executor with one process of this machine per processor."""


def _processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _number_or_text(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def compare_command(
    experiment: ExperimentName = None,
    /,
    *,
    methods: Annotated[str, Parameter(help="Names joined by commas; `hatrack list methods` explains them.")],
    seeds: str = "0",
    learning: Learning = DEFAULTS,
    out: Path | None = None,
    settings: Settings = (),
    engine: Engine = LOCAL,
) -> int:
    """Compare methods over seeds, many runs at a time.

    Joint training and guessing are added, since the forgetting ratio needs them. Finished runs are never repeated: the
    same command goes on where it stopped, and with more methods or seeds it adds them. A run that fails does not stop
    the others; it is tried again the next time. Exit code 1 if a run failed.

    Parameters
    ----------
    seeds
        Such as `0-9` or `0,3,5`.
    out
        Folder for the results, by default `runs/compare-EXPERIMENT`.
    settings
        Override a setting of all runs, `key=value`, or of one method's, `method.key=value`, as often as needed:
        `--set lr=0.01 --set ewc.strength=500`.
    """
    from hatrack.experiments import Comparison, ComparisonPlan, compare, jobs_of
    from hatrack.experiments.folder import require_folder
    from hatrack.experiments.plan import PLAN, read_plan
    from hatrack.report import comparison_table

    overrides = learning.overrides(settings)
    subject = learning.experiment(experiment)
    plan = ComparisonPlan.make(subject.name, methods.split(","), read_seeds(seeds), overrides, subject.sources)
    warn(() if learning.quiet else plan.cautions)
    folder = require_folder(out or Path("runs") / f"compare-{subject.name}")
    executor, device = engine.build(folder), engine.take_device(learning.device)
    jobs = jobs_of(plan, folder, data=learning.data, device=device, threads=engine.threads)
    if engine.dry_run and (folder / PLAN).exists():
        plan.joined(read_plan(folder)[0])

    def place(job: Job) -> tuple[str, str]:
        return job.request.method, f"seed {job.request.seed}"

    def show(console: Console) -> None:
        comparison = Comparison.read(folder)
        console.print(comparison_table(comparison))
        _say_kinds(console, next(iter(comparison.results.values()), None))

    return _carry_out(jobs, place, compare(plan, folder, jobs, executor), show, folder, engine, learning.quiet)


def tune_command(
    experiment: ExperimentName = None,
    /,
    *,
    method: MethodName,
    seed: Annotated[int, WHOLE] = 0,
    learning: Learning = DEFAULTS,
    grid: Annotated[tuple[str, ...], Parameter(name="--grid", negative="", consume_multiple=False)] = (),
    out: Path | None = None,
    settings: Settings = (),
    engine: Engine = LOCAL,
) -> int:
    """Search a method's settings on one seed, by the average accuracy, or other metric, after the last task.

    Every combination of the grid is tried, many runs at a time, the settings as they are first. Finished runs are never
    repeated. The best is chosen by the test samples unless `--set tested_on=validation` has it chosen by validation
    samples; the output says by which, and which candidates tie.

    Parameters
    ----------
    method
        The method; `hatrack list methods` explains them. `mymodule:MyMethod` takes a class of your own.
    seed
        The one seed to search on.
    grid
        Values to try, `key=value,value`, as often as needed; by default the method's recorded grid, which is mostly the
        one that its paper searched.
    out
        Folder for the results, by default `runs/tune-EXPERIMENT-METHOD-seedN`.
    settings
        Override a setting of all runs, `key=value`, as often as needed.
    """
    from hatrack.experiments.folder import require_folder
    from hatrack.experiments.request import as_text
    from hatrack.experiments.tuning import GridSearch, best, outcomes, tied, tune
    from hatrack.report import tuning_table

    overrides = learning.overrides(settings)
    values = {key: text.split(",") for key, text in read_overrides(grid, "--grid").items()}
    subject = learning.experiment(experiment)
    search = GridSearch.make(subject.name, method, seed, overrides, values, subject.sources)
    warn(() if learning.quiet else search.cautions)
    folder = require_folder(out or Path("runs") / f"tune-{subject.name}-{file_name_of(method)}-seed{seed}")
    executor, device = engine.build(folder), engine.take_device(learning.device)
    jobs = search.jobs(folder, data=learning.data, device=device, threads=engine.threads)

    def place(job: Job) -> tuple[str, str]:
        return job.folder.name, "score"

    def show(console: Console) -> None:
        found = outcomes(search, jobs)
        console.print(tuning_table(found))
        _say_kinds(console, next((result for job in jobs if (result := job.finished()) is not None), None))
        if (chosen := best(found)) is not None:
            words = " ".join(f"--set {method}.{key}={as_text(value)}" for key, value in chosen.settings.items())
            say(console, f"best: {words}")
            if others := [each for each in tied(found) if each is not chosen]:
                say(console, f"the first of {len(others) + 1} that tie, with {_settings_of(others)}")
            say(console, _chosen_on(search.chosen_on))

    return _carry_out(jobs, place, tune(search, folder, jobs, executor), show, folder, engine, learning.quiet)


def _settings_of(candidates: Sequence[Candidate]) -> str:
    """Say the settings of candidates: ``lr=0.01, c=1; lr=0.1, c=1``."""
    from hatrack.experiments.request import as_text

    return "; ".join(
        ", ".join(f"{key}={as_text(value)}" for key, value in each.settings.items()) for each in candidates
    )


def _chosen_on(part: EvaluationPart) -> str:
    """Say by which samples a search chose, and how to choose by others."""
    from hatrack.streams import EvaluationPart

    if part is EvaluationPart.VALIDATION:
        return "chosen by validation samples, without a look at the test samples"
    return (
        "chosen by the test samples, so that the best one's score is no fair figure of it; --set tested_on=validation "
        "chooses by validation samples"
    )


def _say_kinds(console: Console, result: RunResult | None) -> None:
    from hatrack.report import kinds_line

    if result is not None and (line := kinds_line(result)):
        say(console, with_options(line))


def read_seeds(text: str) -> tuple[int, ...]:
    """Seeds as people write them: ``0-9``, ``0,3,5``, ``0-2,7``.

    Raises:
        InputError: the text has another form.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise InputError(f"--seeds {text} does not fit: write --seeds 0-9 or --seeds 0,3,5")
        seeds.extend(range(int(first), int(last if dash else first) + 1))
    return tuple(seeds)


def _carry_out(
    jobs: Sequence[Job],
    place: Callable[[Job], tuple[str, str]],
    events: Generator[JobEvent, None, None],
    show: Callable[[Console], None],
    folder: Path,
    engine: Engine,
    quiet: bool,
) -> int:
    """Make runs, or list them for a dry run, and show what came of them."""
    from hatrack.cli.board import Board
    from hatrack.experiments.comparison import read_failure

    console = make_console()
    if engine.dry_run:
        for job in jobs:
            say(console, f"{job.folder}: {_state(job)}")
        say(console, f"{sum(job.finished() is None for job in jobs)} of {len(jobs)} runs to do")
        return 0
    finished = [(job, sum(result.seconds)) for job in jobs if (result := job.finished()) is not None]
    board = Board(console, jobs, place, _average, finished, workers=engine.at_a_time, quiet=quiet)
    try:
        with closing(events), board:
            for event in events:
                board.show(event)
    except KeyboardInterrupt:
        raise InterruptedRun from None
    failures = {job.name: why for job in jobs if (why := read_failure(job.folder)) is not None}
    again = f"{len(failures)} of {len(jobs)} runs failed; the same command tries them again"
    if quiet and failures:
        name, why = next(iter(failures.items()))
        raise HatrackError(f"{name}: {why}; {again}")
    if not quiet:
        show(console)
        if failures:
            say(console, again)
        say(console, f"kept in {folder}")
    return 1 if failures else 0


def _average(job: Job) -> str:
    finished = job.finished()
    if finished is None:
        return "damaged"
    metric, average = finished.metric, finished.metrics()["average_score"]
    return "finished" if metric is None else metric.say(average)


def _state(job: Job) -> str:
    if job.finished() is not None:
        return "finished"
    from hatrack.experiments.comparison import read_failure

    failure = read_failure(job.folder)
    if failure is not None:
        return f"to try again, failed before: {with_options(failure)}"
    share = job.share_on_disk()
    return f"to go on with, {share:.0%} done" if share else "to do"
