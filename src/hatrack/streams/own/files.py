"""A task of a person's own: what it is said to be, and reading its files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from hatrack.data.files import read_payload
from hatrack.data.npz import decode_npy, read_first, read_npz
from hatrack.data.trees import tree_digest
from hatrack.errors import DataError, InputError, UnfitDataError
from hatrack.objectives import TargetKind
from hatrack.streams.own.cells import CellFormat
from hatrack.streams.own.formats import TABLE_SUFFIXES, table_kind
from hatrack.streams.own.pictures import class_folders, is_divided, read_picture, say_unread
from hatrack.streams.own.samples import OwnSamples, divided_samples, fitted
from hatrack.streams.own.spelling import refuse_alike
from hatrack.streams.own.tables import TableFormat, read_table
from hatrack.streams.own.targets import UNSAID, ClassTexts, TargetChoice, kind_of_own, targets_of_array
from hatrack.streams.seeding import seeded_generator

__all__ = ["OwnTask", "digest_of", "read_array", "read_own_task"]

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
LEAST_OF_16_BITS = 1 << 14
"""Value that the brightest 16-bit picture of a folder must reach; below it, the pictures hold 12 bits or so."""
NPZ_BYTES = 1 << 36
"""Largest size of the arrays of an npz file, unpacked: a few kilobytes can unpack to as much as one likes."""


@dataclass(frozen=True)
class OwnTask:
    """A task made of files.

    Attributes:
        name: letters, digits, ``_`` and ``-``.
        path: a folder of pictures, an ``.npz`` file, or a table: a file whose name ends as one of
            :data:`hatrack.streams.own.formats.TABLE_SUFFIXES`.
        table: meaning of the columns of a table; None for the other kinds.
        test: a second table with the test samples, or None.
        test_share: share of the samples to test on, drawn by the seed and stratified by class, for a table without
            ``test`` and for a folder without ``train`` and ``test`` in it; None where the files say it.
        resize: height and width that pictures get, or None to leave them.
        channels: 1 or 3, what pictures are turned into, or None to leave them.
        choice: what is said about the targets.

    Raises:
        InputError: these do not go together.
    """

    name: str
    path: Path
    table: TableFormat | None = None
    test: Path | None = None
    test_share: float | None = None
    resize: tuple[int, int] | None = None
    channels: int | None = None
    choice: TargetChoice = UNSAID

    def __post_init__(self) -> None:
        if not self.path.exists():
            raise InputError(f"task {self.name}: {self.path} does not exist")
        if not self.path.is_dir() and self.path.suffix.lower() != ".npz" and table_kind(self.path) is None:
            others = ", ".join(ending for ending in TABLE_SUFFIXES if ending != ".csv")
            raise InputError(
                f"task {self.name}: {self.path} is no folder of pictures, .npz or .csv file, nor another "
                f"table ({others})"
            )
        if self.table is not None and not self.is_table:
            raise InputError(
                f"task {self.name}: {self.path} is no CSV file or other table; label, drop, delimiter, decimal, "
                "encoding, categories and test are for those"
            )
        if self.path.is_dir() and self.choice.kind not in (None, TargetKind.CLASSES):
            raise InputError(f"task {self.name}: {self.path} is a folder of pictures, whose targets are classes")
        if self.table is not None and (kind := table_kind(self.path)) is not None and not kind.is_text:
            of_text = [key for key in self.table.cells.said if key != "categories"]
            if of_text:
                raise InputError(
                    f"task {self.name}: {self.path} has columns with types; leave out {' and '.join(of_text)}, for "
                    "tables of text"
                )
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

    @property
    def has_test(self) -> bool:
        """Return whether its files say which samples are for testing."""
        return self.test is not None if self.is_table else not self.path.is_dir() or is_divided(self.path)

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
            raise InputError(f"task {self.name}: {self.path} has no test samples; give test_share (`test_share=0.2`)")
        return replace(self, table=table, test_share=share, choice=choice.over(self.choice))

    @property
    def is_table(self) -> bool:
        """Return whether it is a table."""
        return not self.path.is_dir() and table_kind(self.path) is not None

    @property
    def kind(self) -> str:
        """Name the kind of its files, in a word or two."""
        return "pictures" if self.path.is_dir() else "table" if self.is_table else "npz"


def read_own_task(task: OwnTask, seed: int) -> tuple[OwnSamples, OwnSamples]:
    """Read the training and test samples of a task.

    Args:
        task: the task to read.
        seed: draws the test samples where ``test_share`` is given, together with the task's name.

    Raises:
        DataError: a file is missing, damaged, or not what it should be; it is named.
    """
    if task.table is not None:
        train = read_table(task.path, task.table, choice=task.choice)
        known = replace(task.choice, kind=kind_of_own(train.targets))
        test = None if task.test is None else read_table(task.test, task.table, train.columns, known)
    elif task.path.is_dir():
        files = _picture_files(task)
        say_unread(task.path)
        train, *others = (_read_pictures(folder, classes, task) for folder, classes in files.items())
        test = others[0] if others else None
    else:
        train, test = _read_npz(task)
    if test is not None:
        return train, test
    assert task.test_share is not None
    return divided_samples(train, task.test_share, seeded_generator(seed, "test", task.name))


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
    array = read_first(payload, ("x", "x_test"), NPZ_BYTES, str(path)) if is_npz else decode_npy(payload, str(path))
    x = _numbers(array, str(path))
    is_image = x.dim() == 4 and like is not None
    return fitted(x, like.resize, like.channels) if is_image and like is not None else x


def digest_of(task: OwnTask) -> str:
    """Return the SHA-256 of all files of a task: of their paths within it, their sizes and their contents.

    Raises:
        DataError: a file cannot be read.
    """
    if task.path.is_dir():
        paths = (path for classes in _picture_files(task).values() for paths in classes.values() for path in paths)
        files = {path.relative_to(task.path).as_posix(): path for path in paths}
    else:
        files = {"": task.path} if task.test is None else {"": task.path, "test": task.test}
    return tree_digest(files)


def _picture_files(task: OwnTask) -> dict[Path, dict[str, list[Path]]]:
    """Return the folders of a task of pictures, the training one first, with the files of every class."""
    parts = [task.path / "train", task.path / "test"] if is_divided(task.path) else [task.path]
    return {part: class_folders(part) for part in parts}


def _read_pictures(folder: Path, classes: dict[str, list[Path]], task: OwnTask) -> OwnSamples:
    """Read the pictures of a folder, of one size and one number of channels."""
    refuse_alike(list(classes), lambda row: str(folder / list(classes)[row]))
    paths = [path for files in classes.values() for path in files]
    images = []
    brightest = None
    for path in paths:
        pixels, bright = read_picture(path, task.channels)
        images.append(fitted(pixels[None], task.resize, None))
        brightest = max((each for each in (bright, brightest) if each is not None), default=None)
        if images[-1].shape != images[0].shape:
            channels, height, width = images[-1].shape[1:]
            others, high, wide = images[0].shape[1:]
            raise UnfitDataError(
                f"{path} has {channels} channels of {height} x {width} pixels, {paths[0]} {others} of {high} x {wide}; "
                "say what all shall have by resize = [height, width] and channels = 1 or 3 in a tasks.toml"
            )
    if brightest is not None and brightest < LEAST_OF_16_BITS:
        raise DataError(
            f"{folder}: its pictures of 16 bits have values up to {brightest} of 65535, of which bytes keep little; "
            "scale them to the whole range, or put them in an .npz as numbers"
        )
    return OwnSamples(torch.cat(images), ClassTexts(tuple(path.parent.name for path in paths)), str(folder))


def _read_npz(task: OwnTask) -> tuple[OwnSamples, OwnSamples]:
    arrays = read_npz(read_payload(task.path), ARRAYS, limit=NPZ_BYTES, origin=str(task.path))
    # What the training targets are decides on the test targets, too: a few of these may look like something else.
    first = targets_of_array(arrays["y_train"], len(arrays["x_train"]), task.choice.kind, f"{task.path}: y_train")
    kind = kind_of_own(first)
    train, test = (
        OwnSamples(
            _numbers(arrays[f"x_{part}"], f"{task.path}: x_{part}"),
            targets_of_array(arrays[f"y_{part}"], len(arrays[f"x_{part}"]), kind, f"{task.path}: y_{part}"),
            str(task.path),
        )
        for part in ("train", "test")
    )
    if task.resize is None and task.channels is None:
        if train.x.dim() < 4 or train.x.dtype == torch.uint8:
            return train, test
        note = (
            "every position of a sample is standardised by itself; where the numbers are pictures, save them as bytes, "
            "or say channels = 1 or 3 in a tasks.toml"
        )
        return replace(train, notes=(note,)), test
    if train.x.dim() != 4:
        raise InputError(f"task {task.name}: resize and channels are for pictures, not for {tuple(train.x.shape)}")
    fit = (fitted(samples.x, task.resize, task.channels) for samples in (train, test))
    both = (replace(samples, x=x, pictures=True) for samples, x in zip((train, test), fit, strict=True))
    return tuple(both)  # type: ignore[return-value]


def _numbers(array: np.ndarray, where: str) -> torch.Tensor:
    """Return samples as images ``(N, C, H, W)`` where they can be images, and else as numbers ``(N, ...)``.

    Truth values become 0 and 1.

    Pictures are ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)`` with 1 or 3 channels C.
    """
    array = array.astype(np.float32) if array.dtype.kind == "b" else array
    if array.ndim < 2 or not array.size or array.dtype.kind not in "uif":
        raise UnfitDataError(f"{where} must hold numbers, (N, ...) with none of it 0, not {array.dtype} {array.shape}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.dtype == np.uint8:
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
