"""Going on with other tasks than a run was begun with: those that it has begun must be the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hatrack.errors import InputError
from hatrack.experiments.request import as_text
from hatrack.experiments.results import RunResult
from hatrack.experiments.settings import SAMPLES, StreamSettings
from hatrack.streams import OwnStream, TaskStream
from hatrack.streams.own.streams import READ_WITH
from hatrack.support.values import as_json

__all__ = [
    "Difference",
    "KnownTask",
    "are_tasks_of",
    "data_seen",
    "first_difference",
    "is_same_data",
    "of_lines",
    "of_own",
    "of_record",
    "of_stream",
    "other_data",
    "require_comparable",
    "require_same_forms",
    "require_same_samples",
    "same_lines",
]


class Samples(NamedTuple):
    """Numbers by which a task's samples are told from others: classes, and samples for training and so on."""

    classes: int
    train: int
    valid: int
    test: int

    def __str__(self) -> str:
        return f"{self.train} + {self.valid} + {self.test} samples of {self.classes} classes or columns"


@dataclass(frozen=True)
class KnownTask:
    """Record of a task without its samples.

    Attributes:
        name: its name.
        data: the line about its own files, with their digest; None where the data sets of a preset are its source.
        samples: numbers of its samples; None where they have not been read.
    """

    name: str
    data: str | None = None
    samples: Samples | None = None


@dataclass(frozen=True)
class Difference:
    """The first task of a run that is another one now.

    Attributes:
        index: its place in the run, from 0.
        what: the difference, as the end of a sentence about the run.
        remedy: what can be done about it; empty where nothing can.
        is_of_data: whether the task is still there, with other data.
    """

    index: int
    what: str
    remedy: str
    is_of_data: bool


def of_record(recorded: RunResult) -> tuple[KnownTask, ...]:
    """Return the tasks of a record, learned or not."""
    lines = _by_name(recorded.data) if recorded.sources else {}
    return tuple(
        KnownTask(task.name, lines.get(task.name), Samples(task.classes, task.train, task.valid, task.test))
        for task in recorded.tasks
    )


def of_own(own: OwnStream, num_tasks: int | None) -> tuple[KnownTask, ...]:
    """Return a person's own tasks; their files are looked at and not read.

    Raises:
        DataError: a file cannot be opened.
    """
    return of_lines(own.origins(num_tasks))


def of_lines(lines: Iterable[str]) -> tuple[KnownTask, ...]:
    """Return a person's own tasks of the lines about their files."""
    return tuple(KnownTask(name, line) for name, line in _by_name(lines).items())


def of_stream(stream: TaskStream, *, is_own: bool) -> tuple[KnownTask, ...]:
    """Return the tasks of a stream, which are a person's own or of a preset."""
    lines = _by_name(stream.origins) if is_own else {}
    return tuple(
        KnownTask(
            task.name,
            lines.get(task.name),
            Samples(task.num_classes, len(task.train), len(task.valid), len(task.test)),
        )
        for task in stream
    )


def first_difference(there: Sequence[KnownTask], now: Sequence[KnownTask]) -> Difference | None:
    """Find the first task of a run that is not the same any more; None where all are, whatever follows them.

    Args:
        there: the tasks of the run.
        now: the tasks that it is to have.
    """
    names = [task.name for task in now]
    for index, task in enumerate(there):
        place = f"{task.name!r} as task {index + 1}"
        if task.name not in names:
            return Difference(index, f"with {place}, which is none of the tasks now", "put it back, or", False)
        if names[index : index + 1] != [task.name]:
            at = names.index(task.name) + 1
            return Difference(
                index, f"with {place}, which is task {at} now", "further tasks come last; put it back, or", False
            )
        same = now[index]
        if None not in (task.data, same.data) and not is_same_data(str(task.data), str(same.data)):
            lines = _told_apart((str(task.data), str(same.data)))
            since = "it is read in another way now" if READ_WITH in lines[0] else "its files have changed since"
            return Difference(index, f"on other data ({lines[0]} there, {lines[1]} now)", f"{since};", True)
        if None not in (task.samples, same.samples) and task.samples != same.samples:
            differ = f"{task.name!r}: {task.samples} there, {same.samples} now"
            return Difference(index, f"on other data ({differ})", "", True)
    return None


def are_tasks_of(recorded: RunResult, now: Sequence[KnownTask]) -> bool:
    """Return whether a record has just these tasks."""
    return len(recorded.tasks) == len(now) and first_difference(of_record(recorded), now) is None


