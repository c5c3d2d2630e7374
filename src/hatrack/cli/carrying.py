"""Carrying out one run, and showing it while it goes on: bars in a terminal, a line per task where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing

import torch
from rich import filesize
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from hatrack.cli.options import InterruptedRun, check_threads, say, with_options
from hatrack.experiments import Event, Run, RunRequest, RunResult, TaskBegun, TaskLearned, TaskSummary
from hatrack.experiments.folder import RunFolder
from hatrack.objectives import ACCURACY
from hatrack.report import share_in_use
from hatrack.report.loggers import LOGGERS, with_logs
from hatrack.train import BatchDone, EpochDone

__all__ = ["DownloadDisplay", "carry_out", "make_progress"]


def make_progress(console: Console, quiet: bool, *columns: ProgressColumn) -> Progress:
    """Make bars that say what goes on, some columns, and how long it will still take; they are gone at the end.

    Args:
        console: where to show them.
        quiet: show nothing; neither is anything shown outside of a terminal.
        *columns: what stands between the bar and the time.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        *columns,
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )


class DownloadDisplay:
    """A context in which calls show how downloads go on. See :data:`hatrack.data.DownloadMonitor`.

    In a terminal there is a bar for every file, elsewhere a line when its download begins; without a download, nothing.

    Args:
        console: where to show.
        quiet: show nothing.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._bars: dict[str, TaskID] = {}
        self._progress = make_progress(console, quiet, DownloadColumn(), TransferSpeedColumn())

    def __enter__(self) -> DownloadDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """Show that ``done`` bytes of a file are there."""
        if name not in self._bars:
            self._begin(name, done, total)
        self._progress.update(self._bars[name], completed=done, total=total)

    def _begin(self, name: str, done: int, total: int | None) -> None:
        if not self._bars:
            self._progress.start()
        self._bars[name] = self._progress.add_task(f"downloading {name}", total=total)
        if not self._quiet and not self._console.is_terminal:
            size = "" if total is None else f" ({filesize.decimal(total)})"
            going_on = f", going on after {filesize.decimal(done)}" if done else ""
            self._console.print(f"downloading {name}{size}{going_on}", highlight=False, markup=False)


class RunDisplay:
    """A context in which :meth:`show` is given the events of a run.

    Args:
        console: where to show.
        result: the run as it stands.
        quiet: show nothing.
        label: what the run is called.
    """

    def __init__(self, console: Console, result: RunResult, *, quiet: bool, label: str) -> None:
        self._console = console
        self._result = result
        self._quiet = quiet
        self._label = label
        self._max_epochs = 1
        self._validation = ""
        self._metric = ACCURACY
        share, detail = TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.fields[detail]}")
        self._progress = make_progress(console, quiet, share, detail)
        self._all = self._bar(label, total=float(len(result.tasks)))
        self._one: TaskID | None = None

    def __enter__(self) -> RunDisplay:
        self._progress.start()
        done = len(self._result.scores)
        self._progress.update(self._all, completed=float(done))
        if done and not self._quiet:
            self._console.print(f"{self._label}: taking up after {done} of {len(self._result.tasks)} tasks")
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Show what happened."""
        match event:
            case TaskBegun():
                self._begin(event)
            case BatchDone():
                self._batch(event)
            case EpochDone():
                score = "" if event.valid_score is None else f", {self._metric.say(event.valid_score)}"
                self._validation = f"valid {event.valid_loss:.3f}{score}"
            case TaskLearned():
                self._learned(event)

    def _bar(self, description: str, total: float) -> TaskID:
        return self._progress.add_task(description, total=total, detail="")

    def _begin(self, event: TaskBegun) -> None:
        self._max_epochs, self._validation, self._metric = event.max_epochs, "", event.task.metric
        if self._one is not None:
            self._progress.remove_task(self._one)
        title = f"task {event.index + 1}/{len(self._result.tasks)} {event.task.name}"
        if event.epochs and not self._quiet:
            self._console.print(f"{self._label}: {title}: going on after epoch {event.epochs}", highlight=False)
        self._one = self._bar(title, total=float(event.max_epochs))
        self._progress.update(self._all, completed=float(event.index))

    def _batch(self, event: BatchDone) -> None:
        if event.loss is None or self._one is None:
            return
        epochs = event.epoch - 1 + event.done / event.total
        detail = f"epoch {event.epoch}/{self._max_epochs}, loss {event.loss:.3f}"
        self._progress.update(
            self._one, completed=epochs, detail=f"{detail}, {self._validation}" if self._validation else detail
        )
        learned = len(self._result.scores)
        self._progress.update(self._all, completed=learned + epochs / self._max_epochs)

    def _learned(self, event: TaskLearned) -> None:
        self._result = event.result
        self._progress.update(self._all, completed=float(event.index + 1))
        if self._quiet:
            return
        result, index = event.result, event.index
        scores = [score.value for score in result.scores[-1]]
        metrics = [task.metric for task in result.tasks[: index + 1]]
        own = "" if metrics[-1] == ACCURACY else f"{metrics[-1].name} "
        line = f"{self._label}: task {index + 1}/{len(result.tasks)} {result.tasks[index].name}: "
        line += f"{own}{metrics[-1].say(scores[-1])}"
        if index and all(metric == metrics[-1] for metric in metrics):
            line += f", all so far {metrics[-1].say(sum(scores) / len(scores))}"
        if result.capacity is not None:
            line += f", {share_in_use(result.capacity)}"
        self._console.print(f"{line} [dim]({result.epochs[-1]} epochs, {result.seconds[-1]:.1f} s)", highlight=False)


