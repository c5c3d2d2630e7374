"""The commands that make many runs: comparing methods, and searching a method's settings."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from hatrack.cli.board import Board
from hatrack.cli.engine import LOCAL, Engine
from hatrack.cli.options import (
    DEFAULTS,
    WHOLE,
    ExperimentName,
    InterruptedRun,
    Learning,
    MethodName,
    Settings,
    make_console,
    read_overrides,
    say,
)
from hatrack.cli.wording import with_options
from hatrack.errors import HatrackError, InputError
from hatrack.experiments import Comparison, ComparisonPlan, Job, JobEvent, compare, jobs_of
from hatrack.experiments.comparison import read_failure
from hatrack.experiments.folder import require_folder
from hatrack.experiments.plan import PLAN, read_plan
from hatrack.experiments.request import as_text
from hatrack.experiments.tuning import GridSearch, best, outcomes, tune
from hatrack.report import comparison_table, tuning_table

__all__ = ["compare_command", "read_seeds", "tune_command"]


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
    overrides = learning.overrides(settings)
    subject = learning.experiment(experiment)
    plan = ComparisonPlan.make(subject.name, methods.split(","), read_seeds(seeds), overrides, subject.sources)
    folder = require_folder(out or Path("runs") / f"compare-{subject.name}")
    executor, device = engine.build(folder), engine.take_device(learning.device)
    jobs = jobs_of(plan, folder, data=learning.data, device=device, threads=engine.threads)
    if engine.dry_run and (folder / PLAN).exists():
        plan.joined(read_plan(folder)[0])

    def place(job: Job) -> tuple[str, str]:
        return job.request.method, f"seed {job.request.seed}"

    def show(console: Console) -> None:
        console.print(comparison_table(Comparison.read(folder)))

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
    """Search a method's settings on one seed, by the average accuracy after the last task.

    Every combination of the grid is tried, many runs at a time, the settings as they are first. Finished runs are never
    repeated.

    Parameters
    ----------
    method
        The method; `hatrack list methods` explains them.
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
    overrides = learning.overrides(settings)
    values = {key: text.split(",") for key, text in read_overrides(grid, "--grid").items()}
    subject = learning.experiment(experiment)
    search = GridSearch.make(subject.name, method, seed, overrides, values, subject.sources)
    folder = require_folder(out or Path("runs") / f"tune-{subject.name}-{method}-seed{seed}")
    executor, device = engine.build(folder), engine.take_device(learning.device)
    jobs = search.jobs(folder, data=learning.data, device=device, threads=engine.threads)

    def place(job: Job) -> tuple[str, str]:
        return job.folder.name, "accuracy"

    def show(console: Console) -> None:
        found = outcomes(search, jobs)
        console.print(tuning_table(found))
        if (chosen := best(found)) is not None:
            words = " ".join(f"--set {method}.{key}={as_text(value)}" for key, value in chosen.settings.items())
            say(console, f"best: {words}")

    return _carry_out(jobs, place, tune(search, folder, jobs, executor), show, folder, engine, learning.quiet)


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
    console = make_console()
    if engine.dry_run:
        for job in jobs:
            say(console, f"{job.folder}: {_state(job)}")
        say(console, f"{sum(job.finished() is None for job in jobs)} of {len(jobs)} runs to do")
        return 0
    finished = [(job, sum(result.seconds)) for job in jobs if (result := job.finished()) is not None]
    board = Board(console, jobs, place, _accuracy, finished, workers=engine.at_a_time, quiet=quiet)
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


def _accuracy(job: Job) -> str:
    finished = job.finished()
    return "damaged" if finished is None else f"{finished.metrics()['average_accuracy']:.1%}"


def _state(job: Job) -> str:
    if job.finished() is not None:
        return "finished"
    failure = read_failure(job.folder)
    if failure is not None:
        return f"to try again, failed before: {with_options(failure)}"
    share = job.share_on_disk()
    return f"to go on with, {share:.0%} done" if share else "to do"
