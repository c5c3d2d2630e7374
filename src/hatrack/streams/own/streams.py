"""A stream of a person's own tasks: read from a ``tasks.toml``, or from files and folders named one after the other."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from hatrack.errors import InputError
from hatrack.objectives import ClassWeights, MetricName, TargetKind
from hatrack.streams.base import Task, TaskStream, check_name, sampled_task
from hatrack.streams.own.cells import CellFormat
from hatrack.streams.own.files import OwnTask, digest_of, read_own_task
from hatrack.streams.own.formats import bare_name, table_kind
from hatrack.streams.own.image_axes import ImageAxes
from hatrack.streams.own.numerals import DecimalMark
from hatrack.streams.own.samples import as_splits
from hatrack.streams.own.seen import SeenSamples, note_of_others, note_of_own, seen_samples
from hatrack.streams.own.tables import TableFormat
from hatrack.streams.own.targets import UNSAID, TargetChoice
from hatrack.streams.sampling import StreamOptions
from hatrack.support.names import unknown_name
from hatrack.support.toml import tomllib

__all__ = ["READ_WITH", "SECTIONS", "UNNAMED", "OwnStream", "own_stream"]

SECTIONS = ("stream", "network", "training", "method")
"""Tables of settings that a ``tasks.toml`` may have."""

UNNAMED = "own"
"""Name of the stream of several files and folders, and of a run that has forgotten the single one."""
READ_WITH = ", read with "
"""Text in the record of a task's data between the digest of its files and what is said of how they are to be read."""
DEEPEST = 10
"""Number of lists and tables that may stand within each other in a ``tasks.toml``."""
_TOO_DEEP = f"has brackets or tables within each other, more than {DEEPEST} deep; it is no file about tasks"
PICTURE_KEYS = {"resize": list, "channels": int}
STREAM_KEYS = {"name": str, "task": list, **PICTURE_KEYS, **dict.fromkeys(SECTIONS, dict)}
CELL_KEYS = {"delimiter": str, "decimal": str, "encoding": str, "categories": list}
TABLE_KEYS = {"label": (str, list), "drop": list, **CELL_KEYS}
TARGET_KEYS = {"target": str, "separator": str, "metric": str, "class_weights": (str, list)}
TASK_KEYS = {
    "name": str,
    "path": str,
    "test": str,
    "test_share": float,
    "axes": str,
    **TABLE_KEYS,
    **TARGET_KEYS,
    **PICTURE_KEYS,
}
KINDS: dict[Any, str] = {
    (str, list): "a text, or a list in []",
    str: "a text",
    list: "a list in []",
    int: "a whole number",
    float: "a number",
    dict: "a table",
}


@dataclass(frozen=True)
class OwnStream:
    """Tasks made of files, in their order.

    Attributes:
        name: letters, digits, ``_`` and ``-``: that of the ``tasks.toml``, or of a single file or folder; else ``own``.
        tasks: the tasks.
        sources: the files and folders that say so, absolute: a ``tasks.toml``, or the tasks themselves.
        settings: the settings that the ``tasks.toml`` makes, by the name of their table.
    """

    name: str
    tasks: tuple[OwnTask, ...]
    sources: tuple[Path, ...]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def origins(self, num_tasks: int | None = None) -> tuple[str, ...]:
        """Records about the data for results: one line for each task, with a digest of its files and how they are read.

        Raises:
            DataError: a file cannot be read.
        """
        return tuple(
            f"{task.name}: {task.kind}, SHA-256 {digest_of(task)}"
            f"{READ_WITH}{json.dumps(task.reading, sort_keys=True, ensure_ascii=False)}"
            for task in self.tasks[:num_tasks]
        )

    def build(
        self,
        options: StreamOptions,
        *,
        num_tasks: int | None = None,
        targets: TargetChoice | None = None,
        test_share: float | None = None,
        cells: CellFormat | None = None,
    ) -> TaskStream:
        """Read the files and make the stream. The same files and arguments give the same stream.

        Args:
            options: the seed, and which samples to take.
            num_tasks: number of tasks, the first ones; None takes all.
            targets: what settings say about the targets of all tasks, which wins over what each says; None for nothing.
            test_share: share of the samples to test on, for files that do not say which; None for nothing.
            cells: what settings say about the cells of all tables, which wins over what each says; None for nothing.

        Raises:
            InputError: there are not so many tasks, their samples differ in shape, or an option is out of range.
            DataError: a file is damaged or not what it should be; it is named.
        """
        if num_tasks is not None and num_tasks > len(self.tasks):
            raise InputError(f"stream {self.name} has {len(self.tasks)} tasks, not {num_tasks}")
        choice = UNSAID if targets is None else targets
        of_tables = {"targets": choice.columns, "drop": choice.drop, "separator": choice.separator}
        said = [name for name, value in of_tables.items() if value] + list(cells.said if cells is not None else ())
        if said and not any(task.is_table for task in self.tasks):
            raise InputError(f"{' and '.join(said)}: for tables, and none of the tasks of {self.name} is one")
        tasks_said = [task.said(choice, test_share, cells) for task in self.tasks[:num_tasks]]
        built = [_build(task, options, index) for index, task in enumerate(tasks_said)]
        tasks = [each.task for each in built]
        for task in tasks:
            if task.input_shape != tasks[0].input_shape:
                raise InputError(
                    f"samples of {task.name} are {task.input_shape}, those of {tasks[0].name} {tasks[0].input_shape}; "
                    "one network needs one shape: for pictures, choose resize = [height, width] and channels = 1 or 3 "
                    "in a tasks.toml"
                )
        seen = seen_samples(tasks)
        notes = [note for each, of in zip(built, seen, strict=True) for note in each.notes_with(of)]
        notes += [note] if (note := note_of_others(tasks, seen)) else []
        tasks = [
            replace(task, test_seen={other.task: other.count for other in of})
            for task, of in zip(tasks, seen, strict=True)
        ]
        return TaskStream(self.name, tuple(tasks), self.origins(num_tasks), tuple(notes))


