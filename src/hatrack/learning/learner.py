"""Learner: tasks in, answers out, for programs that need no knowledge of gates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.errors import GuaranteeError, InputError, TrainingError
from hatrack.learning.datasets import Data, read_data, read_samples
from hatrack.learning.fit_display import FitDisplay, ending, output_for
from hatrack.learning.labels import numbered, targets_for
from hatrack.learning.predictions import LabelPrediction, NumberPrediction, Prediction
from hatrack.learning.samples import as_inputs, as_shape, converted, require_digits
from hatrack.learning.tokens import has_tables, naming_unknown_ids
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
    member_named,
    names_as_text,
    objective_from_json,
)
from hatrack.storage.checkpoint import Checkpoint, check_backbone, read_checkpoint, write_checkpoint
from hatrack.streams import Task
from hatrack.support.example import Example
from hatrack.support.inputs import Inputs, TensorKind, map_tensors, tensors_in
from hatrack.support.interface import Features, Interface
from hatrack.support.modes import evaluation_mode, plain_modes
from hatrack.support.names import look_up
from hatrack.support.notebook import html_table
from hatrack.train import BatchDone, EpochDone, TrainingSettings, fit

__all__ = ["LEARNER_FORMAT", "LabelPrediction", "Learner", "NumberPrediction", "Prediction"]

LEARNER_FORMAT = "hatrack.Learner"
"""Format that files of saved learners name."""


class Learner:
    """Learner of tasks one after the other that forgets none; it needs no knowledge of gates.

    Samples are used as they are: bring them to a common scale, or begin the backbone with a norm, such as
    ``nn.BatchNorm1d(F)``, of which every task has its own.

    Args:
        backbone: a network that maps a batch to features ``(N, F)``, or to a result that holds them; its weights are
            trained.
        example_input: shape of one sample, a tuple of whole numbers, where samples are one tensor of real numbers. Or
            an example of a batch, as the backbone takes it: a tensor, a tuple or list of positional arguments, or a
            mapping of keyword arguments, such as a tokenizer's result; NumPy arrays serve as tensors, and numbers of
            double precision get the backbone's type. Samples are given like it, and get its types. Whole numbers, such
            as tokens, need an example: ``torch.zeros(2, 7).long()``.
        features: choice of the features in the backbone's result: None where the result is a tensor, a key or the name
            of an attribute, an index, or a function from the result to a tensor.
        unit_axis: axis of the features that heads act along, behind that of the samples.
        batch_axis: axis of every tensor among the samples that counts them.
        settings: settings of the gates; those of :class:`HATSettings` if left out.
        training: settings of the training of every task; those of :class:`TrainingSettings` if left out.
        validation: share of the samples that are set aside to decide when to stop, at least 0 and below 1.
        seed: seed of everything that is drawn.
        device: device for training and prediction; the backbone's if left out.

    Raises:
        InputError: the backbone does not give features ``(N, F)``, or as for :class:`~hatrack.HATNetwork`.
        UnsupportedError: the backbone does something that no rule explains.

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
        example_input: Inputs | Sequence[int],
        *,
        features: Features = None,
        unit_axis: int = -1,
        batch_axis: int = 0,
        settings: HATSettings | None = None,
        training: TrainingSettings | None = None,
        validation: float = 0.15,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(backbone, nn.Module):
            raise InputError(f"the backbone must be a torch.nn.Module, not a {type(backbone).__name__}")
        if not 0 <= validation < 1:
            raise InputError(f"validation must be a share of the samples, at least 0 and below 1, not {validation}")
        self.training = TrainingSettings() if training is None else training
        self.validation = validation
        place = next((p.device for p in backbone.parameters()), torch.device("cpu")) if device is None else device
        interface = Interface(features, unit_axis, batch_axis)
        shape, example = _read_example(example_input, backbone, interface)
        build = partial(_as_given, backbone)  # which can be pickled, as joblib does with what is around a learner
        setup = Setup(build, shape, seed, torch.device(place), example=example, interface=interface)
        try:
            self._method = HAT(setup, HATSettings() if settings is None else settings)
        except InputError as error:
            if shape and has_tables(backbone):
                raise InputError(
                    f"{error}; where samples are whole numbers, such as tokens, give an example of a batch in place of "
                    f"the shape, torch.zeros{(2, *shape)}.long()"
                ) from error
            raise
        self._require_vectors()
        self.objectives: dict[str, Objective] = {}

    def __repr__(self) -> str:
        tasks = [f"{task} ({_outputs_of(objective)})" for task, objective in self.objectives.items()]
        said = ", ".join(tasks) if tasks else "no task yet"
        return f"Learner({type(self.network.backbone).__name__}: {said})"

    def _repr_html_(self) -> str:
        rows = (
            (task, _outputs_of(objective), ", ".join(objective.names[:10]) + ", …" * (objective.outputs > 10), metric)
            for task, objective in self.objectives.items()
            for metric in (objective.metric.name,)
        )
        title = f"Learner around {type(self.network.backbone).__name__}"
        used = f"{self.network.usage():.1%} of the units are in use" if self.objectives else "no task yet"
        return html_table(title, ("task", "outputs", "names", "metric"), rows, [used])

    def _require_vectors(self) -> None:
        found = tuple(self.network.masking.example_features().shape)
        if len(found) != 2:
            self.network.detach()
            raise InputError(
                f"a Learner predicts one thing for every sample, from features (N, F), and these have shape {found}: "
                "take the mean over the axes between, or flatten them, in the backbone or by features=..., or use a "
                "HATNetwork with losses of your own"
            )

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
        self.objectives.pop(task, None)
        self._method.give_up(task)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that were learned, in order."""
        return self.network.task_names

    @plain_modes()
    @torch.enable_grad()
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
        progress: bool | None = None,
    ) -> None:
        """Learn a new task; what was learned before stays as it is.

        If anything is raised, an interrupt included, the task is removed, and the call can be repeated. Where the
        training had not begun, nothing has changed. Else weights that no other task uses are drawn anew with the seed,
        since no copy of them is kept: the repeated call gives the same bits wherever the training had ended, but not
        those of a learner that never failed, whose free weights are what earlier tasks left. To get these, load a file
        that was saved before.

        Args:
            task: its name: letters, digits, ``_`` and ``-``.
            data: its training samples with their targets: classes, numbers 0 to C − 1, texts or truth values ``(N,)``;
                numbers to predict; or several labels. A tuple of all samples and all targets, as tensors, NumPy arrays
                or lists; a data set or other iterable of pairs of *one sample* and its target, or of mappings with a
                key ``label``; or a ``torch.utils.data.DataLoader``, whose items are *batches*. All of it is read once,
                for all epochs; training makes its own batches, in an order that the seed decides.
            classes: names of the classes, labels or columns; if left out, the texts that are targets, or numbers.
            target: what the targets are, or its name (``"classes"``, ``"numbers"``, ``"labels"``); None tells it by
                their type and shape. Classes ``(N, 1)`` or one-hot ``(N, C)`` are read where it is ``"classes"``.
            metric: metric of the task, or its name, such as ``"balanced_accuracy"`` or ``"mae"``; None takes accuracy,
                R² or mean average precision.
            class_weights: weights of the classes or labels in the loss: ``"balanced"``, or one number each; None for
                equal ones.
            watch: called after every step and every epoch.
            progress: True to show a bar while the task is learned, and then a line of how well and how long; False to
                show nothing; None to show them in a notebook and in a terminal, and nothing where nobody looks.

        Raises:
            InputError: there is such a task already, or the data does not fit. Nothing is learned then.
            TrainingError: the loss became infinite or not a number. The task is removed then.
        """
        if isinstance(task, str) and task in self.tasks:
            raise InputError(f"there is a task {task!r} already: forget({task!r}) first, or choose another name")
        what = f"samples of {task!r}"
        setup = self._method.setup
        interface, kind = setup.interface, member_named(TargetKind, target, "target")
        x, given = read_data(data, setup.example_input, interface.batch_axis, what)
        require_digits(x, setup.example_input, what, interface.batch_axis)
        x = self._accepted(x, what)
        y, names = numbered(given, None if classes is None else names_as_text(classes), kind, f"targets of {task!r}")
        weights = class_weights
        if weights is not None and not isinstance(weights, ClassWeights):
            weights = ClassWeights.read(weights)
        first = interface.take(x, slice(1))
        described = Task.from_tensors(
            task,
            *(x, y, first, y[:1]),
            classes=names,
            validation=self.validation,
            target=kind,
            metric=metric,
            class_weights=weights,
            interface=interface,
        )
        method = self._method
        try:
            with method.beginning():
                method.begin_task(described)
                events = fit(method, [described], self.training)
            with ending(self._display(described, progress)) as display:
                with naming_unknown_ids(self.network.backbone, x, what):
                    for event in events:
                        display.follow(event)
                        if watch is not None:
                            watch(event)
                display.finish()
                method.end_task(described)
                if isinstance(described.objective, Classification):
                    x, y = described.train.load()
                    self.network.calibrate(task, self._on_device(x), y.to(method.setup.device))
                self.objectives[task] = described.objective
        except BaseException as error:
            self._give_up(task)
            if isinstance(error, GuaranteeError):  # weights became infinite, which spoils what old tasks answer
                raise TrainingError(f"task {task!r} diverged and was removed: {error}") from error
            raise
        self._warn_of_one_answer(task, described)

    def _display(self, task: Task, progress: bool | None) -> FitDisplay:
        measured_on = "validation" if self.validation else "training"
        return FitDisplay(task.name, self.training.epochs, task.objective.metric, measured_on, output_for(progress))

    @torch.no_grad()
    def _warn_of_one_answer(self, task: str, described: Task) -> None:
        """Warn of a task that says the same of all samples that it was trained on, as if it had learned nothing."""
        x, y = described.train.load()
        said, objective = self._outputs(x, task), described.objective
        if bool((y == y[0]).all()):
            return
        if isinstance(objective, Classification):
            best = said.argmax(1)
            is_one, what = bool((best == best[0]).all()), f"the class {objective.names[int(best[0])]!r}"
        else:
            is_one, what = bool((said - said[0]).abs().max() <= 1e-4 * said.abs().max()), "the same numbers"
        if is_one:
            warnings.warn(
                f"task {task!r} answers {what} for all {len(y)} samples that it was trained on: masks may have "
                "switched off too much in too few steps; train longer or faster "
                "(training=hatrack.TrainingSettings(epochs=..., lr=...)), take wider layers, give more samples, or "
                "weigh masks less (settings=hatrack.HATSettings(c=0.1)), which leaves less to later tasks",
                stacklevel=4,  # of this method, torch's around it, and fit
            )

    def _accepted(self, x: Any, what: str) -> Inputs:
        """Return samples as the network takes them.

        Raises:
            InputError: they are of another kind or shape than it takes, or hold values that are not finite.
        """
        setup = self._method.setup
        given = as_inputs(x, what)
        x = setup.interface.accepted(converted(given, setup.example_input, what))
        if setup.example is None:
            found = TensorKind.of(x, setup.interface.batch_axis).shape
            if found != setup.input_shape:
                last = found != setup.input_shape and (*found[-1:], *found[:-1]) == setup.input_shape
                hint = ": move channels before them, as by np.moveaxis(x, -1, 1)" if last else ""
                raise InputError(f"{what} have shape {found}, the network expects {setup.input_shape}{hint}")
        if not all(bool(tensor.isfinite().all()) for tensor in tensors_in(given)):
            raise InputError(f"{what} hold infinite values or NaN; clean them first")
        if not all(bool(tensor.isfinite().all()) for tensor in tensors_in(x)):
            raise InputError(f"{what} hold numbers beyond the type of the example; scale them first")
        return x

    def _on_device(self, x: Inputs) -> Inputs:
        device = self._method.setup.device
        return map_tensors(lambda tensor: tensor.to(device), x)

    def _batches(self, x: Inputs, batch_size: int) -> Iterator[Inputs]:
        """Yield samples in parts, on the network's device."""
        return (self._on_device(part) for part in self._method.setup.interface.split(x, batch_size))

    @torch.no_grad()
    def predict(
        self, x: Any, task: str | None = None, *, scorer: Scorer | None = None, batch_size: int = 500
    ) -> Prediction | NumberPrediction | LabelPrediction:
        """Predict the classes of samples; or their numbers or labels, where the task is about these.

        Args:
            x: samples ``(N, ...)``, of the example's kind; NumPy arrays serve as tensors. Or a list, data set or other
                iterable of single samples, or a ``DataLoader`` of batches that does not shuffle; targets that come
                with them are left out.
            task: name of their task; None to recognise it for each sample, which works for tasks of classes only.
            scorer: score by which tasks are recognised; None for the default of :meth:`hatrack.HATNetwork.infer`.
            batch_size: samples per pass, at least 1.

        Raises:
            InputError: there is no such task, or none at all, or samples do not have the right shape or are not finite;
                or a task is to be recognised where not all are about classes.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size must be a whole number of samples, at least 1, not {batch_size!r}")
        if scorer is not None and not isinstance(scorer, Scorer):
            raise InputError(f"scorer must be one of {', '.join(map(str, Scorer))}, not {scorer!r}")
        setup = self._method.setup
        x = self._accepted(read_samples(x, setup.example_input, setup.interface.batch_axis), "samples")
        with naming_unknown_ids(self.network.backbone, x, "samples"):
            return self._predicted(x, task, scorer, batch_size)

    @torch.no_grad()
    def _predicted(
        self, x: Inputs, task: str | None, scorer: Scorer | None, batch_size: int
    ) -> Prediction | NumberPrediction | LabelPrediction:
        objective = None if task is None else look_up("task", task, self.objectives)
        if task is None:
            self._require_classes()
        elif objective is not None and not isinstance(objective, Classification):
            return self._said(task, objective, self._outputs(x, task, batch_size))
        tasks: list[str] = []
        parts = []
        widest = max((o.outputs for o in self.objectives.values() if isinstance(o, Classification)), default=0)
        with evaluation_mode(self.network):
            for part in self._batches(x, batch_size):
                if task is None:
                    inferred = self.network.infer(part, scorer)
                    tasks += inferred.task_names
                    logits = inferred.logits
                else:
                    logits = self.network(part, task)
                    tasks += [task] * len(logits)
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
    def _outputs(self, x: Inputs, task: str, batch_size: int = 500) -> Tensor:
        """Return the outputs of a task for samples, float32 on the CPU."""
        with evaluation_mode(self.network):
            return torch.cat([self.network(part, task).float().cpu() for part in self._batches(x, batch_size)])

    def _said(self, task: str, objective: Objective, outputs: Tensor) -> NumberPrediction | LabelPrediction:
        if isinstance(objective, Regression):
            return NumberPrediction(task, objective.names, objective.values(outputs))
        assert isinstance(objective, MultiLabel)
        return LabelPrediction(task, tuple(objective.labels(outputs)), outputs.sigmoid(), objective.names)

    def evaluate(self, task: str, data: Data, *, name_task: bool = True) -> float:
        """Measure the metric of a task's objective on samples of it, such as the accuracy, in [0, 1].

        Args:
            task: name of the task.
            data: its samples with their targets, as for :meth:`fit`; classes by their numbers, or names as texts.
            name_task: whether the task is named; else both task and class must be recognised.

        Raises:
            InputError: there is no such task, the targets are not its own, or it is to be recognised where not all
                tasks are about classes.
        """
        setup, what = self._method.setup, f"samples of {task!r}"
        objective = look_up("task", task, self.objectives)
        x, given = read_data(data, setup.example_input, setup.interface.batch_axis, what)
        x = self._accepted(x, what)
        targets = targets_for(given, objective, _KINDS[type(objective)], f"targets of {task!r}")
        objective.check(targets, "test")
        samples = setup.interface.samples(x)
        if samples != len(targets):
            raise InputError(f"{samples} samples of {task!r} came with {len(targets)} targets; give one for each")
        if not isinstance(objective, Classification):
            if not name_task:
                self._require_classes()
            with naming_unknown_ids(self.network.backbone, x, what):
                return objective.measure(self._outputs(x, task), targets)
        with naming_unknown_ids(self.network.backbone, x, what):
            found = self._predicted(x, task if name_task else None, None, 500)
        assert isinstance(found, Prediction)
        number_of = {name: number for number, name in enumerate(objective.names)}
        pairs = zip(found.tasks, found.classes, strict=True)
        predicted = [number_of[name] if named == task else -1 for named, name in pairs]
        return objective.measure_classes(torch.tensor(predicted), targets)

    def forget(self, task: str) -> Forgotten:
        """Remove a task exactly; see :meth:`hatrack.HATNetwork.forget`. The seed decides what is drawn anew."""
        name = self.network.tasks.named(task).name
        report = self.network.forget(name, generator=self._method.setup.generator("forget", name))
        self.objectives.pop(task, None)
        return report

    def save(self, path: str | Path) -> None:
        """Write the learner to one file, atomically; :meth:`load` reads it, given the same backbone.

        Raises:
            CheckpointError: the file cannot be written; an older file stays as it is.
        """
        inside, setup = self.network.to_checkpoint(), self._method.setup
        description = {
            "format": LEARNER_FORMAT,
            "network": dict(inside.description),
            "classes": {n: o.names for n, o in self.objectives.items() if isinstance(o, Classification)},
            "objectives": {task: objective.to_json() for task, objective in self.objectives.items()},
            **({"input_shape": list(setup.input_shape)} if setup.example is None else {}),  # else as the network has it
        }
        write_checkpoint(Path(path), Checkpoint(inside.tensors, description))

    @classmethod
    def load(cls, path: str | Path, backbone: nn.Module, *, features: Features = None, **settings: Any) -> Learner:
        """Read a learner.

        Args:
            path: the file.
            backbone: a network built as the saved one was; its weights are overwritten.
            features: choice of the features, which must be given again if it was a function; None for the saved one.
            **settings: as for a new learner (``settings``, ``training``, ``validation``, ``seed``, ``device``), for
                tasks to come. The gates' settings that a file holds (such as ``s_max``) win over ``settings``.

        Raises:
            CheckpointError: the file is missing, damaged, or was saved with another backbone.
            InputError: features were picked by a function, and none is given.
        """
        path = Path(path)
        checkpoint = read_checkpoint(path, LEARNER_FORMAT)
        described: Mapping[str, Any] = checkpoint.description
        network = described["network"]
        check_backbone(path, network["modules"], backbone)
        try:
            interface = Interface.from_json(network, features)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        shape = described.get("input_shape")
        example = Example.from_json(network["example_input"]).batch() if shape is None else tuple(shape)
        learner = cls(backbone, example, **vars(interface), **settings)
        inside = replace(checkpoint, description=network)
        read = network_from(path, inside, learner.network.detach(), features=interface.features)
        learner._method.network = read.to(learner._method.setup.device)
        names = described["classes"]
        learner.objectives = {
            name: objective_from_json(content, names.get(name))
            for name, content in described.get("objectives", {}).items()
        } or {name: Classification(tuple(of)) for name, of in names.items()}  # files of classes alone
        return learner


def _outputs_of(objective: Objective) -> str:
    """Return how many outputs of which kind a task has, such as ``2 classes``."""
    kinds = {Classification: ("class", "classes"), Regression: ("number", "numbers"), MultiLabel: ("label", "labels")}
    one, several = kinds[type(objective)]
    return f"{objective.outputs} {one if objective.outputs == 1 else several}"


def _as_given(backbone: nn.Module) -> nn.Module:
    """Return a backbone that is there already."""
    return backbone


def _read_example(
    given: Inputs | Sequence[int], backbone: nn.Module, interface: Interface
) -> tuple[tuple[int, ...], Inputs]:
    """Return the shape of one sample where samples are one tensor of float32, else an example of a batch.

    Numbers of double precision, which NumPy gives unasked, get the backbone's type.
    """
    kind = next((p.dtype for p in backbone.parameters() if p.is_floating_point()), torch.float32)
    shape = as_shape(given)
    if shape:
        return (shape, None) if kind == torch.float32 else ((), torch.zeros(1, *shape, dtype=kind))
    example = as_inputs(given, "the example input")
    narrowed = map_tensors(lambda tensor: tensor.to(kind) if tensor.dtype == torch.float64 else tensor, example)
    return (), interface.accepted(narrowed)


_KINDS: Mapping[type[Objective], TargetKind] = {
    Classification: TargetKind.CLASSES,
    Regression: TargetKind.NUMBERS,
    MultiLabel: TargetKind.LABELS,
}
"""Kind of the targets of every kind of task."""