_PATIENCE = 2.0
"""Seconds to wait for a run in the same folder that is just ending."""


def carry_out(
    request: RunRequest,
    console: Console,
    quiet: bool,
    *,
    threads: int | None = None,
    log: Sequence[str] = (),
    tasks: int | None = None,
    label: str | None = None,
) -> RunResult:
    """Make a run, or what is left of it; nobody else may work in its folder meanwhile.

    Args:
        request: the run.
        console: where to show it.
        quiet: show nothing.
        threads: number of CPU threads; None takes the one with which the run in the folder began, if there is one.
        log: names of loggers that write into the run's folder.
        tasks: stop after so many tasks; None learns all.
        label: what the run is called; None for the name of its method.

    Raises:
        InterruptedRun: somebody pressed Ctrl-C, and the run can go on from its folder.
        InputError: another process works in the folder; or as :class:`hatrack.experiments.Run`.
    """
    with ExitStack() as held:
        going = Run(request, _open(request, threads, held))
        if going.finished is not None:
            if going.folder is not None:
                going.folder.forget_training()  # left where a process was killed just before its end
            if not quiet:
                say(console, f"{request.out} is finished; nothing to do")
            return going.finished
        with DownloadDisplay(console, quiet=quiet) as monitor:
            going.prepare(monitor)
        if not quiet:
            for task in going.stream:
                if task.files is not None:
                    say(console, TaskSummary.of(task).say())
            for note in going.notes:
                say(console, f"note: {with_options(note)}")
        if tasks is not None and len(going.result.scores) >= tasks:
            return going.result
        try:
            display = held.enter_context(RunDisplay(console, going.result, quiet=quiet, label=label or request.method))
            loggers = [] if request.out is None else [LOGGERS[name](request.out) for name in dict.fromkeys(log)]
            for event in held.enter_context(closing(with_logs(going, *loggers))):
                display.show(event)
                if isinstance(event, TaskLearned) and tasks == event.index + 1:
                    break
        except KeyboardInterrupt:
            if request.out is None:
                raise
            raise InterruptedRun from None
        return going.result


def _open(request: RunRequest, threads: int | None, held: ExitStack) -> RunFolder | None:
    """Open a run's folder, which the first process of a run holds alone, and take a number of threads."""
    if request.out is None:
        folder = None
    elif request.ranks.rank > 0:
        folder = RunFolder(request.out)
    else:
        folder = held.enter_context(RunFolder.alone(request.out, _PATIENCE))
    if threads is None and folder is not None and folder.recorded is not None:
        threads = folder.recorded.environment["threads"]
    if threads is not None:
        torch.set_num_threads(check_threads(threads))
    return folder
