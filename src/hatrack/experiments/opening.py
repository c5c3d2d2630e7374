"""Using the network of a run: exporting its tasks, measuring their size and speed, and asking it about pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from hatrack.compact.export import Exported, Labels, export_all_tasks, export_task
from hatrack.data.files import read_payload
from hatrack.data.picture_files import read_picture
from hatrack.errors import DataError, InputError
from hatrack.experiments.preparing import Run
from hatrack.experiments.recorded import load_recorded, recorded_result, request_of
from hatrack.models.base import MaskedNetwork
from hatrack.models.hat import HATNetwork
from hatrack.models.weight_masked import WeightMaskedNetwork
from hatrack.objectives import Classification, MultiLabel, Regression
from hatrack.streams import Task
from hatrack.streams.own.samples import fitted
from hatrack.streams.transforms import Chain, Normalise, Permute, Standardise, Transform
from hatrack.support.modes import evaluation_mode
from hatrack.support.names import look_up

__all__ = [
    "PicturePrediction",
    "TaskSize",
    "describe_transform",
    "export_run",
    "measure_sizes",
    "open_run",
    "predict_pictures",
]

COMPARED = 256
"""On how many test samples of a task an export is compared."""


@dataclass(frozen=True)
class PicturePrediction:
    """Prediction of a run's network for a picture.

    Attributes:
        picture: the file.
        task: the task that was named, or recognised.
        classes: names of the task's classes or labels, the likeliest first; or of its columns of numbers.
        probabilities: their probabilities, given the task; empty for numbers.
        said: what was predicted, in words: the class, the numbers, or the labels.
    """

    picture: Path
    task: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    said: str


def open_run(folder: Path, data: Path | None = None) -> tuple[Run, tuple[Task, ...]]:
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
    prepared = load_recorded(folder, recorded, request_of(recorded, data))
    prepared.method.train_mode(False)
    return prepared, prepared.stream[: len(recorded.scores)]


def masked_network(folder: Path, prepared: Run) -> HATNetwork | WeightMaskedNetwork:
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
    """Describe, in JSON values, the way from the bytes of a picture to a sample.

    Raises:
        InputError: the transform is of a kind that has no description.
    """
    match transform:
        case None:
            return {}
        case Normalise():
            return {"divide_by": 255, "mean": list(transform.mean), "std": list(transform.std)}
        case Standardise():
            return {"mean": transform.mean.flatten().tolist(), "std": transform.std.flatten().tolist()}
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
        UnsupportedError, GuaranteeError: as :func:`hatrack.compact.export.export_task`.
    """
    prepared, tasks = open_run(folder, data)
    net = masked_network(folder, prepared)
    if task is None and not isinstance(net, HATNetwork):
        method = prepared.request.method
        raise InputError(f"{folder} was made by {method}, whose masks of weights do not mix; export tasks with `task`")
    names = [each.name for each in tasks] if task is None else [task]
    tests = {each.name: each.test for each in tasks}
    samples = {name: look_up("task", name, tests).load()[0][:COMPARED] for name in names}
    labels = {each.name: _labels(each) for each in tasks}
    if task is None:
        assert isinstance(net, HATNetwork)
        return export_all_tasks(net, to, samples, labels)
    return export_task(net, task, to, samples[task], labels[task])


def _labels(task: Task) -> Labels:
    objective = {} if isinstance(task.objective, Classification) else task.objective.to_json()
    return Labels(task.classes, describe_transform(task.test.transform), objective)


@torch.no_grad()
def predict_pictures(
    folder: Path, task: str | None, pictures: Sequence[Path], data: Path | None = None
) -> list[PicturePrediction]:
    """Ask the network of a run about picture files.

    Pictures are brought to the size, the number of channels and the range that the run's data has, and then treated as
    that.

    Args:
        folder: the run's folder.
        task: the task; None recognises it, by its distance, calibrated on the run's training data.
        pictures: the files.
        data: folder to look for data in first.

    Raises:
        InputError: there is no such task or file, no picture was named, the method recognises no tasks, or the run's
            data are no pictures, or not certainly bytes or their 255th part.
        DataError: a file is no picture, or far brighter than all pictures in training.
    """
    if not pictures:
        raise InputError("name at least one picture")
    prepared, tasks = open_run(folder, data)
    known = {each.name: each for each in tasks}
    first = tasks[0] if task is None else look_up("task", task, known)
    for path in pictures:
        if not path.is_file():
            raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; name picture files")
    raw = _read_all(pictures, first.train.source)
    if task is not None:
        x = raw.float() if first.test.transform is None else first.test.transform(raw)
        names, logits = [task] * len(x), prepared.method.predict(x, task)
    else:
        names, logits = _recognise(prepared, tasks, raw)
    found = []
    for picture, name, row in zip(pictures, names, logits, strict=True):
        objective = known[name].objective
        outputs = row[: objective.outputs].float().cpu()
        (said,) = objective.say(outputs.unsqueeze(0))
        if isinstance(objective, Regression):
            found.append(PicturePrediction(picture, name, objective.names, (), said))
            continue
        shares = outputs.sigmoid() if isinstance(objective, MultiLabel) else torch.softmax(outputs, 0)
        shares, order = shares.sort(descending=True)
        likeliest = tuple(objective.names[index] for index in order.tolist())
        found.append(PicturePrediction(picture, name, likeliest, tuple(shares.tolist()), said))
    return found


