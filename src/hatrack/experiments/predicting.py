"""Asking the network of a run about files: pictures, arrays and tables."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.data.files import read_payload
from hatrack.data.picture_files import read_picture
from hatrack.errors import DataError, InputError, UnfitDataError
from hatrack.experiments.opening import describe_transform, open_run
from hatrack.experiments.preparing import Run
from hatrack.models.base import MaskedNetwork
from hatrack.objectives import Classification, MultiLabel, Regression
from hatrack.streams import CellFormat, OwnTask, Task
from hatrack.streams.own.columns import TableRows
from hatrack.streams.own.files import read_array
from hatrack.streams.own.formats import TABLE_SUFFIXES
from hatrack.streams.own.samples import fitted
from hatrack.streams.own.tables import read_rows
from hatrack.support.names import look_up

__all__ = ["SamplePrediction", "predict_files"]

ARRAY_SUFFIXES = (".npy", ".npz")
AT_ONCE = 4096
"""Number of samples that the network is asked about in one batch, at most."""

_PROPOSAL = re.compile(r"(?:, or |say )?\w+ = \"[^\"]*\" \(`\w+=[^`]*`\)(?:, or )?")
"""Words of a message that propose a setting for reading a table in another way.

How tables are read is settled once a network was trained on them.
"""


@dataclass(frozen=True)
class SamplePrediction:
    """Prediction of a run's network for a sample.

    Attributes:
        sample: the picture's file, or the file and the place of the sample in it.
        task: the task that was named, or recognised.
        classes: names of the task's classes or labels, the likeliest first; or of its columns of numbers.
        probabilities: their probabilities, given the task; empty for numbers.
        said: what was predicted, in words: the class, the numbers, or the labels.
        numbers: the predicted numbers, one for each column, in its unit; empty for classes and labels.
    """

    sample: str
    task: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    said: str
    numbers: tuple[float, ...] = ()


class _FileKind(Enum):
    """Kind of files that hold samples; the value is what a message calls them."""

    PICTURES = "picture files"
    ARRAYS = "arrays (.npy, or .npz with x)"
    TABLES = "tables"


class _Samples(NamedTuple):
    """Samples as the tasks of a run take them, before they are standardised."""

    x: Tensor
    names: tuple[str, ...]


@torch.no_grad()
def predict_files(
    folder: Path, task: str | None, files: Sequence[Path], data: Path | None = None
) -> list[SamplePrediction]:
    """Ask the network of a run about the samples of some files.

    Pictures are brought to the size, the number of channels and the range that the run's data has, and then treated as
    that. Of a table the columns of training are read, in whatever order they stand, and no others; its cells are
    written as those of training. An array ``(N, ...)`` is in an ``.npy`` file, or is ``x`` or else ``x_test`` of an
    ``.npz`` file, and has the shape of those of training.

    Args:
        folder: the run's folder.
        task: the task; None recognises it, by sums of the run's training data, or by distances where samples have none.
        files: the files, all of one kind.
        data: folder to look for data in first.

    Raises:
        InputError: there is no such task or file, no file was named, the files are not of the kind of the run's data,
            the method recognises no tasks, or it is not certain in which range the run's data hold pictures.
        DataError: a file is damaged, lacks a column or a value, holds samples of another shape, or is far brighter than
            all pictures in training.
    """
    if not files:
        raise InputError("name at least one picture, table or array")
    prepared, tasks = open_run(folder, data)
    known = {each.name: each for each in tasks}
    first = tasks[0] if task is None else look_up("task", task, known)
    for path in files:
        if not path.is_file():
            kind = _kind_of_file(path).value
            raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; name {kind}")
    samples = _read(files, first, _own_task(prepared, first.name))
    if task is None:
        names, logits = _recognise(prepared, tasks, samples)
    else:
        names = [task] * len(samples.names)
        logits = torch.cat([prepared.method.predict(x, task) for x in _batches(samples, first)])
    found = []
    for sample, name, row in zip(samples.names, names, logits, strict=True):
        objective = known[name].objective
        outputs = row[: objective.outputs].float().cpu()
        (said,) = objective.say(outputs.unsqueeze(0))
        if isinstance(objective, Regression):
            (numbers,) = objective.values(outputs.unsqueeze(0)).tolist()
            found.append(SamplePrediction(sample, name, objective.names, (), said, tuple(numbers)))
            continue
        shares = outputs.sigmoid() if isinstance(objective, MultiLabel) else torch.softmax(outputs, 0)
        shares, order = shares.sort(descending=True)
        likeliest = tuple(objective.names[index] for index in order.tolist())
        found.append(SamplePrediction(sample, name, likeliest, tuple(shares.tolist()), said))
    return found


def _own_task(prepared: Run, name: str) -> OwnTask | None:
    """Return what is said of a task of one's own; None for presets."""
    own, data = prepared.experiment.own, prepared.config.stream
    if own is None:
        return None
    described = next(task for task in own.tasks if task.name == name)
    return described.said(data.choice, data.test_share, data.cells)


