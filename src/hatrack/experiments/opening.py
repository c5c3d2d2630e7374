"""Using the network of a run: exporting its tasks, and asking it about pictures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hatrack.errors import DataError, InputError
from hatrack.experiments.preparing import Prepared
from hatrack.experiments.recorded import load_recorded, recorded_result
from hatrack.experiments.request import RunRequest
from hatrack.export import Exported, Labels, export_all_tasks, export_task
from hatrack.forgettable import ForgettableNetwork
from hatrack.names import unknown_name
from hatrack.network import HATNetwork
from hatrack.streams import Task
from hatrack.streams.transforms import Chain, Normalise, Permute, Transform
from hatrack.weights import WeightMaskedNetwork

__all__ = ["PicturePrediction", "describe_transform", "export_run", "masked_network", "open_run", "predict_pictures"]

COMPARED = 256
"""On how many test samples of a task an export is compared."""


@dataclass(frozen=True)
class PicturePrediction:
    """What a run's network says to a picture.

    Attributes:
        picture: the file.
        task: the task that was named, or recognised.
        classes: names of the task's classes, the likeliest first.
        probabilities: their probabilities, given the task.
    """

    picture: Path
    task: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def open_run(folder: Path, data: Path | None = None) -> tuple[Prepared, tuple[Task, ...]]:
    """Load the network of a run, and the tasks that it has learned.

    Args:
        folder: the run's folder.
        data: folder to look for data in first; classes and preprocessing come from there.

    Raises:
        InputError: the folder holds no run, or one in which no task was learned.
        CheckpointError: a file is damaged, or forgetting a task was interrupted.
        DataError: the data is missing.
    """
    recorded = recorded_result(folder)
    sources = tuple(map(Path, recorded.sources))
    asked = (recorded.experiment, recorded.method, recorded.seed, None, data, recorded.config)
    prepared = load_recorded(folder, recorded, RunRequest(*asked, sources=sources))
    prepared.method.train_mode(False)
    return prepared, prepared.stream[: len(recorded.scores)]


def masked_network(folder: Path, prepared: Prepared) -> HATNetwork | WeightMaskedNetwork:
    """The network of a run, out of which tasks can be taken.

    Raises:
        InputError: the run's method has no masks.
    """
    net = getattr(prepared.method, "network", None)
    if not isinstance(net, (HATNetwork, WeightMaskedNetwork)):
        method = prepared.request.method
        raise InputError(f"{folder} was made by {method}; only tasks of hat, pmask and their kin can be taken out")
    return net


def describe_transform(transform: Transform | None) -> dict[str, Any]:
    """How bytes of a picture become a sample, as JSON values.

    Raises:
        InputError: the transform is of a kind that has no description.
    """
    match transform:
        case None:
            return {}
        case Normalise():
            return {"divide_by": 255, "mean": list(transform.mean), "std": list(transform.std)}
        case Permute():
            return {"permutation": transform.permutation.tolist()}
        case Chain():
            return {"steps": [describe_transform(step) for step in transform.steps]}
        case _:
            raise InputError(f"samples go through {type(transform).__name__}, which no file could describe")


def export_run(folder: Path, task: str | None, to: Path, data: Path | None = None) -> Exported:
    """Export a task of a run, or all of them to one file.

    Args:
        folder: the run's folder.
        task: the task; None for all.
        to: the file.
        data: folder to look for data in first; test samples are what the file is compared on.

    Raises:
        InputError: there is no such task or kind of file, or the method has no masks, or masks of weights and all tasks
            are to go into one file.
        UnsupportedError, GuaranteeError: as :func:`hatrack.export.export_task`.
    """
    prepared, tasks = open_run(folder, data)
    net = masked_network(folder, prepared)
    if task is None and not isinstance(net, HATNetwork):
        method = prepared.request.method
        raise InputError(f"{folder} was made by {method}, whose masks of weights do not mix; export tasks with --task")
    samples = {each.name: each.test.load()[0][:COMPARED] for each in tasks if task in (None, each.name)}
    labels = {each.name: Labels(each.classes, describe_transform(each.test.transform)) for each in tasks}
    if task is None:
        assert isinstance(net, HATNetwork)
        return export_all_tasks(net, to, samples, labels)
    if task not in samples:
        raise unknown_name("task", task, [each.name for each in tasks])
    return export_task(net, task, to, samples[task], labels[task])


@torch.no_grad()
def predict_pictures(
    folder: Path, task: str | None, pictures: Sequence[Path], data: Path | None = None
) -> list[PicturePrediction]:
    """Ask the network of a run about picture files.

    Pictures are brought to the size and the number of channels that the run's data has, and then treated as that.

    Args:
        folder: the run's folder.
        task: the task; None recognises it, by its distance, calibrated on the run's training data.
        pictures: the files.
        data: folder to look for data in first.

    Raises:
        InputError: there is no such task, no picture was named, or the method recognises no tasks.
        DataError: a file is no picture.
    """
    if not pictures:
        raise InputError("name at least one picture")
    prepared, tasks = open_run(folder, data)
    known = {each.name: each for each in tasks}
    if task is not None and task not in known:
        raise unknown_name("task", task, list(known))
    first = tasks[0] if task is None else known[task]
    raw = torch.stack([_read(picture, tuple(first.test.source.shape[1:])) for picture in pictures])
    if task is not None:
        x = raw.float() if first.test.transform is None else first.test.transform(raw)
        names, logits = [task] * len(x), prepared.method.predict(x, task)
    else:
        names, logits = _recognise(prepared, tasks, raw)
    found = []
    for picture, name, row in zip(pictures, names, logits, strict=True):
        classes = known[name].classes
        shares, order = torch.softmax(row[: len(classes)].float(), 0).sort(descending=True)
        likeliest = tuple(classes[index] for index in order.tolist())
        found.append(PicturePrediction(picture, name, likeliest, tuple(shares.tolist())))
    return found


def _recognise(prepared: Prepared, tasks: Sequence[Task], raw: Tensor) -> tuple[list[str], Tensor]:
    net = getattr(prepared.method, "network", None)
    if not isinstance(net, ForgettableNetwork):
        raise InputError(f"{prepared.request.method} recognises no tasks; name one with --task")
    kinds = [describe_transform(task.test.transform) for task in tasks]
    if any(kind != kinds[0] for kind in kinds):
        raise InputError("tasks of this run prepare their samples differently; name one with --task")
    for task in tasks:
        net.calibrate(task.name, *task.train.load())
    transform = tasks[0].test.transform
    inferred = net.infer(raw.float() if transform is None else transform(raw))
    return inferred.task_names, inferred.logits


def _read(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The bytes of a picture, brought to ``(channels, height, width)``."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"samples of this run have shape {shape}, and are no pictures")
    channels, height, width = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                sized = picture.convert("L" if channels == 1 else "RGB").resize((width, height))
    except (UnidentifiedImageError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no picture that can be read ({error})") from error
    except OSError as error:
        raise DataError(f"{path} could not be read ({error.strerror or error})") from error
    values = torch.frombuffer(bytearray(sized.tobytes()), dtype=torch.uint8)
    return values.view(height, width, channels).permute(2, 0, 1).contiguous()
