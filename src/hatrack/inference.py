"""Asking a network without naming the task: all tasks answer, and the one that knows the sample best is believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.calibration import Scorer, raw_score
from hatrack.errors import InputError
from hatrack.modes import evaluation_mode
from hatrack.multitask import MultiTaskNetwork, StateT

__all__ = ["IncrementalAccuracy", "Inferred", "InferringNetwork", "measure_inference"]


@dataclass(frozen=True)
class Inferred:
    """Answers of a network to samples whose task nobody named.

    Attributes:
        tasks: names of the tasks that were asked.
        scores: how much each sample looks like each task's, ``(N, T)``.
        chosen: index of the task that is believed, int64 ``(N,)``.
        logits: that task's logits, ``(N, most classes)``, filled with −inf behind its last class.
    """

    tasks: tuple[str, ...]
    scores: Tensor
    chosen: Tensor
    logits: Tensor

    @property
    def task_names(self) -> list[str]:
        """The name of each sample's task."""
        return [self.tasks[index] for index in self.chosen.tolist()]


@dataclass(frozen=True)
class IncrementalAccuracy:
    """Shares of test samples, in [0, 1], over the samples of all tasks together.

    Attributes:
        task: the task was recognised.
        class_incremental: task and class were recognised.
        task_incremental: the class was, with the task given.
    """

    task: float
    class_incremental: float
    task_incremental: float


class InferringNetwork(MultiTaskNetwork[StateT]):
    """A network that can be asked without naming a task."""

    def infer(self, x: Tensor, scorer: Scorer = Scorer.DISTANCE, *, calibrated: bool = True) -> Inferred:
        """Recognise the task of each sample, and give that task's logits; all consolidated tasks are asked in one pass.

        Scores of tasks that were trained separately do not compare well by themselves; calibrated, each counts in
        standard deviations from what is usual for the training samples of its task.

        Args:
            x: samples ``(N, ...)``.
            scorer: by what tasks are recognised.
            calibrated: use the tasks' calibrations.

        Raises:
            InputError: no task is consolidated, or one was not calibrated although that is needed (always for
                distances).
        """
        self._require_attached()
        states = self._consolidated_states()
        if not states:
            raise InputError("there is no consolidated task yet to recognise")
        return self._infer(x, states, scorer, calibrated)

    def _infer(self, x: Tensor, states: Sequence[StateT], scorer: Scorer, calibrated: bool) -> Inferred:
        for state in states if calibrated or scorer is Scorer.DISTANCE else []:
            if state.calibration is None:
                raise InputError(f"task {state.name!r} was not calibrated: call calibrate({state.name!r}, x, y) first")
        with torch.no_grad(), evaluation_mode(self):
            features = self._features_of_all(x, states)
            answers = [self._classify(part, state) for part, state in zip(features, states, strict=True)]
            scores = []
            for part, logits, state in zip(features, answers, states, strict=True):
                score = raw_score(scorer, self._used_features(part, state), logits, state.calibration)
                if calibrated and state.calibration is not None:
                    score = state.calibration.normalised(score, scorer)
                scores.append(score)
        table = torch.stack(scores, 1)
        chosen = table.argmax(1)
        widest = max(state.num_classes for state in states)
        padded = torch.stack([F.pad(each, (0, widest - each.shape[1]), value=float("-inf")) for each in answers])
        logits = padded[chosen, torch.arange(len(x), device=chosen.device)]
        return Inferred(tuple(state.name for state in states), table, chosen, logits)

    def _features_of_all(self, x: Tensor, states: Sequence[StateT]) -> Sequence[Tensor]:
        """Features of a batch under each of several tasks, ``(N, F)`` each; in one pass where that is possible."""
        task_of = torch.arange(len(states), device=x.device).repeat_interleave(len(x))
        together = self._features_mixed(x.repeat(len(states), *(1,) * (x.dim() - 1)), states, task_of)
        if together is not None:
            return together.view(len(states), len(x), -1).unbind()
        return [self._features(x, state) for state in states]

    def _used_features(self, features: Tensor, state: StateT) -> Tensor:
        """Of features ``(N, F)`` those that a task uses; the others are zeros."""
        return features


def measure_inference(
    net: InferringNetwork[StateT],
    samples: Mapping[str, tuple[Tensor, Tensor]],
    scorer: Scorer,
    *,
    calibrated: bool = True,
    batch_size: int = 500,
) -> IncrementalAccuracy:
    """Accuracy with and without the task's name, measured together.

    Args:
        net: the network.
        samples: by task, test samples ``(N, ...)`` and their classes within the task, int64 ``(N,)``.
        scorer: by what tasks are recognised.
        calibrated: use the tasks' calibrations.
        batch_size: samples per pass.
    """
    total = known = both = named = 0
    for task, (x, y) in samples.items():
        for part, labels in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            inferred = net.infer(part, scorer, calibrated=calibrated)
            right_task = inferred.chosen == inferred.tasks.index(task)
            right_class = inferred.logits.argmax(1) == labels
            with torch.no_grad(), evaluation_mode(net):
                named += int((net(part, task).argmax(1) == labels).sum())
            total, known = total + len(labels), known + int(right_task.sum())
            both += int((right_task & right_class).sum())
    if not total:
        raise InputError("there are no samples to measure with")
    return IncrementalAccuracy(known / total, both / total, named / total)
