"""Carrying out one run, and showing it."""

from __future__ import annotations

from contextlib import ExitStack

from rich.console import Console

from hatrack.cli.display import DownloadDisplay, RunDisplay
from hatrack.cli.options import InterruptedRun, say
from hatrack.experiments import Prepared, RunRequest, RunResult, TaskLearned, finished_result, prepare, run
from hatrack.experiments.folder import RESULT, forget_training
from hatrack.report.tensorboard import TensorBoard
from hatrack.storage.locks import locked

__all__ = ["carry_out"]

_PATIENCE = 2.0
"""Seconds to wait for a run in the same folder that is just ending."""


def carry_out(
    request: RunRequest, console: Console, quiet: bool, *, log: bool = False, tasks: int | None = None
) -> RunResult:
    """Make a run, or what is left of it; nobody else may work in its folder meanwhile.

    Args:
        request: the run.
        console: where to show it.
        quiet: show nothing.
        log: write for TensorBoard, too.
        tasks: stop after so many tasks; None learns all.

    Raises:
        InterruptedRun: somebody pressed Ctrl-C, and the run can go on from its folder.
        InputError: another process works in the folder; or as :func:`hatrack.experiments.prepare`.
    """
    finished = finished_result(request)
    if finished is not None:
        if request.out is not None:
            forget_training(request.out)  # left where a process was killed just before its end
        if not quiet:
            say(console, f"{request.out} is finished; nothing to do")
        return finished
    with ExitStack() as held:
        prepared = _prepare_alone(request, console, quiet, held)
        for note in () if quiet else prepared.notes:
            say(console, f"note: {note}")
        if tasks is not None and len(prepared.result.scores) >= tasks:
            return prepared.result
        try:
            with ExitStack() as stack:
                display = RunDisplay(console, prepared.result, quiet=quiet, label=request.method)
                show = [stack.enter_context(display).show]
                if log and request.out is not None:
                    show.append(stack.enter_context(TensorBoard(request.out / "tensorboard", prepared.result)).show)
                for event in run(prepared):
                    for each in show:
                        each(event)
                    if isinstance(event, TaskLearned) and tasks == event.index + 1:
                        break
        except KeyboardInterrupt:
            if request.out is None:
                raise
            raise InterruptedRun from None
        return prepared.result


def _prepare_alone(request: RunRequest, console: Console, quiet: bool, held: ExitStack) -> Prepared:
    """Get a run ready, and hold its folder; a folder is not made before it is known that there is something to run."""
    folder = request.out if request.ranks.rank == 0 else None
    absent = folder is not None and not folder.exists()
    if folder is not None and not absent:
        held.enter_context(locked(folder, _PATIENCE))
    with DownloadDisplay(console, quiet=quiet) as monitor:
        prepared = prepare(request, monitor)
    if folder is not None and absent:
        held.enter_context(locked(folder, _PATIENCE))
        if (folder / RESULT).exists():  # somebody else was faster
            prepared = prepare(request)
    return prepared
