"""Testing: what a method says to the test samples of a task, and how good that is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hatrack.errors import TrainingError
from hatrack.methods import Method
from hatrack.objectives import ACCURACY, Classification, Objective
from hatrack.objectives.jackknife import error_by_samples
from hatrack.objectives.metrics import BALANCED_ACCURACY, EXACT_MATCH
from hatrack.streams import Split
from hatrack.support.inputs import map_tensors
from hatrack.support.interface import PLAIN

__all__ = ["Score", "predict_split", "predict_splits", "require_finite", "score"]


@dataclass(frozen=True)
class Score:
    """Result of a test.

    Attributes:
        loss: mean loss, such as the cross-entropy.
        value: metric of the task: for classes the accuracy, the share of right answers, in [0, 1].
        logits_sha256: SHA-256 of the float32 logits in test order, little-endian: the proof of what the network said.
        error: standard error of the metric by the choice of the test samples; None where their numbers say it, as
            of accuracy, or where it is not known.
    """

    loss: float
    value: float
    logits_sha256: str
    error: float | None = None


def predict_split(method: Method, split: Split, task: str, batch_size: int) -> Tensor:
    """Run a method on the test samples of a task that it has learned; see :func:`predict_splits`."""
    return predict_splits(method, {task: split}, batch_size)[task]


def predict_splits(method: Method, splits: Mapping[str, Split], batch_size: int) -> dict[str, Tensor]:
    """Run a method on the test samples of tasks that it has learned.

    Args:
        method: the method; it is left in evaluation mode.
        splits: the test samples, by the task's name.
        batch_size: samples per batch; logits are reproducible to the bit for equal batches only.

    Returns:
        For each task outputs in test order, float32 on the CPU, ``(N, outputs)``.
    """
    method.train_mode(False)  # once: it goes through the modules of all tasks
    logits = {}
    with torch.no_grad():
        for task, split in splits.items():
            parts = (split.interface or PLAIN).split(split.load()[0], batch_size)
            on_device = (map_tensors(lambda tensor: tensor.to(method.setup.device), part) for part in parts)
            logits[task] = torch.cat([method.predict(x, task).float().cpu() for x in on_device]).contiguous()
    return logits


def score(logits: Tensor, labels: Tensor, objective: Objective | None = None, before: Iterable[Score] = ()) -> Score:
    """Return loss and metric of outputs, and their hash.

    Args:
        logits: outputs ``(N, outputs)``, float32 on the CPU.
        labels: targets of the objective; for classes ``(N,)``.
        objective: what outputs and targets mean; None for classes.
        before: earlier scores on these samples. The error of one whose outputs were the same to the bit is taken over:
            to estimate it takes 20 times as long as to measure.
    """
    objective = Classification(tuple(map(str, range(logits.shape[1])))) if objective is None else objective
    little_endian = logits.numpy().astype("<f4", copy=False)
    by_number = objective.metric in (ACCURACY, EXACT_MATCH, BALANCED_ACCURACY)
    digest = hashlib.sha256(little_endian.tobytes()).hexdigest()
    known = next((each.error for each in before if each.logits_sha256 == digest and each.error is not None), None)
    if known is None and not by_number:
        known = error_by_samples(objective, logits, labels)
    return Score(
        loss=float(objective.loss(logits, labels)),
        value=objective.measure(logits, labels),
        logits_sha256=digest,
        error=known,
    )


def require_finite(loss: float, what: str, task: str, epoch: int | None = None) -> None:
    """Check a loss.

    Raises:
        TrainingError: it is infinite or not a number.
    """
    if not math.isfinite(loss):
        when = "" if epoch is None else f" in epoch {epoch}"
        raise TrainingError(
            f"the {what} of task {task!r} became {loss}{when}; lower the learning rate (`lr`), or "
            "look for extreme values in the data"
        )