def _batches(samples: _Samples, task: Task) -> list[Tensor]:
    """Return the samples standardised as those of a task, in parts.

    Raises:
        UnfitDataError: a sample is too far from those of training for float32.
    """
    transform = task.test.transform
    batches = []
    for start in range(0, len(samples.x), AT_ONCE):
        part = samples.x[start : start + AT_ONCE]
        batches.append(part.float() if transform is None else transform(part).float())
        finite = batches[-1].isfinite().flatten(1).all(dim=1)
        if not finite.all():
            sample = samples.names[start + int((~finite).nonzero()[0])]
            raise UnfitDataError(f"{sample}: is infinitely far from all training samples; correct it or leave it out")
    return batches


def _recognise(prepared: Run, tasks: Sequence[Task], samples: _Samples) -> tuple[list[str], Tensor]:
    net = getattr(prepared.method, "network", None)
    if not isinstance(net, MaskedNetwork):
        raise InputError(f"{prepared.request.method} recognises no tasks; name one with `task`")
    for task in tasks:
        if not isinstance(task.objective, Classification):
            raise InputError(
                f"task {task.name!r} is {task.objective.kind}, and only classes tell a task; name one with `task`"
            )
    kinds = [describe_transform(task.test.transform) for task in tasks]
    if any(kind != kinds[0] for kind in kinds):
        raise InputError("tasks of this run prepare their samples differently; name one with `task`")
    for task in tasks:
        if net.tasks.named(task.name).sums is None:  # else the network's file had them
            net.calibrate(task.name, *task.train.load())
    inferred = [net.infer(batch) for batch in _batches(samples, tasks[0])]
    width = max(each.logits.shape[1] for each in inferred)
    logits = [F.pad(each.logits, (0, width - each.logits.shape[1]), value=-math.inf) for each in inferred]
    return [name for each in inferred for name in each.task_names], torch.cat(logits)


def _kind_of_file(path: Path) -> _FileKind:
    name = path.name.lower()
    return (
        _FileKind.TABLES
        if name.endswith(TABLE_SUFFIXES)
        else _FileKind.ARRAYS
        if name.endswith(ARRAY_SUFFIXES)
        else _FileKind.PICTURES
    )


