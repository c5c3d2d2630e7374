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
    WHOLE,
    Data,
    Device,
    ExperimentName,
    InterruptedRun,
    NetworkName,
    Quiet,
    Settings,
    as_folder,
    make_console,
    read_overrides,
    say,
    what_to_learn,
    with_short_forms,
)
from hatrack.errors import HatrackError, InputError
from hatrack.experiments import (
    Comparison,
    ComparisonPlan,
    Job,
    JobEvent,
    compare,
    jobs_of,
    read_result,
)
from hatrack.experiments.comparing import is_finished
from hatrack.experiments.comparison import read_failure
from hatrack.experiments.folder import RESULT
from hatrack.experiments.jobs import share_on_disk
from hatrack.experiments.plan import PLAN, read_plan
from hatrack.experiments.tuning import Search, best, outcomes, tune
from hatrack.methods import METHODS
from hatrack.report import comparison_table, tuning_table

__all__ = ["compare_command", "read_seeds", "tune_command"]


def compare_command(
    experiment: ExperimentName | str | None = None,
    /,
    *,
    methods: str,
    seeds: str = "0",
    tasks: Annotated[tuple[Path, ...], Parameter(negative="", consume_multiple=True)] = (),
    epochs: Annotated[int | None, WHOLE] = None,
    network: NetworkName | str | None = None,
    out: Path | None = None,
    data: Data = None,
    settings: Settings = (),
    device: Device = "auto",
    engine: Engine = LOCAL,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    quiet: Quiet = False,
) -> int:
    """Compare methods over seeds, many runs at a time.

    Joint training and guessing are added, since the forgetting ratio needs them. Finished runs are never repeated: the
    same command goes on where it stopped, and with more methods or seeds it adds them. A run that fails does not stop
    the others; it is tried again the next time. Exit code 1 if a run failed.

    Parameters
    ----------
    experiment
        What to learn; `hatrack list experiments` explains them. Or a file of your own tasks, `tasks.toml`.

    Methods:
        Names joined by commas; `hatrack list methods` explains them.
    seeds
        Such as `0-9` or `0,3,5`.
    tasks
        Folders of pictures and `.npz` files to learn one after the other, in place of an experiment.
    epochs
        Largest number of epochs per task; short for `--set epochs=N`.
    network
        The backbone, if not the experiment's own; short for `--set network=NAME`.
    out
        Folder for the results, by default `runs/compare-EXPERIMENT`.
    settings
        Override a setting of all runs, `key=value`, or of one method's, `method.key=value`, as often as needed:
        `--set lr=0.01 --set ewc.strength=500`.
    device
        Where to train; `auto` takes a GPU if this machine has one.
    dry_run
        Say what would be run, and run nothing.
    """
    overrides = with_short_forms(read_overrides(settings), epochs=epochs, network=network)
    name, sources = what_to_learn(experiment, tasks)
    plan = ComparisonPlan.make(name, methods.split(","), read_seeds(seeds), overrides, sources)
    folder = as_folder(out or Path("runs") / f"compare-{name}")
    executor = engine.build(folder)
    jobs = jobs_of(plan, folder, data=data, device=engine.take_device(device), threads=engine.threads)
    console = make_console()
    if dry_run:
        if (folder / PLAN).exists():
            plan.joined(read_plan(folder)[0])
        return _list(console, jobs)
    place = lambda job: (job.request.method, f"seed {job.request.seed}")  # noqa: E731
    _carry_out(console, jobs, place, compare(plan, folder, jobs, executor), engine, quiet)
    if not quiet:
        console.print(comparison_table(Comparison.read(folder)))
    return _say_end(console, jobs, folder, quiet)


