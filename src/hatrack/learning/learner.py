"""Learner: tasks in, answers out, for programs that need no knowledge of gates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.errors import InputError
from hatrack.masks.calibration import Scorer
from hatrack.methods import Setup
from hatrack.methods.hat import HAT, HATSettings
from hatrack.models.forgetting import Forgotten
from hatrack.models.hat import HATNetwork
from hatrack.models.loading import network_from
from hatrack.storage.checkpoint import Checkpoint, check_backbone, read_checkpoint, write_checkpoint
from hatrack.streams import Task
from hatrack.support.modes import evaluation_mode
from hatrack.train import BatchDone, EpochDone, TrainingSettings, fit

__all__ = ["LEARNER_FORMAT", "Learner", "Prediction"]

LEARNER_FORMAT = "hatrack.Learner"
"""Format that files of saved learners name."""

Data = tuple[Tensor, Tensor] | Iterable[tuple[Any, Any]]
"""Samples ``(N, ...)`` and classes ``(N,)``, or pairs of a sample and its class, such as a ``torch`` data set."""


@dataclass(frozen=True)
class Prediction:
    """Predictions of a learner for N samples.

    Attributes:
        tasks: task of each sample, named by the caller or recognised.
        classes: name of each sample's likeliest class.
        probabilities: probability of each sample's class given its task, in [0, 1], ``(N,)``.
        distribution: probabilities of all classes of its task, ``(N, most classes)``, 0 behind its last one.
    """

    tasks: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: Tensor
    distribution: Tensor


class Learner:
    """Learner of tasks one after the other that forgets none; it needs no knowledge of gates.

    Args:
        backbone: a network that maps a batch to features ``(N, F)``; its weights are trained.
        input_shape: shape of one sample.
        settings: settings of the gates; those of :class:`HATSettings` if left out.
        training: settings of the training of every task; those of :class:`TrainingSettings` if left out.
        validation: share of the samples that are set aside to decide when to stop, at least 0 and below 1.
        seed: seed of everything that is drawn.
        device: device for training and prediction; the backbone's if left out.

    Attributes:
        network: the :class:`~hatrack.HATNetwork` inside, for all that is not here.
        classes: names of each task's classes, by task.

    Example:
        >>> learner = Learner(nn.Sequential(nn.Linear(4, 32), nn.ReLU()), (4,), training=TrainingSettings(epochs=2))
        >>> learner.fit("sides", (torch.randn(40, 4), torch.arange(40) % 2), classes=("left", "right"))
        >>> len(learner.predict(torch.zeros(3, 4), "sides").classes)
        3
    """

    def __init__(
        self,
        backbone: nn.Module,
        input_shape: Sequence[int],
        *,
        settings: HATSettings | None = None,
        training: TrainingSettings | None = None,
        validation: float = 0.15,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        self.training = TrainingSettings() if training is None else training
        self.validation = validation
        place = next((p.device for p in backbone.parameters()), torch.device("cpu")) if device is None else device
        setup = Setup(lambda: backbone, tuple(input_shape), seed, torch.device(place))
        self._method = HAT(setup, HATSettings() if settings is None else settings)
        self.classes: dict[str, tuple[str, ...]] = {}

    @property
    def network(self) -> HATNetwork:
        """Network that holds the tasks."""
        return self._method.network

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that were learned, in order."""
        return self.network.task_names

    def fit(
        self,
        task: str,
        data: Data,
        *,
        classes: Sequence[str] | None = None,
        watch: Callable[[BatchDone | EpochDone], None] | None = None,
    ) -> None:
        """Learn a new task; what was learned before stays as it is.

        Args:
            task: its name: letters, digits, ``_`` and ``-``.
            data: its training samples with their classes 0 to C − 1.
            classes: names of the classes; their numbers if left out.
            watch: called after every step and every epoch.

        Raises:
            InputError: there is such a task already, or the data does not fit. Nothing is learned then.
            TrainingError: the loss became infinite or not a number. The task is removed then.
        """
        if task in self.tasks:
            raise InputError(f"there is a task {task!r} already: forget({task!r}) first, or choose another name")
        x, y = _tensors(data)
        if tuple(x.shape[1:]) != self._method.setup.input_shape:
            raise InputError(
                f"samples of {task!r} have shape {tuple(x.shape[1:])}, the network expects "
                f"{self._method.setup.input_shape}"
            )
        described = Task.from_tensors(task, x, y, x[:1], y[:1], classes=classes, validation=self.validation)
        method = self._method
        method.begin_task(described)
        try:
            for event in fit(method, [described], self.training):
                if watch is not None:
                    watch(event)
            method.end_task(described)
        except BaseException:
            self.network.forget(task)
            raise
        device = method.setup.device
        self.network.calibrate(task, *(part.to(device) for part in described.train.load()))
        self.classes[task] = described.classes

    @torch.no_grad()
    def predict(
        self, x: Tensor, task: str | None = None, *, scorer: Scorer = Scorer.DISTANCE, batch_size: int = 500
    ) -> Prediction:
        """Predict the classes of samples.

        Args:
            x: samples ``(N, ...)``.
            task: name of their task; None to recognise it for each sample.
            scorer: score by which tasks are recognised.
            batch_size: samples per pass.

        Raises:
            InputError: there is no such task, or none at all, or samples do not have the right shape.
        """
        tasks: list[str] = []
        parts = []
        widest = max((len(names) for names in self.classes.values()), default=0)
        with evaluation_mode(self.network):
            for part in torch.split(x.to(self._method.setup.device), batch_size):
                if task is None:
                    inferred = self.network.infer(part, scorer)
                    tasks += inferred.task_names
                    logits = inferred.logits
                else:
                    tasks += [task] * len(part)
                    logits = self.network(part, task)
                shares = torch.softmax(logits.float(), 1)
                parts.append(nn.functional.pad(shares, (0, widest - shares.shape[1])).cpu())
        distribution = torch.cat(parts)
        probabilities, best = distribution.max(1)
        names = tuple(self.classes[name][index] for name, index in zip(tasks, best.tolist(), strict=True))
        return Prediction(tuple(tasks), names, probabilities, distribution)

    def evaluate(self, task: str, data: Data, *, name_task: bool = True) -> float:
        """Measure the accuracy on samples of a task, in [0, 1].

        Args:
            task: name of the task.
            data: its samples with their classes.
            name_task: whether the task is named; else both task and class must be recognised.
        """
        x, y = _tensors(data)
        found = self.predict(x, task if name_task else None)
        expected = [self.classes[task][label] for label in y.tolist()]
        pairs = zip(found.tasks, found.classes, expected, strict=True)
        right = sum(1 for named, given, wanted in pairs if named == task and given == wanted)
        return right / len(expected)

    def forget(self, task: str) -> Forgotten:
        """Remove a task exactly; see :meth:`hatrack.HATNetwork.forget`."""
        report = self.network.forget(task)
        self.classes.pop(task, None)
        return report

    def save(self, path: str | Path) -> None:
        """Write the learner to one file, atomically; :meth:`load` reads it, given the same backbone.

        Raises:
            CheckpointError: the file cannot be written; an older file stays as it is.
        """
        inside = self.network.to_checkpoint()
        description = {
            "format": LEARNER_FORMAT,
            "network": dict(inside.description),
            "classes": self.classes,
            "input_shape": list(self._method.setup.input_shape),
        }
        write_checkpoint(Path(path), Checkpoint(inside.tensors, description))

    @classmethod
    def load(cls, path: str | Path, backbone: nn.Module, **settings: Any) -> Learner:
        """Read a learner.

        Args:
            path: the file.
            backbone: a network built as the saved one was; its weights are overwritten.
            **settings: as for a new learner (``settings``, ``training``, ``validation``, ``seed``, ``device``), for
                tasks to come. The gates' settings that a file holds (such as ``s_max``) win over ``settings``.

        Raises:
            CheckpointError: the file is missing, damaged, or was saved with another backbone.
        """
        path = Path(path)
        checkpoint = read_checkpoint(path, LEARNER_FORMAT)
        described: Mapping[str, Any] = checkpoint.description
        check_backbone(path, described["network"]["modules"], backbone)
        learner = cls(backbone, described["input_shape"], **settings)
        inside = replace(checkpoint, description=described["network"])
        network = network_from(path, inside, learner.network.detach())
        learner._method.network = network.to(learner._method.setup.device)
        learner.classes = {name: tuple(names) for name, names in described["classes"].items()}
        return learner


def _tensors(data: Data) -> tuple[Tensor, Tensor]:
    """Return samples and classes as two tensors."""
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
        return data[0], torch.as_tensor(data[1])
    pairs = list(data)
    if not pairs:
        raise InputError("there are no samples to learn from")
    return torch.stack([torch.as_tensor(x) for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs])