def _read(paths: Sequence[Path], task: Task, own: OwnTask | None) -> _Samples:
    """Read the samples of some files.

    Raises:
        InputError: the files are of several kinds, or not of that of the task's samples.
        DataError: a file is damaged, or its samples are no such samples.
    """
    kinds = {_kind_of_file(path): path for path in paths}
    if len(kinds) > 1:
        raise InputError(
            f"{' and '.join(str(path) for path in kinds.values())} are of two kinds; ask about one at a time"
        )
    (kind,) = kinds
    transform = task.test.transform
    if isinstance(transform, TableRows) != (kind is _FileKind.TABLES):
        is_table = isinstance(transform, TableRows)
        columns = ", ".join(column.name for column in transform.columns) if isinstance(transform, TableRows) else ""
        samples = f"rows of tables with the columns {columns}" if is_table else "no rows of tables"
        others = "tables with these" if is_table else "arrays, or picture files if they are pictures"
        raise InputError(f"{paths[0]}: samples of this run are {samples}, so name {others}")
    if isinstance(transform, TableRows):
        return _read_tables(paths, transform, own)
    if kind is _FileKind.PICTURES:
        return _Samples(_read_all(paths, task.train.source), tuple(map(str, paths)))
    arrays = [_read_array(path, task.train.source, own) for path in paths]
    names = [f"{path}[{row}]" for path, array in zip(paths, arrays, strict=True) for row in range(len(array))]
    return _Samples(torch.cat([array.double() for array in arrays]) if len(arrays) > 1 else arrays[0], tuple(names))


def _read_tables(paths: Sequence[Path], rows: TableRows, own: OwnTask | None) -> _Samples:
    form = CellFormat() if own is None or own.table is None else own.table.cells
    try:
        found = [read_rows(path, rows.columns, form) for path in paths]
    except (UnfitDataError, InputError) as error:
        if (said := _PROPOSAL.sub("", str(error))) == str(error):
            raise
        raise type(error)(f"{said.rstrip('; ')}; tables to predict are written as those of training") from error
    for note in (note for each in found for note in each.notes):
        warnings.warn(note, stacklevel=4)
    return _Samples(torch.cat([each.x for each in found]), tuple(place for each in found for place in each.places))


def _read_array(path: Path, source: Tensor, own: OwnTask | None) -> Tensor:
    array = read_array(path, own)
    kinds = ["bytes" if each.dtype == torch.uint8 else "numbers" for each in (array, source)]
    if array.shape[1:] != source.shape[1:] or kinds[0] != kinds[1]:
        raise UnfitDataError(
            f"{path}: holds {kinds[0]} {tuple(array.shape[1:])}, those of training are {kinds[1]} "
            f"{tuple(source.shape[1:])}"
        )
    return array


def _read_all(paths: Sequence[Path], source: Tensor) -> Tensor:
    """Pictures ``(N, channels, height, width)`` with the size, the channels and the range of some samples.

    Args:
        paths: the files.
        source: the samples, before they are standardised.

    Raises:
        InputError: the samples are no pictures, or it is not certain in which range they hold them.
        DataError: a file is no whole picture, or far brighter than all samples.
    """
    shape = tuple(source.shape[1:])
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(
            f"samples of this run have shape {shape}, and are no pictures; name arrays (.npy, or .npz with x)"
        )
    step, low, high = _step(source), float(source.min()), float(source.max())
    if step is None:
        raise InputError(
            f"samples of this run were numbers from {low:g} to {high:g} in training, and it is not certain how the "
            "bytes of a picture become such; train with bytes (uint8) to ask about picture files"
        )
    read = []
    for path in paths:
        pixels = fitted(read_picture(read_payload(path), str(path), shape[0]).pixels[None], shape[1:], None)
        brightest, most = int(pixels.max()), high / step
        if 2 * most < brightest:
            raise DataError(
                f"{path}: has values up to {brightest}, all samples in training up to {most:g}; bring it to that range"
            )
        read.append(pixels)
    return torch.cat(read) if source.dtype == torch.uint8 else torch.cat(read) * step


def _step(source: Tensor) -> float | None:
    """Return the size of a step of one byte in samples: 1, or 1/255 where bytes were divided; None if uncertain."""
    if source.dtype == torch.uint8:
        return 1.0
    parts = [part.double() for part in torch.split(source, 4096)]
    low, high = min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)
    for step in (1 / 255, 1.0):
        if low >= 0 and high <= 255 * step and all(bool(((x / step).frac() - 0.5).abs().min() > 0.49) for x in parts):
            return step
    return None
