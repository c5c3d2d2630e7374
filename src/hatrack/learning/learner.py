"""Learner: tasks in, answers out, for programs that need no knowledge of gates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.errors import GuaranteeError, InputError, TrainingError
from hatrack.masks.calibration import Scorer
from hatrack.methods import Setup
from hatrack.methods.hat import HAT, HATSettings
from hatrack.models.forgetting import Forgotten
from hatrack.models.hat import HATNetwork
from hatrack.models.loading import network_from
from hatrack.objectives import (
    Classification,
    ClassWeights,
    MetricName,
    MultiLabel,
    Objective,
    Regression,
    TargetKind,
    as_targets,
    objective_from_json,
)
from hatrack.storage.checkpoint import Checkpoint, check_backbone, read_checkpoint, write_checkpoint
from hatrack.streams import Task
from hatrack.support.modes import evaluation_mode
from hatrack.support.names import look_up
from hatrack.train import BatchDone, EpochDone, TrainingSettings, fit

__all__ = ["LEARNER_FORMAT", "LabelPrediction", "Learner", "NumberPrediction", "Prediction"]

LEARNER_FORMAT = "hatrack.Learner"
"""Format that files of saved learners name."""

Data = tuple[Tensor, Tensor] | Iterable[tuple[Any, Any]]
"""Samples ``(N, ...)`` and targets ``(N, ...)``, or pairs of a sample and its target, such as a ``torch`` data set.

Targets are classes, integers ``(N,)``; numbers to predict, floats ``(N,)`` or ``(N, K)``; or several labels, truth
values or zeros and ones ``(N, L)``.
"""


@dataclass(frozen=True)
class Prediction:
    """Predictions of classes for N samples.

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


@dataclass(frozen=True)
class NumberPrediction:
    """Predictions of numbers for N samples.

    Attributes:
        task: task that was named.
        columns: names of the K columns.
        values: the numbers in the columns' own units, float64 ``(N, K)``.
    """

    task: str
    columns: tuple[str, ...]
    values: Tensor