def is_same_data(there: str, now: str) -> bool:
    """Return whether two lines are about the same data; one of an earlier version does not say how it was read."""
    if READ_WITH in there and READ_WITH in now:
        return there == now
    return there.partition(READ_WITH)[0] == now.partition(READ_WITH)[0]


def same_lines(there: Iterable[str], now: Iterable[str]) -> bool:
    """Return whether data that lines are about is all there, unchanged; there may be more."""
    by_name = _by_name(now)
    return all(name in by_name and is_same_data(line, by_name[name]) for name, line in _by_name(there).items())


def data_seen(recorded: RunResult) -> tuple[str, ...]:
    """Return the lines about the data that a run has seen: of one's own tasks, those that it has learned."""
    learned = {task.name for task in recorded.tasks[: len(recorded.scores)]}
    return tuple(line for line in recorded.data if not recorded.sources or line.partition(":")[0] in learned)


def other_data(there: Iterable[str], now: Iterable[str]) -> str:
    """Say which data, of lines about it, is other data now; empty where none is.

    Data that only one side knows is no difference: not every task of a stream has to be learned, nor every data set be
    on this machine.
    """
    known = _by_name(now)
    pairs = [(line, known[name]) for name, line in _by_name(there).items() if name in known]
    others = [pair for pair in pairs if not is_same_data(*pair)]
    sides = ["; ".join(lines) for lines in zip(*map(_told_apart, others), strict=True)]
    return f"{sides[0]} there, {sides[1]} now" if sides else ""


def require_same_forms(folder: Path, recorded: RunResult, now: Iterable[str]) -> None:
    """Refuse to go on with a run that was made of a preset's data sets in another form, or to take it for one of now.

    Args:
        folder: the run's folder.
        recorded: its record.
        now: lines about the data sets as they are found now; those that are not known are not compared.

    Raises:
        InputError: a data set has another form.
    """
    if said := other_data(recorded.data, now):
        raise InputError(
            f"{folder} holds a run on other data ({said}); give that data (`data_dir`), or choose another folder "
            "(`out`)"
        )


def require_comparable(found: Iterable[tuple[Path, RunResult]]) -> None:
    """Refuse to put runs side by side that have seen different data.

    Args:
        found: folders of runs, and their records.

    Raises:
        InputError: two runs have seen the same data set, or task, with different content.
    """
    seen: dict[str, tuple[Path, str]] = {}
    for folder, result in found:
        for line in data_seen(result):
            name = line.partition(":")[0]
            first, there = seen.setdefault(name, (folder, line))
            if not is_same_data(there, line):
                lines = _told_apart((there, line))
                raise InputError(
                    f"{first} and {folder} hold runs on different data ({lines[0]}; {lines[1]}), which cannot be "
                    "compared; remove one of them, or compare in another folder (`out`)"
                )


def require_same_samples(found: Iterable[tuple[Path, RunResult]]) -> None:
    """Refuse to put runs side by side whose settings chose different samples to learn or to test on.

    The number of tasks is left out: a run of fewer tasks than others have is not finished beside them.

    Args:
        found: folders of runs, and their records.

    Raises:
        InputError: two runs have different values of a setting that decides which samples there are.
    """
    usual = {key: as_json(getattr(StreamSettings(), key)) for key in SAMPLES}
    first: tuple[Path, dict[str, Any]] | None = None
    for folder, result in found:
        config = {**usual, **result.config}  # records of before lack some; the class of the method may be absent
        mine = {key: config[key] for key in SAMPLES if key != "num_tasks"}
        if first is None:
            first = folder, mine
        elif mine != first[1]:
            pairs = [(key, as_text(first[1][key]), as_text(mine[key])) for key in mine if mine[key] != first[1][key]]
            said = ", ".join(f"{key} is {there} and {here}" for key, there, here in pairs)
            raise InputError(
                f"{first[0]} and {folder} hold runs on different samples ({said}), which cannot be compared; set it "
                "for all methods alike, and compare in another folder (`out`)"
            )


def _told_apart(lines: tuple[str, str]) -> tuple[str, str]:
    """Return two lines about different data, without how it is read where its digests tell it apart."""
    there, now = (line.partition(READ_WITH)[0] for line in lines)
    return lines if there == now else (there, now)


def _by_name(lines: Iterable[str]) -> dict[str, str]:
    """Return lines by what they are about: a task of one's own, or a data set."""
    return {line.partition(":")[0]: line for line in lines}