def _recognise(prepared: Run, tasks: Sequence[Task], raw: Tensor) -> tuple[list[str], Tensor]:
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
        net.calibrate(task.name, *task.train.load())
    transform = tasks[0].test.transform
    inferred = net.infer(raw.float() if transform is None else transform(raw))
    return inferred.task_names, inferred.logits


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
            f"samples of this run have shape {shape}, and are no pictures, which alone are predicted on the command "
            "line: export the task, whose file says how to standardise samples, or ask in Python "
            "(hatrack.experiments.open_run)"
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


_OF_SUMMARY = ("parameters", "full_parameters", "nonzero", "flops", "full_flops", "deviation")

_WARM_UP = 2
"""Pairs of passes that are not counted."""


@dataclass(frozen=True)
class TaskSize:
    """A task as a network of its own, beside the whole network with that task's head and norms.

    Attributes:
        task: its name.
        units: how many units it has; 0 where they are not known.
        full_units: how many the whole network has.
        parameters: number of its parameters.
        full_parameters: the same of the whole network.
        nonzero: how many of its parameters are not 0.
        flops: operations per sample, see :class:`hatrack.compact.Summary`.
        full_flops: the same of the whole network.
        file_bytes: size of its ``.safetensors`` file.
        full_file_bytes: size of the whole network's.
        seconds: time of a batch in the extracted network, the least of all passes: other work only ever adds to it.
        full_seconds: the same in the masked network; both take turns.
        deviation: largest difference of a logit, relative to the largest.
    """

    task: str
    units: int
    full_units: int
    parameters: int
    full_parameters: int
    nonzero: int
    flops: int
    full_flops: int
    file_bytes: int
    full_file_bytes: int
    seconds: float
    full_seconds: float
    deviation: float

    @property
    def speedup(self) -> float:
        """Return the factor by which the extracted network is faster."""
        return self.full_seconds / self.seconds


@torch.no_grad()
def measure_sizes(
    folder: Path, task: str | None = None, data: Path | None = None, *, batch: int = 64, repetitions: int = 20
) -> tuple[TaskSize, ...]:
    """Extract tasks of a run, and measure them on test samples.

    Args:
        folder: the run's folder.
        task: the task; None for all.
        data: folder to look for data in first.
        batch: samples per pass, or as many as there are to test with.
        repetitions: pairs of passes that are timed, at least 1.

    Raises:
        InputError: there is no such task, the method has no masks, or a number is below 1.
        UnsupportedError: a task cannot be extracted.
    """
    for name, value in (("batch", batch), ("repetitions", repetitions)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    prepared, tasks = open_run(folder, data)
    net = masked_network(folder, prepared)
    chosen = tasks if task is None else (look_up("task", task, {each.name: each for each in tasks}),)
    return tuple(_size_of(net, each, batch, repetitions) for each in chosen)


def _size_of(net: HATNetwork | WeightMaskedNetwork, task: Task, batch: int, repetitions: int) -> TaskSize:
    x = task.test.part(torch.arange(min(batch, len(task.test)))).load()[0]
    compact = net.extract(task.name, x)
    summary = compact.summary
    assert summary is not None
    with evaluation_mode(net):
        times = _pairs(lambda: net(x, task.name), lambda: compact(x), repetitions)
    state = net.tasks[net.task_names.index(task.name)]
    head = {name: value for name, value in state.state_dict().items() if name.startswith("head.")}
    return TaskSize(
        task=task.name,
        units=sum(summary.units.values()),
        full_units=sum(summary.full_units.values()),
        **{name: getattr(summary, name) for name in _OF_SUMMARY},
        file_bytes=_bytes(compact.state_dict()),
        full_file_bytes=_bytes({**net.backbone.state_dict(), **head}),
        seconds=min(own for _, own in times),
        full_seconds=min(full for full, _ in times),
    )


def _pairs(full: Callable[[], Any], own: Callable[[], Any], repetitions: int) -> list[tuple[float, float]]:
    return [(_seconds(full), _seconds(own)) for _ in range(_WARM_UP + repetitions)][_WARM_UP:]


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _bytes(state: dict[str, Tensor]) -> int:
    return len(safetensors.torch.save({name: value.detach().contiguous().clone() for name, value in state.items()}))
