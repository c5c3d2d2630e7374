"""Recognition of a sample's task: all tasks score the sample, and the likeliest one is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from hatrack.errors import InputError
from hatrack.masks.calibration import Scorer, raw_score
from hatrack.masks.task_list import StateT
from hatrack.masks.tasks import TaskState
from hatrack.recognition.backbone_parts import AttachedBackbone
from hatrack.recognition.sums import RidgeRecogniser
from hatrack.support.heads import pad_classes
from hatrack.support.inputs import Inputs, device_of
from hatrack.support.modes import evaluation_mode

__all__ = [
    "IncrementalAccuracy",
    "Inferred",
    "InferringNetwork",
    "choose_scorer",
    "infer_by_sums",
    "infer_task",
    "measure_inference",
    "require_vectors",
]

StateT_contra = TypeVar("StateT_contra", bound=TaskState, contravariant=True)


@dataclass(frozen=True)
class Inferred:
    """Answers of a network to samples whose task was not named.

    Attributes:
        tasks: names of the tasks that were asked.
        scores: score of each sample by each task, ``(N, T)``; larger is likelier.
        chosen: index of the task with the largest score, int64 ``(N,)``.
        logits: that task's logits, ``(N, most classes)``, filled with −inf behind its last class.
        scorer: the kind of the scores; :attr:`Scorer.SUMS` are logarithms of probabilities.
    """

    tasks: tuple[str, ...]
    scores: Tensor
    chosen: Tensor
    logits: Tensor
    scorer: Scorer

    @property
    def task_names(self) -> list[str]:
        """Name of the chosen task of each sample."""
        return [self.tasks[index] for index in self.chosen.tolist()]


@dataclass(frozen=True)
class IncrementalAccuracy:
    """Shares of test samples, in [0, 1], over the samples of all tasks together.

    Attributes:
        task: share of samples whose task was recognised.
        class_incremental: share of samples whose task and class were recognised.
        task_incremental: share of samples whose class was recognised with the task given.
    """

    task: float
    class_incremental: float
    task_incremental: float


class Recognising(AttachedBackbone, Protocol[StateT_contra]):
    """Masks of a network's tasks, as far as they give the features by which tasks are recognised."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a block in which the network is in evaluation mode."""

    def features(self, x: Inputs, state: StateT_contra) -> Tensor:
        """Return features of a batch under a task's mask, ``(N, F)``."""

    def features_mixed(self, x: Inputs, states: Sequence[StateT_contra], task_of: Tensor) -> Tensor | None:
        """Return features of samples of several tasks from one pass, ``(N, F)``; None where each task needs its own."""

    def used_features(self, features: Tensor, state: StateT_contra) -> Tensor:
        """Return those of a task's features ``(N, F)`` that it uses; the others are zeros."""


class InferringNetwork(Protocol):
    """Network that can be asked without naming a task."""

    def infer(self, x: Inputs, scorer: Scorer | None = None, *, calibrated: bool = True) -> Inferred:
        """Recognise the task of each sample, and give that task's logits."""

    def __call__(self, x: Tensor, task: str) -> Tensor:
        """Return a task's logits, ``(N, classes)``."""


def choose_scorer(states: Sequence[TaskState], scorer: Scorer | None, calibrated: bool = True) -> Scorer:
    """Return the score to recognise tasks by, which all tasks have been calibrated for.

    Args:
        states: the consolidated tasks.
        scorer: the score that was asked for; None takes the sums where tasks have them, else distances.
        calibrated: whether scores are to count in standard deviations.

    Raises:
        InputError: a task has a head of its own; or was not calibrated, or not for this score; or some tasks have
            sums, others have none, and nobody said which score to take.
    """
    for state in states:
        state.count_classes()  # what no calibration mends is said first
    without = [state.name for state in states if state.sums is None]
    needs_calibration = calibrated or scorer in (None, Scorer.DISTANCE, Scorer.SUMS)
    for state in states:
        if needs_calibration and state.calibration is None and not (scorer is Scorer.SUMS and state.sums is not None):
            raise InputError(f"task {state.name!r} was not calibrated: call calibrate({state.name!r}, x, y) first")
    if scorer is None and len(without) == len(states):
        return Scorer.DISTANCE
    if scorer in (None, Scorer.SUMS) and without:
        named = ", ".join(map(repr, without))
        raise InputError(
            f"{named} {'has' if len(without) == 1 else 'have'} no sums to be told from other tasks by, since an "
            "earlier version calibrated, or samples were not one tensor of real numbers of the others' shape: call "
            f"calibrate({without[0]!r}, x, y) anew, or choose another score, scorer=Scorer.DISTANCE"
        )
    return Scorer.SUMS if scorer is None else scorer


