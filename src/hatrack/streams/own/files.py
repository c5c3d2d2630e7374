"""A task of a person's own: what it is said to be, and reading its files."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hatrack.data.files import read_payload, unpacked_limit
from hatrack.data.npz import array_names, decode_npy, read_first, read_npz
from hatrack.data.trees import tree_digest
from hatrack.errors import InputError, UnfitDataError
from hatrack.objectives import TargetKind
from hatrack.streams.files_read import FilesRead
from hatrack.streams.own.cells import CellFormat
from hatrack.streams.own.formats import TABLE_SUFFIXES, table_kind
from hatrack.streams.own.image_axes import CHANNELS, ImageAxes, channels_first
from hatrack.streams.own.pictures import ARCHIVE, has_test_pictures, picture_digest, read_pictures
from hatrack.streams.own.samples import OwnSamples, ReadSamples, divided_samples, fitted
from hatrack.streams.own.tables import TableFormat, read_table
from hatrack.streams.own.targets import UNSAID, TargetChoice, kind_of_own, targets_of_array
from hatrack.streams.seeding import seeded_generator

__all__ = ["OwnTask", "digest_of", "read_array", "read_own_task"]

TRAINING, TEST = ("x_train", "y_train"), ("x_test", "y_test")
"""Names of the arrays of an ``.npz`` file; those of the test samples may both be missing."""
SHOWN = 5
"""Number of arrays that a note names."""


@dataclass(frozen=True)
class OwnTask:
    """A task made of files.

    Attributes:
        name: letters, digits, ``_`` and ``-``.
        path: a folder or ``.zip`` archive of pictures, an ``.npz`` file, or a table: a file whose name ends as one of
            :data:`hatrack.streams.own.formats.TABLE_SUFFIXES`.
        table: meaning of the columns of a table; None for the other kinds.
        test: a second table with the test samples, or None.
        test_share: share of the samples to test on, drawn by the seed and stratified by class, for a table without
            ``test``, for pictures without ``train`` and ``test`` (or ``val``) and for an ``.npz`` file without
            ``x_test`` and ``y_test``; None where the files say it.
        resize: height and width that pictures get, or None to leave them.
        channels: 1 or 3, what pictures are turned into, or None to leave them.
        choice: what is said about the targets.
        axes: order of the axes of the images of an ``.npz`` file; None lets their sizes tell it.

    Raises:
        InputError: these do not go together.
        DataError: the folder or archive cannot be read.
    """

    name: str
    path: Path
    table: TableFormat | None = None
    test: Path | None = None
    test_share: float | None = None
    resize: tuple[int, int] | None = None
    channels: int | None = None
    choice: TargetChoice = UNSAID
    axes: ImageAxes | None = None

    def __post_init__(self) -> None:
        if not self.path.exists():
            raise InputError(f"task {self.name}: {self.path} does not exist")
        if not self.holds_pictures and self.path.suffix.lower() != ".npz" and table_kind(self.path) is None:
            others = ", ".join(ending for ending in TABLE_SUFFIXES if ending != ".csv")
            raise InputError(
                f"task {self.name}: {self.path} is no folder of pictures, .zip of them, .npz or .csv file, nor another "
                f"table ({others})"
            )
        if self.table is not None and not self.is_table:
            raise InputError(
                f"task {self.name}: {self.path} is no CSV file or other table; label, drop, delimiter, decimal, "
                "encoding, categories and test are for those"
            )
        if self.holds_pictures and self.choice.kind not in (None, TargetKind.CLASSES):
            form = "a folder" if self.path.is_dir() else "an archive"
            raise InputError(f"task {self.name}: {self.path} is {form} of pictures, whose targets are classes")
        if self.axes is not None and (self.holds_pictures or self.is_table):
            raise InputError(f"task {self.name}: axes are for an .npz file, not for {self.path}")
        if self.table is not None and (kind := table_kind(self.path)) is not None and not kind.is_text:
            of_text = [key for key in self.table.cells.said if key != "categories"]
            if of_text:
                raise InputError(
                    f"task {self.name}: {self.path} has columns with types; leave out {' and '.join(of_text)}, for "
                    "tables of text"
                )
        if self.test is not None and not self.test.exists():
            raise InputError(f"task {self.name}: {self.test}, the table of test samples, does not exist")
        if self.test is not None and not (self.is_table and self.test.is_file() and table_kind(self.test)):
            raise InputError(
                f"task {self.name}: test must be a CSV file, or another table, beside one, not {self.test}"
            )
        if self.is_table and (self.resize or self.channels):
            raise InputError(f"task {self.name}: resize and channels are for pictures, not for {self.path}")
        if self.test_share is not None and not 0.0 < self.test_share < 1.0:
            raise InputError(f"task {self.name}: test_share must be above 0 and below 1, not {self.test_share}")
        if self.resize is not None and (len(self.resize) != 2 or min(self.resize) < 1):
            raise InputError(f"task {self.name}: resize must be [height, width], not {list(self.resize)}")
        if self.channels not in (None, 1, 3):
            raise InputError(f"task {self.name}: channels must be 1 or 3, not {self.channels}")
        if self.has_test and self.test_share is not None:
            raise InputError(f"task {self.name}: {self.path} has test samples of its own; leave out test_share")

    @functools.cached_property
    def has_test(self) -> bool:
        """Return whether its files say which samples are for testing."""
        if self.is_table:
            return self.test is not None
        if self.holds_pictures:
            return has_test_pictures(self.path)
        there = array_names(self.path)
        return not there.issuperset(TRAINING) or not there.isdisjoint(TEST)  # reading names what is missing

    def said(self, choice: TargetChoice, test_share: float | None, cells: CellFormat | None = None) -> OwnTask:
        """Return the task with what settings say of it beside what was said before.

        Args:
            choice: what settings say about the targets; it wins.
            test_share: share of the samples to test on, for files that do not say which; None for nothing.
            cells: what settings say about the cells of a table; it wins. None for nothing.

        Raises:
            InputError: these do not go together, or nobody has said which column of a table holds the targets, or which
                samples are for testing.
        """
        table, share = self.table, self.test_share if self.has_test or test_share is None else test_share
        if self.is_table:
            if choice.columns:
                table = TableFormat(choice.columns) if table is None else replace(table, label=choice.columns)
            if table is None:
                raise InputError(
                    f"task {self.name}: {self.path} needs label, the name of the column that holds the class or number "
                    "to predict (`targets=NAME`)"
                )
            table = table if choice.drop is None else replace(table, drop=choice.drop)
            table = table if cells is None else replace(table, cells=cells.over(table.cells))
        if not self.has_test and share is None:
            others = "" if self.is_table or self.holds_pictures else ", or save x_test and y_test with them"
            raise InputError(
                f"task {self.name}: {self.path} has no test samples; give test_share (`test_share=0.2`){others}"
            )
        return replace(self, table=table, test_share=share, choice=choice.over(self.choice))

    @property
    def reading(self) -> dict[str, Any]:
        """Options of reading its files, as JSON values by key; where the files are is no part of it."""
        choice, table = self.choice, self.table
        said: dict[str, Any] = {
            "label": None if table is None else list(table.columns),
            "drop": None if table is None else sorted(table.drop),
            **({} if table is None else _as_json(table.cells)),
            "axes": None if self.axes is None else self.axes.value,
            "test_share": self.test_share,
            "resize": None if self.resize is None else list(self.resize),
            "channels": self.channels,
            "target": None if choice.kind is None else choice.kind.value,
            "separator": choice.separator,
            "metric": None if choice.metric is None else choice.metric.value,
            "class_weights": None if choice.class_weights is None else str(choice.class_weights),
        }
        return {key: value for key, value in said.items() if value not in (None, [])}

    @property
    def is_table(self) -> bool:
        """Return whether it is a table."""
        return not self.path.is_dir() and table_kind(self.path) is not None

    @property
    def holds_pictures(self) -> bool:
        """Return whether it is a folder or an archive of pictures."""
        return self.path.is_dir() or self.path.suffix.lower() == ARCHIVE

    @property
    def kind(self) -> str:
        """Name the kind of its files, in a word or two."""
        return "pictures" if self.holds_pictures else "table" if self.is_table else "npz"


def read_own_task(task: OwnTask, seed: int) -> ReadSamples:
    """Read the training and test samples of a task.

    Args:
        task: the task to read.
        seed: draws the test samples where ``test_share`` is given, together with the task's name.

    Returns:
        The samples, among which there are test samples.

    Raises:
        DataError: a file is missing, damaged, or not what it should be; it is named.
    """
    if task.table is not None:
        train = read_table(task.path, task.table, choice=task.choice)
        known = replace(task.choice, kind=kind_of_own(train.targets))
        test = None if task.test is None else read_table(task.test, task.table, train.columns, known)
        found = ReadSamples(train, test, FilesRead(1 if test is None else 2))
    elif task.holds_pictures:
        found = read_pictures(task.path, task.resize, task.channels)
    else:
        found = _read_npz(task)
    if found.test is not None:
        return found
    assert task.test_share is not None
    train, test = divided_samples(found.train, task.test_share, seeded_generator(seed, "test", task.name))
    return replace(found, train=train, test=test)


def read_array(path: Path, like: OwnTask | None) -> torch.Tensor:
    """Read an array of samples without targets, such as one to predict.

    Args:
        path: an ``.npy`` file, or an ``.npz`` file with ``x`` or else ``x_test``.
        like: a task of arrays whose size and channels the samples get if it says some; None for nothing.

    Returns:
        Samples as those of the task before they are standardised: uint8 ``(N, C, H, W)``, or numbers ``(N, ...)``.

    Raises:
        DataError: the file is damaged, or holds no such array or no finite numbers.
    """
    payload = read_payload(path)
    is_npz = path.suffix.lower() == ".npz"
    limit = unpacked_limit(len(payload))
    array = read_first(payload, ("x", "x_test"), limit, str(path)) if is_npz else decode_npy(payload, str(path))
    x = _numbers(array, None if like is None else like.axes, str(path))
    if x.dim() != 4 or like is None:
        return x
    try:
        return fitted(x, like.resize, like.channels)
    except UnfitDataError as error:
        raise UnfitDataError(f"{path}: {error}") from error


def _as_json(cells: CellFormat) -> dict[str, Any]:
    """Return what is said of the cells of a table, as JSON values."""
    decimal, categories = cells.decimal, cells.categories
    return {
        "delimiter": cells.delimiter,
        "decimal": None if decimal is None else decimal.value,
        "encoding": cells.encoding,
        "categories": None if categories is None else sorted(categories),
    }


def digest_of(task: OwnTask) -> str:
    """Return the SHA-256 of all files of a task: of their paths within it, their sizes and their contents.

    Raises:
        DataError: a file cannot be read.
    """
    if task.holds_pictures:
        return picture_digest(task.path)
    return tree_digest({"": task.path} if task.test is None else {"": task.path, "test": task.test})


def _read_npz(task: OwnTask) -> ReadSamples:
    names = (*TRAINING, *TEST) if task.has_test else TRAINING
    payload = read_payload(task.path)
    arrays = read_npz(payload, names, limit=unpacked_limit(len(payload)), origin=str(task.path))
    # What the training targets are decides on the test targets, too: a few of these may look like something else.
    first = targets_of_array(arrays["y_train"], len(arrays["x_train"]), task.choice.kind, f"{task.path}: y_train")
    kind = kind_of_own(first)
    parts = [
        OwnSamples(
            _numbers(arrays[f"x_{part}"], task.axes, f"{task.path}: x_{part}"),
            targets_of_array(arrays[f"y_{part}"], len(arrays[f"x_{part}"]), kind, f"{task.path}: y_{part}"),
            str(task.path),
            tuple(f"x_{part}[{row}]" for row in range(len(arrays[f"x_{part}"]))),
        )
        for part in ("train", "test")
        if f"x_{part}" in arrays
    ]
    notes = _unread(array_names(task.path).difference(names))
    x = parts[0].x
    if task.resize is not None or task.channels is not None:
        parts = [_as_pictures(samples, task) for samples in parts]
    elif x.dim() >= 4 and x.dtype != torch.uint8:
        notes.append(
            "every position of a sample is standardised by itself; where the numbers are pictures, save them as bytes, "
            "or say channels = 1 or 3 in a tasks.toml"
        )
    return ReadSamples(parts[0], parts[1] if len(parts) > 1 else None, FilesRead(1), tuple(notes))


def _unread(names: Collection[str]) -> list[str]:
    """Return the notes on arrays of an ``.npz`` file that are not read, at most one."""
    if not names:
        return []
    arrays = ", ".join(sorted(names)[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    validation = any("val" in name.lower() for name in names)
    hint = "; validation samples are held out of x_train (`validation=0.15`)" if validation else ""
    return [f"not read: {arrays}{hint}"]


def _as_pictures(samples: OwnSamples, task: OwnTask) -> OwnSamples:
    """Return samples of an array as pictures of the task's size and channels.

    Raises:
        InputError: the array has not four axes.
        UnfitDataError: they do not fit.
    """
    if samples.x.dim() != 4:
        raise InputError(f"task {task.name}: resize and channels are for pictures, not for {tuple(samples.x.shape)}")
    try:
        return replace(samples, x=fitted(samples.x, task.resize, task.channels), pictures=True)
    except UnfitDataError as error:
        raise UnfitDataError(f"{task.path}: {error}") from error


def _numbers(array: np.ndarray, axes: ImageAxes | None, where: str) -> torch.Tensor:
    """Return samples as images ``(N, C, H, W)`` where they can be images, and else as numbers ``(N, ...)``.

    Truth values become 0 and 1. Bytes stay bytes where they are ``(N, H, W)``, or have 1, 3 or 4 channels; see
    :func:`channels_first`.
    """
    array = array.astype(np.float32) if array.dtype.kind == "b" else array
    if array.ndim < 2 or not array.size or array.dtype.kind not in "uif":
        raise UnfitDataError(f"{where} must hold numbers, (N, ...) with none of it 0, not {array.dtype} {array.shape}")
    array = array[:, None] if array.ndim == 3 else channels_first(array, axes, where)
    if array.ndim == 4 and array.shape[1] in CHANNELS and array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array))
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise UnfitDataError(f"{where} holds NaN, infinite or far too large values; clean it first")
    if array.dtype.itemsize <= 2 or array.dtype == np.float32 or bool((narrow == array).all()):
        return torch.from_numpy(narrow)
    wide = array.astype(np.float64)
    if array.dtype.kind in "ui" and len(np.unique(array)) != len(np.unique(wide)):
        raise UnfitDataError(
            f"{where} holds whole numbers that are the same in 64 bits; subtract what all have in common"
        )
    return torch.from_numpy(wide)
