"""Carrying out one run, and showing it."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from rich.console import Console

from hatrack.cli.display import DownloadDisplay, RunDisplay
from hatrack.cli.options import InterruptedRun, check_threads, say
from hatrack.experiments import Run, RunRequest, RunResult, TaskLearned, run
from hatrack.experiments.folder import RunFolder
from hatrack.report.tensorboard import TensorBoard

__all__ = ["carry_out"]

_PATIENCE = 2.0
"""Seconds to wait for a run in the same folder that is just ending."""


def carry_out(
    request: RunRequest,
    console: Console,
    quiet: bool,
    *,
    threads: int | None = None,
    log: bool = False,
    tasks: int | None = None,
    label: str | None = None,
) -> RunResult:
    """Make a run, or what is left of it; nobody else may work in its folder meanwhile.

    Args:
        request: the run.
        console: where to show it.
        quiet: show nothing.
        threads: number of CPU threads; None takes the one with which the run in the folder began, if there is one.
        log: write for TensorBoard, too.
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
        for note in () if quiet else going.notes:
            say(console, f"note: {note}")
        if tasks is not None and len(going.result.scores) >= tasks:
            return going.result
        try:
            display = held.enter_context(RunDisplay(console, going.result, quiet=quiet, label=label or request.method))
            show = [display.show]
            if log and request.out is not None:
                show.append(held.enter_context(TensorBoard(request.out / "tensorboard", going.result)).show)
            for event in run(going):
                for each in show:
                    each(event)
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
