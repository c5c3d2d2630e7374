"""The commands that make many runs: comparing methods, and searching a method's settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from cyclopts import Parameter
from rich.console import Console

from hatrack.cli.board import Board
from hatrack.cli.options import (
    WHOLE,
    Data,
    Device,
    ExperimentName,
    InterruptedRun,
    NetworkName,
    Quiet,
    Settings,
    check_threads,
    make_console,
    read_overrides,
    say,
    take_device,
    what_to_learn,
    with_short_forms,
)
from hatrack.errors import InputError
from hatrack.experiments import (
    Comparison,
    DaskExecutor,
    Executor,
    Job,
    JobEvent,
    LocalExecutor,
    Plan,
    SlurmExecutor,
    compare,
    jobs_of,
    read_result,
)
from hatrack.experiments.comparing import is_finished
from hatrack.experiments.comparison import read_failure
from hatrack.experiments.jobs import share_on_disk
from hatrack.experiments.plan import PLAN, read_plan
from hatrack.experiments.running import RESULT
from hatrack.experiments.tuning import Search, best, outcomes, tune
from hatrack.methods import METHODS
from hatrack.report import comparison_table, tuning_table

__all__ = ["compare_command", "read_seeds", "tune_command"]


@Parameter(name="*")
@dataclass(frozen=True)
class Engine:
    """Where runs are carried out.

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
    slurm
        With `slurm`: an option of the jobs by submitit's names, `key=value`, as often as needed:
        `--slurm slurm_partition=long --slurm timeout_min=600`.
    """

    workers: Annotated[int | None, WHOLE] = None
    threads: Annotated[int, WHOLE] = 1
    executor: Literal["local", "dask", "slurm"] = "local"
    scheduler: str | None = None
    slurm: Annotated[tuple[str, ...], Parameter(name="--slurm", negative="", consume_multiple=False)] = ()

    def build(self, folder: Path) -> Executor:
        """The executor of these options.

        Raises:
            InputError: options that do not fit each other.
        """
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
        return torch.device("cuda") if choice == "cuda" and self.executor != "local" else take_device(choice)

    @property
    def at_a_time(self) -> int:
        """How many runs go on at a time, as far as that is known."""
        if self.workers is None:
            return max(1, _processors() // self.threads) if self.executor == "local" else 1
        return self.workers


LOCAL = Engine()


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
    plan = Plan.make(name, methods.split(","), read_seeds(seeds), overrides, sources)
    folder = out or Path("runs") / f"compare-{name}"
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
    repeated. Needs `pip install 'hatrack[tune]'`.

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
    folder = out or Path("runs") / f"tune-{name}-{method}-seed{seed}"
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
    failed = sum(read_failure(job.folder) is not None for job in jobs)
    if not quiet:
        if failed:
            say(console, f"{failed} of {len(jobs)} runs failed; the same command tries them again")
        say(console, f"kept in {folder}")
    return 1 if failed else 0


def _processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _number_or_text(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
