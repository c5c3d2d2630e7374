"""Showing many runs while they go on: a table in a terminal, a line per run where there is none."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hatrack.cli.options import say, with_options
from hatrack.experiments import Job, JobAdvanced, JobBegun, JobDone, JobEvent, JobFailed

__all__ = ["Board", "Going", "duration", "seconds_left"]


@dataclass(frozen=True)
class Going:
    """A run that is going on.

    Attributes:
        kind: what takes about as long as other runs of the same kind: its method, or its candidate.
        seconds: since it was taken up.
        share: how far it is, in [0, 1].
        start: how far it was when it was taken up.
    """

    kind: str
    seconds: float
    share: float
    start: float = 0.0

    @property
    def expected(self) -> float | None:
        """Return the seconds that a whole run takes; None if it is too early to say."""
        done = self.share - self.start
        return None if done < 0.02 else self.seconds / done


def seconds_left(
    finished: Mapping[str, Sequence[float]], going: Sequence[Going], waiting: Sequence[str], workers: int
) -> float | None:
    """Return the seconds that are left.

    Args:
        finished: seconds that finished runs took, by kind.
        going: runs that are going on.
        waiting: the kind of every run that has not begun.
        workers: how many run at a time.

    Returns:
        Seconds; None while nothing is known. A kind of which nothing is known takes as long as the mean of the others.
    """
    known = {kind: statistics.fmean(seconds) for kind, seconds in finished.items() if seconds}
    for run in going:
        if run.expected is not None:
            known.setdefault(run.kind, run.expected)
    if not known:
        return 0.0 if not going and not waiting else None
    usual = statistics.fmean(known.values())
    left = [(1.0 - run.share) * (known.get(run.kind, usual) if run.expected is None else run.expected) for run in going]
    work = sum(left) + sum(known.get(kind, usual) for kind in waiting)
    return max([work / max(1, workers), *left])


def duration(seconds: float) -> str:
    """Seconds for people: ``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Board:
    """A context in which :meth:`show` is given the events of many runs.

    Args:
        console: where to show.
        jobs: all runs, finished or not.
        place: row and column of a run in the table.
        verdict: what to show of a finished run, such as its accuracy.
        finished: the runs that are finished already, with the seconds that they took.
        workers: how many run at a time.
        quiet: show nothing.
    """

    def __init__(
        self,
        console: Console,
        jobs: Sequence[Job],
        place: Callable[[Job], tuple[str, str]],
        verdict: Callable[[Job], str],
        finished: Sequence[tuple[Job, float]],
        *,
        workers: int,
        quiet: bool,
    ) -> None:
        self._console, self._quiet, self._workers = console, quiet, workers
        self._place, self._verdict = place, verdict
        self._kinds = {place(job): place(job)[0] for job in jobs}
        self._rows = list(dict.fromkeys(row for row, _ in self._kinds))
        self._columns = list(dict.fromkeys(column for _, column in self._kinds))
        self._ended: dict[tuple[str, str], Text] = {}
        self._seconds: dict[str, list[float]] = {}
        self._going: dict[tuple[str, str], tuple[float, float | None, float]] = {}
        for job, seconds in finished:
            self._end(job, Text(verdict(job)), seconds)
        self._live = Live(
            console=console, get_renderable=self._table, refresh_per_second=2, transient=True, auto_refresh=True
        )
        self._alive = console.is_terminal and not quiet

    def __enter__(self) -> Board:
        if self._ended and not self._quiet:
            say(self._console, f"{len(self._ended)} of {len(self._kinds)} runs are finished already")
        if self._alive:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._alive:
            self._live.stop()

    def show(self, event: JobEvent) -> None:
        """Show what happened."""
        cell = self._place(event.job)
        match event:
            case JobBegun():
                self._going[cell] = (time.monotonic(), None, 0.0)
            case JobAdvanced():
                begun, start, _ = self._going.get(cell, (time.monotonic(), None, 0.0))
                self._going[cell] = (begun, event.share if start is None else start, event.share)
            case JobDone():
                verdict = self._verdict(event.job)
                self._end(event.job, Text(verdict), self._elapsed(cell))
                self._log(f"{' '.join(cell)}: {verdict}")
            case JobFailed():
                self._end(event.job, Text("failed", "bold red"), None)
                self._log(f"{' '.join(cell)} failed: {with_options(event.error)}")

    def _elapsed(self, cell: tuple[str, str]) -> float | None:
        """Return the seconds that a run took which was made from its beginning."""
        begun, start, _ = self._going.get(cell, (0.0, None, 0.0))
        return time.monotonic() - begun if start == 0.0 else None

    def _end(self, job: Job, verdict: Text, seconds: float | None) -> None:
        cell = self._place(job)
        self._going.pop(cell, None)
        self._ended[cell] = verdict
        if seconds is not None:
            self._seconds.setdefault(self._kinds[cell], []).append(seconds)

    def _log(self, text: str) -> None:
        if not self._quiet:
            say(self._console, f"{text} ({self._progress()})")

    def _progress(self) -> str:
        now = time.monotonic()
        going = [
            Going(self._kinds[cell], now - begun, share, start or 0.0)
            for cell, (begun, start, share) in list(self._going.items())  # the table is drawn by another thread
        ]
        waiting = [kind for cell, kind in self._kinds.items() if cell not in self._ended and cell not in self._going]
        left = seconds_left(self._seconds, going, waiting, self._workers)
        done = f"{len(self._ended)} of {len(self._kinds)} runs"
        return done if left is None or not (going or waiting) else f"{done}, about {duration(left)} left"

    def _table(self) -> RenderableType:
        table = Table("", *self._columns, box=SIMPLE)
        for row in self._rows:
            table.add_row(row, *(self._cell((row, column)) for column in self._columns))
        return Group(table, Text(self._progress(), "dim"))

    def _cell(self, cell: tuple[str, str]) -> Text:
        if cell in self._ended:
            return self._ended[cell]
        if cell in self._going:
            return Text(f"{self._going[cell][2]:.0%} …", "yellow")
        return Text("·" if cell in self._kinds else "", "dim")