@dataclass(frozen=True)
class LabelPrediction:
    """Predictions of several labels for N samples.

    Attributes:
        task: task that was named.
        labels: names of the labels of each sample: those of a probability above one half.
        probabilities: probability of every label, in [0, 1], ``(N, L)``.
        names: names of the L labels.
    """

    task: str
    labels: tuple[tuple[str, ...], ...]
    probabilities: Tensor
    names: tuple[str, ...]


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
        objectives: loss, metric and names of the outputs of each task, by task.

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
        self.objectives: dict[str, Objective] = {}

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Names of each task's classes, labels or columns, by task."""
        return {task: objective.names for task, objective in self.objectives.items()}

    @property
    def network(self) -> HATNetwork:
        """Network that holds the tasks."""
        return self._method.network

    def _give_up(self, task: str) -> None:
        """Remove a task in training, whatever it has done to the weights."""
        with suppress(GuaranteeError):
            self.network.restore()
        self.network.forget(task)

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
        target: TargetKind | str | None = None,
        metric: MetricName | str | None = None,
        class_weights: ClassWeights | str | Sequence[float] | None = None,
        watch: Callable[[BatchDone | EpochDone], None] | None = None,
    ) -> None:
        """Learn a new task; what was learned before stays as it is.

        Args:
            task: its name: letters, digits, ``_`` and ``-``.
            data: its training samples with their targets: classes 0 to C − 1, numbers to predict, or several labels.
            classes: names of the classes, labels or columns; their numbers if left out.
            target: what the targets are, or its name (``"classes"``, ``"numbers"``, ``"labels"``); None tells it by
                their type and shape.
            metric: metric of the task, or its name, such as ``"mae"``; None takes accuracy, R² or mean average
                precision.
            class_weights: weights of the classes or labels in the loss: ``"balanced"``, or one number each; None for
                equal ones.
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
        weights = class_weights
        if weights is not None and not isinstance(weights, ClassWeights):
            weights = ClassWeights.read(weights)
        described = Task.from_tensors(
            task,
            *(x, y, x[:1], y[:1]),
            classes=classes,
            validation=self.validation,
            target=target,
            metric=metric,
            class_weights=weights,
        )
        method = self._method
        method.begin_task(described)
        try:
            for event in fit(method, [described], self.training):
                if watch is not None:
                    watch(event)
            method.end_task(described)
        except BaseException as error:
            self._give_up(task)
            if isinstance(error, GuaranteeError):  # weights became infinite, which spoils what old tasks answer
                raise TrainingError(f"task {task!r} diverged and was removed: {error}") from error
            raise
        if isinstance(described.objective, Classification):
            device = method.setup.device
            self.network.calibrate(task, *(part.to(device) for part in described.train.load()))
        self.objectives[task] = described.objective

    @torch.no_grad()
    def predict(
        self, x: Tensor, task: str | None = None, *, scorer: Scorer = Scorer.DISTANCE, batch_size: int = 500
    ) -> Prediction | NumberPrediction | LabelPrediction:
        """Predict the classes of samples; or their numbers or labels, where the task is about these.

        Args:
            x: samples ``(N, ...)``.
            task: name of their task; None to recognise it for each sample, which works for tasks of classes only.
            scorer: score by which tasks are recognised.
            batch_size: samples per pass.

        Raises:
            InputError: there is no such task, or none at all, or samples do not have the right shape; or a task is to
                be recognised where not all are about classes.
        """
        objective = None if task is None else self.objectives.get(task)
        if task is None:
            self._require_classes()
        elif objective is not None and not isinstance(objective, Classification):
            return self._said(task, objective, self._outputs(x, task, batch_size))
        tasks: list[str] = []
        parts = []
        widest = max((o.outputs for o in self.objectives.values() if isinstance(o, Classification)), default=0)
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

    def _require_classes(self) -> None:
        others = [f"{task!r} ({o.kind})" for task, o in self.objectives.items() if not isinstance(o, Classification)]
        if others:
            raise InputError(
                f"tasks are recognised by the probabilities of their classes, which {', '.join(others)} has none of; "
                "name the task"
            )

    @torch.no_grad()
    def _outputs(self, x: Tensor, task: str, batch_size: int = 500) -> Tensor:
        """Return the outputs of a task for samples, float32 on the CPU."""
        with evaluation_mode(self.network):
            parts = torch.split(x.to(self._method.setup.device), batch_size)
            return torch.cat([self.network(part, task).float().cpu() for part in parts])

    def _said(self, task: str, objective: Objective, outputs: Tensor) -> NumberPrediction | LabelPrediction:
        if isinstance(objective, Regression):
            return NumberPrediction(task, objective.names, objective.values(outputs))
        assert isinstance(objective, MultiLabel)
        return LabelPrediction(task, tuple(objective.labels(outputs)), outputs.sigmoid(), objective.names)

    def evaluate(self, task: str, data: Data, *, name_task: bool = True) -> float:
        """Measure the metric on samples of a task: the accuracy, in [0, 1], or that of the task's objective.

        Args:
            task: name of the task.
            data: its samples with their targets.
            name_task: whether the task is named; else both task and class must be recognised.

        Raises:
            InputError: there is no such task, the targets are not its own, or it is to be recognised where not all
                tasks are about classes.
        """
        x, y = _tensors(data)
        objective = look_up("task", task, self.objectives)
        if not isinstance(objective, Classification):
            if not name_task:
                self._require_classes()
            kind = TargetKind.NUMBERS if isinstance(objective, Regression) else TargetKind.LABELS
            targets = as_targets(y, kind, f"targets of {task!r}")
            objective.check(targets, "test")
            return objective.measure(self._outputs(x, task), targets)
        found = self.predict(x, task if name_task else None)
        assert isinstance(found, Prediction)
        expected = [self.classes[task][label] for label in y.tolist()]
        pairs = zip(found.tasks, found.classes, expected, strict=True)
        right = sum(1 for named, given, wanted in pairs if named == task and given == wanted)
        return right / len(expected)

    def forget(self, task: str) -> Forgotten:
        """Remove a task exactly; see :meth:`hatrack.HATNetwork.forget`."""
        report = self.network.forget(task)
        self.objectives.pop(task, None)
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
            "classes": {n: o.names for n, o in self.objectives.items() if isinstance(o, Classification)},
            "objectives": {task: objective.to_json() for task, objective in self.objectives.items()},
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
        names = described["classes"]
        learner.objectives = {
            name: objective_from_json(content, names.get(name))
            for name, content in described.get("objectives", {}).items()
        } or {name: Classification(tuple(of)) for name, of in names.items()}  # files of classes alone
        return learner


def _tensors(data: Data) -> tuple[Tensor, Tensor]:
    """Return samples and targets as two tensors."""
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
        return data[0], torch.as_tensor(data[1])
    pairs = list(data)
    if not pairs:
        raise InputError("there are no samples to learn from")
    return torch.stack([torch.as_tensor(x) for x, _ in pairs]), torch.stack([torch.as_tensor(y) for _, y in pairs])