def own_stream(sources: Sequence[Path]) -> OwnStream:
    """Describe a stream of one's own; its samples are not read yet.

    Args:
        sources: one ``.toml`` file, or the files and folders of the tasks, each named after itself.

    Raises:
        InputError: a file does not exist, or says something that cannot be.
    """
    sources = tuple(path.absolute() for path in sources)
    if len(sources) == 1 and sources[0].suffix.lower() == ".toml":
        return _read_toml(sources[0])
    if any(path.suffix.lower() == ".toml" for path in sources):
        raise InputError("give one tasks.toml alone, or the folders and files of the tasks themselves")
    return OwnStream(_name_of(sources), tuple(OwnTask(bare_name(path), path) for path in sources), sources)


def _name_of(sources: Sequence[Path]) -> str:
    """Return a name for the stream of some files and folders: that of a single one, and the same for several."""
    # Several have none of theirs: a run can forget a task, and its folder must not go on naming it.
    return re.sub(r"[^A-Za-z0-9_-]+", "-", bare_name(sources[0])) if len(sources) == 1 else UNNAMED


class _Built(NamedTuple):
    """A task that was read, and what is to be said of it.

    Attributes:
        task: the task.
        notes: what was found in its files and a person would want to know, or decide otherwise.
        names: places in its files of the samples of its training and its test split, by position in the source.
    """

    task: Task
    notes: tuple[str, ...]
    names: tuple[tuple[str, ...], tuple[str, ...]]

    def notes_with(self, seen: Sequence[SeenSamples]) -> tuple[str, ...]:
        """Return all notes, with the one on test samples that the task trains on.

        Args:
            seen: the tasks that train on its test samples.
        """
        notes = (*self.notes, note_of_own(self.task, seen, *self.names))
        return tuple(f"task {self.task.name}: {note}" for note in notes if note)


def _build(own: OwnTask, options: StreamOptions, index: int) -> _Built:
    """Make a task of its files."""
    read = read_own_task(own, options.seed)
    assert read.test is not None
    objective, train, test, found = as_splits(read.train, read.test, own.choice)
    weights = options.class_weights or own.choice.class_weights
    task = sampled_task(own.name, objective, train, test, replace(options, class_weights=weights), index=index)
    said = own.choice.kind is not None or own.choice.separator is not None or own.holds_pictures
    unmeasured = task.objective.unmeasured(task.test.labels)
    of_tests = f"of its {len(task.test):,} test samples {unmeasured}" if unmeasured else ""
    notes = ("" if said else read.train.targets.note(), *found, *read.notes, of_tests)
    tested_on_validation = task.test is task.valid
    names = read.train.names, read.train.names if tested_on_validation else read.test.names
    return _Built(
        replace(task, files=read.files, scaled_over=len(read.train.x), test_drawn=own.test_share), notes, names
    )


