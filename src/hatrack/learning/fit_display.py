"""Progress of a task's training, for who waits for it: in a notebook, or in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from hatrack.errors import InputError
from hatrack.objectives import Metric
from hatrack.train import BatchDone, EpochDone

__all__ = ["FitDisplay", "ProgressOutput", "ending", "notebook_output", "output_for", "terminal_output"]

SECONDS_BETWEEN = 0.1
"""Shortest time between two pictures, in seconds; a notebook keeps each of them for a moment."""


class ProgressOutput(Protocol):
    """Output for the course of a training: a bar as long as it goes on, then one line."""

    def show(self, share: float, text: str) -> None:
        """Show a bar, filled to a share between 0 and 1, and a text."""

    def end(self, text: str) -> None:
        """Leave a text in place of the bar."""


class FitDisplay:
    """The training of one task, as a bar and a text that follow its events.

    Args:
        task: its name.
        epochs: most epochs that it takes.
        metric: metric that every epoch ends with.
        measured_on: the samples that it is measured on, in a word.
        output: where to show it.
        now: clock, in seconds.
    """

    def __init__(
        self,
        task: str,
        epochs: int,
        metric: Metric,
        measured_on: str,
        output: ProgressOutput,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task, self._epochs, self._output, self._now = task, epochs, output, now
        self._metric, self._measured_on = metric, measured_on
        self._begun, self._shown = now(), float("-inf")
        self._done = 0
        self._valid = ""
        self._best = ""

    def follow(self, event: BatchDone | EpochDone) -> None:
        """Show what happened, unless something was shown just before."""
        if isinstance(event, EpochDone):
            self._done = event.epoch
            self._valid = self._score(event)
            self._best = self._valid if event.best else self._best
            return
        if self._now() - self._shown >= SECONDS_BETWEEN:
            self._shown = self._now()
            share = (event.epoch - 1 + event.done / event.total) / self._epochs
            said = f"{self._task}: epoch {event.epoch} of at most {self._epochs}"
            text = f"{said}, {self._valid}" if self._valid else said
            self._tell(lambda: self._output.show(min(share, 1.0), text))

    def finish(self) -> None:
        """Say that all epochs are made, and that the task is being completed."""
        text = f"{self._task}: trained for {self._epochs_made()}, now completing"
        self._tell(lambda: self._output.show(1.0, text))

    def end(self, *, learned: bool) -> None:
        """Leave one line about the training."""
        if learned:
            best = f", {self._best}" if self._best else ""
            text = f"{self._task}: learned in {self._now() - self._begun:.1f} s, {self._epochs_made()}{best}"
        else:
            text = f"{self._task}: not learned, stopped after {self._epochs_made()}"
        self._tell(lambda: self._output.end(text))

    def _tell(self, say: Callable[[], None]) -> None:
        """Show something; where that fails, as in a terminal that was closed, go on without showing anything."""
        try:
            say()
        except (OSError, ValueError):
            self._output = _NoOutput()

    def _epochs_made(self) -> str:
        return f"{self._done} epoch{'s' * (self._done != 1)}"

    def _score(self, event: EpochDone) -> str:
        if event.valid_score is None:
            return f"{self._measured_on} loss {event.valid_loss:.3f}"
        return f"{self._measured_on} {self._metric.name} {self._metric.say(event.valid_score)}"


class _NoOutput:
    """Nothing is shown."""

    def show(self, share: float, text: str) -> None:
        """Show nothing."""

    def end(self, text: str) -> None:
        """Leave nothing."""


class _NotebookOutput:
    """A bar in the output of a cell, in the colours of the notebook."""

    def __init__(self) -> None:
        from IPython.display import display

        self._handle = display(_as_output("", ""), raw=True, display_id=True)

    def show(self, share: float, text: str) -> None:
        """Show the bar in place of what was shown before."""
        bar = f'<progress value="{share:.3f}" max="1"></progress>'
        self._handle.update(_as_output(f"{share:.0%} {text}", f"{bar} {escape(text)}"), raw=True)

    def end(self, text: str) -> None:
        """Show the text in place of the bar."""
        self._handle.update(_as_output(text, escape(text)), raw=True)


def _as_output(plain: str, html: str) -> dict[str, str]:
    """Return what a cell shows, and what it shows where there is no HTML."""
    return {"text/plain": plain, "text/html": html}


class _Errors(Console):
    """The standard error file, of which nothing but an error is heard when nobody reads it any more."""

    def __init__(self) -> None:
        super().__init__(stderr=True)

    def on_broken_pipe(self) -> None:
        """Raise what was raised; by default rich would end the program, and take its output away."""
        raise BrokenPipeError("nobody reads the standard error file")


class _TerminalOutput:
    """A bar at the end of a terminal, drawn by nobody but who trains; what the program prints is left alone."""

    def __init__(self, *, bar: bool) -> None:
        self._console = _Errors()
        columns = (BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
        self._progress = Progress(
            *columns,
            console=self._console,
            transient=True,
            disable=not bar,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bar = self._progress.add_task("", total=1.0)
        self._progress.start()

    def show(self, share: float, text: str) -> None:
        """Show the bar in place of what was shown before."""
        self._progress.update(self._bar, completed=share, description=text, refresh=True)

    def end(self, text: str) -> None:
        """Show the text in place of the bar."""
        self._progress.stop()
        self._console.print(text, highlight=False, markup=False)


def notebook_output() -> ProgressOutput | None:
    """Return a new output below the cell that runs; None outside of a notebook."""
    module = sys.modules.get("IPython")  # a notebook has imported it
    shell = None if module is None else module.get_ipython()
    return None if shell is None or not hasattr(shell, "kernel") else _NotebookOutput()


def terminal_output() -> ProgressOutput | None:
    """Return a line at the end of the terminal that errors go to; None where they go elsewhere."""
    file = sys.stderr
    is_seen = file is not None and file.isatty() and not _Errors().is_dumb_terminal
    return _TerminalOutput(bar=True) if is_seen else None


def output_for(progress: bool | None) -> ProgressOutput:
    """Return where a training is shown; nowhere, where that cannot be written to.

    Args:
        progress: None to show it where somebody looks, in a notebook or a terminal; True to write to the standard error
            file where nobody does; False to show nothing.

    Raises:
        InputError: it is something else.
    """
    if progress is not None and not isinstance(progress, bool):
        raise InputError(f"progress must be True, False or None, not {progress!r}")
    if progress is False:
        return _NoOutput()
    try:
        found = notebook_output() or terminal_output()
        return found or (_TerminalOutput(bar=False) if progress else _NoOutput())
    except (OSError, ValueError):
        return _NoOutput()


@contextmanager
def ending(display: FitDisplay) -> Iterator[FitDisplay]:
    """Let a display end with what is in the context, and say whether that went well."""
    learned = False
    try:
        yield display
        learned = True
    finally:
        display.end(learned=learned)