def infer_by_sums(
    masking: Recognising[StateT], states: Sequence[StateT], x: Inputs, recogniser: RidgeRecogniser
) -> Inferred:
    """Recognise the task of each sample by the tasks' sums, and ask that task alone; in one pass if possible.

    Args:
        masking: the masks of the tasks.
        states: the consolidated tasks.
        x: samples, of which the shared features can be computed.
        recogniser: solution of the sums of exactly these tasks.

    Raises:
        InputError: samples do not suit the shared features, or hold values that are not finite; or a task has a head of
            its own, or features have further axes.
    """
    interface, counts = masking.interface, [state.count_classes() for state in states]
    found = recogniser.log_probabilities(recogniser.feature_map.read(x, masking))
    columns = [recogniser.tasks.index(state.name) for state in states]
    scores = found[:, columns].to(torch.float32).to(device_of(x))
    chosen = scores.argmax(1)
    with torch.no_grad(), masking.evaluating():
        together = masking.features_mixed(x, states, chosen)
        parts = []
        for number, state in enumerate(states):
            rows = (chosen == number).nonzero().flatten()
            if len(rows):
                features = masking.features(interface.take(x, rows), state) if together is None else together[rows]
                logits = state.classify(require_vectors(features))
                parts.append((rows, pad_classes(logits, max(counts) - logits.shape[1])))
    logits = torch.cat([part for _, part in parts]) if parts else scores.new_zeros(0, max(counts))
    order = torch.cat([rows for rows, _ in parts]) if parts else chosen
    names = tuple(state.name for state in states)
    return Inferred(names, scores, chosen, torch.empty_like(logits).index_copy(0, order, logits), Scorer.SUMS)


def infer_task(
    masking: Recognising[StateT], states: Sequence[StateT], x: Inputs, scorer: Scorer, calibrated: bool
) -> Inferred:
    """Recognise the task of each sample by scores that tasks give by themselves, and give that task's logits.

    All tasks are asked in one pass if possible.

    Args:
        masking: the masks of the tasks.
        states: the consolidated tasks, which are calibrated if that is needed.
        x: samples.
        scorer: score by which a sample's task is recognised.
        calibrated: whether scores count in standard deviations from those of the task's training samples.

    Raises:
        InputError: a task has a head of its own, or features have further axes.
    """
    counts = [state.count_classes() for state in states]
    with torch.no_grad(), masking.evaluating():
        features = _features_of_all(masking, x, states)
        features = [require_vectors(part) for part in features]
        answers = [state.classify(part) for part, state in zip(features, states, strict=True)]
        scores = []
        for part, logits, state in zip(features, answers, states, strict=True):
            score = raw_score(scorer, masking.used_features(part, state), logits, state.calibration)
            if calibrated and state.calibration is not None:
                score = state.calibration.normalised(score, scorer)
            scores.append(score)
    table = torch.stack(scores, 1)
    chosen = table.argmax(1)
    padded = torch.stack([pad_classes(each, max(counts) - each.shape[1]) for each in answers])
    logits = padded[chosen, torch.arange(len(chosen), device=chosen.device)]
    return Inferred(tuple(state.name for state in states), table, chosen, logits, scorer)


def require_vectors(features: Tensor) -> Tensor:
    """Check that features are vectors, ``(N, F)``, and return them.

    Raises:
        InputError: they have further axes.
    """
    if features.dim() != 2:
        raise InputError(
            f"tasks are recognised by features (N, F), and these have shape {tuple(features.shape)}: name the task"
        )
    return features


def _features_of_all(masking: Recognising[StateT], x: Inputs, states: Sequence[StateT]) -> Sequence[Tensor]:
    """Return features of a batch under each of several tasks, ``(N, F)`` each; in one pass where that is possible."""
    interface, samples = masking.interface, masking.interface.samples(x)
    task_of = torch.arange(len(states), device=device_of(x)).repeat_interleave(samples)
    together = masking.features_mixed(interface.repeated(x, len(states)), states, task_of)
    if together is not None:
        return together.view(len(states), samples, *together.shape[1:]).unbind()
    return [masking.features(x, state) for state in states]


def measure_inference(
    net: InferringNetwork,
    samples: Mapping[str, tuple[Tensor, Tensor]],
    scorer: Scorer | None = None,
    *,
    calibrated: bool = True,
    batch_size: int = 500,
) -> IncrementalAccuracy:
    """Measure accuracy with and without the task's name.

    Args:
        net: the network.
        samples: by task, test samples ``(N, ...)`` and their classes within the task, int64 ``(N,)``.
        scorer: score by which tasks are recognised; None for the network's default.
        calibrated: whether scores are normalised by the tasks' calibrations.
        batch_size: samples per pass.

    Raises:
        InputError: there are no samples.
    """
    total = known = both = named = 0
    for task, (x, y) in samples.items():
        for part, labels in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            inferred = net.infer(part, scorer, calibrated=calibrated)
            right_task = inferred.chosen == inferred.tasks.index(task)
            right_class = inferred.logits.argmax(1) == labels
            with torch.no_grad(), evaluation_mode(cast(nn.Module, net)):
                named += int((net(part, task).argmax(1) == labels).sum())
            total, known = total + len(labels), known + int(right_task.sum())
            both += int((right_task & right_class).sum())
    if not total:
        raise InputError("there are no samples to measure with")
    return IncrementalAccuracy(known / total, both / total, named / total)