def _read_toml(path: Path) -> OwnStream:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows puts a mark in front
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except RecursionError as error:
        raise InputError(f"{path}: {_TOO_DEEP}") from error
    except ValueError as error:  # TOMLDecodeError, and Python's own for numbers of thousands of digits
        raise InputError(f"{path}: not a TOML file ({' '.join(str(error).split())})") from error
    if _is_deep(content):  # Python could not even show it in a message
        raise InputError(f"{path}: {_TOO_DEEP}")
    _check(content, STREAM_KEYS, str(path))
    tasks = content.get("task", [])
    if not tasks or not all(isinstance(task, dict) for task in tasks):
        raise InputError(f"{path}: names no task; write [[task]] and below it path = ...")
    shared = {key: content[key] for key in PICTURE_KEYS if key in content}
    name = content.get("name", path.stem)
    check_name("stream", name)
    settings = {section: content[section] for section in SECTIONS if section in content}
    made = tuple(_task(task, shared, path) for task in tasks)
    names = [task.name for task in made]
    for twin in names:
        if names.count(twin) > 1:
            raise InputError(f"{path}: two tasks are named {twin!r}; give each a name of its own")
    return OwnStream(name, made, (path,), settings)


def _is_deep(content: Any) -> bool:
    """Return whether lists and tables stand within each other deeper than any ``tasks.toml`` needs."""
    level = [content]
    for _ in range(DEEPEST):
        level = [part for each in level for part in (each.values() if isinstance(each, dict) else each)]
        level = [part for part in level if isinstance(part, (dict, list))]
    return bool(level)


def _task(entry: Mapping[str, Any], shared: Mapping[str, Any], toml: Path) -> OwnTask:
    called = entry.get("name", entry.get("path", "?"))
    where = f"{toml}, task {called if isinstance(called, str) else _shown(called)}"
    _check(entry, TASK_KEYS, where)
    if "path" not in entry:
        raise InputError(f"{where}: has no path")
    path = toml.parent / entry["path"]
    is_table = table_kind(path) is not None
    given = {**({} if is_table else shared), **entry}
    for key, kind in (("drop", str), ("categories", str), ("resize", int), ("label", str)):
        if isinstance(given.get(key), str):
            continue
        if not all(type(one) is kind for one in given.get(key, ())):
            raise InputError(f"{where}: {key} must be a list of {KINDS[kind].split()[-1]}s, not {_shown(given[key])}")
    table = {key: given[key] for key in TABLE_KEYS if key in given}
    if table and "label" not in table:
        raise InputError(f"{where}: {' and '.join(table)} need label, the name of the column that holds the class")
    name = given.get("name", bare_name(path))
    check_name("task", name)
    return OwnTask(
        name,
        path,
        TableFormat(_texts(table["label"]), tuple(table.get("drop", ())), _cells(table, where)) if table else None,
        toml.parent / given["test"] if "test" in given else None,
        given.get("test_share"),
        tuple(given["resize"]) if "resize" in given else None,
        given.get("channels"),
        _choice(given, where),
        _one_of("axes", ImageAxes, given, where),
    )


def _texts(given: str | list[str]) -> str | tuple[str, ...]:
    return given if isinstance(given, str) else tuple(given)


def _cells(table: Mapping[str, Any], where: str) -> CellFormat:
    """Return what a task says about the cells of its table."""
    marks = {mark.value: mark for mark in DecimalMark}
    if (decimal := table.get("decimal", ".")) not in marks:
        raise InputError(f"{where}: decimal must be {' or '.join(map(repr, marks))}, not {_shown(decimal)}")
    categories = tuple(table["categories"]) if "categories" in table else None
    try:
        mark = marks[decimal] if "decimal" in table else None
        return CellFormat(table.get("delimiter"), mark, table.get("encoding"), categories)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _choice(given: Mapping[str, Any], where: str) -> TargetChoice:
    """Return what a task says about its targets."""
    try:
        weights = ClassWeights.read(given["class_weights"]) if "class_weights" in given else None
        kind = _one_of("target", TargetKind, given, where)
        metric = _one_of("metric", MetricName, given, where)
        return TargetChoice(kind, (), given.get("separator"), metric, weights)
    except InputError as error:
        raise error if str(error).startswith(where) else InputError(f"{where}: {error}") from error


def _one_of(key: str, kind: Any, given: Mapping[str, Any], where: str) -> Any:
    """Return the member of an enumeration that a key says by its value; None where it is not there."""
    known = [member.value for member in kind]
    if key in given and given[key] not in known:
        raise InputError(f"{where}: {key} must be one of {', '.join(known)}, not {_shown(given[key])}")
    return kind(given[key]) if key in given else None


def _check(entry: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Refuse keys that mean nothing, and values of another type."""
    for key, value in entry.items():
        if key not in known:
            raise InputError(f"{where}: {unknown_name('key', key, list(known))}")
        wanted = known[key]
        fits = isinstance(value, (int, float) if wanted is float else wanted) and not isinstance(value, bool)
        if not fits:
            raise InputError(f"{where}: {key} must be {KINDS[wanted]}, not {_shown(value)}")


def _shown(value: Any) -> str:
    """Return a value of a file for a message: not all of it where it is long, or deeper than Python would print."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