def tune_command(
    experiment: ExperimentName | str | None = None,
    /,
    *,
    method: Annotated[str, Parameter(choices=tuple(METHODS))],
    seed: Annotated[int, WHOLE] = 0,
    tasks: Annotated[tuple[Path, ...], Parameter(negative="", consume_multiple=True)] = (),
    grid: Annotated[tuple[str, ...], Parameter(name="--grid", negative="", consume_multiple=False)] = (),
    epochs: Annotated[int | None, WHOLE] = None,
    network: NetworkName | str | None = None,
    out: Path | None = None,
    data: Data = None,
    settings: Settings = (),
    device: Device = "auto",
    engine: Engine = LOCAL,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    quiet: Quiet = False,
) -> int:
    """Search a method's settings on one seed, by the average accuracy after the last task.

    Every combination of the grid is tried, many runs at a time, the settings as they are first. Finished runs are never
    repeated.

    Parameters
    ----------
    experiment
        What to learn; `hatrack list experiments` explains them. Or a file of your own tasks, `tasks.toml`.
    method
        The method; `hatrack list methods` explains them.
    seed
        The one seed to search on.
    tasks
        Folders of pictures and `.npz` files to learn one after the other, in place of an experiment.
    grid
        Values to try, `key=value,value`, as often as needed; by default the method's recorded grid, which is mostly the
        one that its paper searched.
    epochs
        Largest number of epochs per task; short for `--set epochs=N`.
    network
        The backbone, if not the experiment's own; short for `--set network=NAME`.
    out
        Folder for the results, by default `runs/tune-EXPERIMENT-METHOD-seedN`.
    settings
        Override a setting of all runs, `key=value`, as often as needed.
    device
        Where to train; `auto` takes a GPU if this machine has one.
    dry_run
        Say what would be run, and run nothing.
    """
    overrides = with_short_forms(read_overrides(settings), epochs=epochs, network=network)
    values = {key: text.split(",") for key, text in read_overrides(grid, "--grid").items()}
    if seed < 0:
        raise InputError(f"the seed must be 0 or more, not {seed}")
    name, sources = what_to_learn(experiment, tasks)
    search = Search.make(name, method, seed, overrides, values, sources)
    folder = as_folder(out or Path("runs") / f"tune-{name}-{method}-seed{seed}")
    executor = engine.build(folder)
    jobs = search.jobs(folder, data=data, device=engine.take_device(device), threads=engine.threads)
    console = make_console()
    if dry_run:
        return _list(console, jobs)
    place = lambda job: (job.folder.name, "accuracy")  # noqa: E731
    _carry_out(console, jobs, place, tune(search, folder, jobs, executor), engine, quiet)
    found = outcomes(search, jobs)
    chosen = best(found)
    if not quiet:
        console.print(tuning_table(found))
        if chosen is not None:
            words = " ".join(f"--set {method}.{key}={_text(value)}" for key, value in chosen.settings.items())
            say(console, f"best: {words}")
    return _say_end(console, jobs, folder, quiet)


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
    console: Console,
    jobs: Sequence[Job],
    place: Callable[[Job], tuple[str, str]],
    events: Generator[JobEvent, None, None],
    engine: Engine,
    quiet: bool,
) -> None:
    done = [(job, sum(read_result(job.folder / RESULT).seconds)) for job in jobs if is_finished(job)]
    board = Board(console, jobs, place, _accuracy, done, workers=engine.at_a_time, quiet=quiet)
    try:
        with closing(events), board:
            for event in events:
                board.show(event)
    except KeyboardInterrupt:
        raise InterruptedRun from None


def _accuracy(job: Job) -> str:
    return f"{read_result(job.folder / RESULT).metrics()['average_accuracy']:.1%}"


def _list(console: Console, jobs: Sequence[Job]) -> int:
    for job in jobs:
        say(console, f"{job.folder}: {_state(job)}")
    left = sum(not is_finished(job) for job in jobs)
    say(console, f"{left} of {len(jobs)} runs to do")
    return 0


def _state(job: Job) -> str:
    if is_finished(job):
        return "finished"
    failure = read_failure(job.folder)
    if failure is not None:
        return f"to try again, failed before: {failure}"
    share = share_on_disk(job)
    return f"to go on with, {share:.0%} done" if share else "to do"


def _say_end(console: Console, jobs: Sequence[Job], folder: Path, quiet: bool) -> int:
    failures = {job.name: why for job in jobs if (why := read_failure(job.folder)) is not None}
    again = f"{len(failures)} of {len(jobs)} runs failed; the same command tries them again"
    if quiet and failures:
        name, why = next(iter(failures.items()))
        raise HatrackError(f"{name}: {why}; {again}")
    if not quiet:
        if failures:
            say(console, again)
        say(console, f"kept in {folder}")
    return 1 if failures else 0


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
