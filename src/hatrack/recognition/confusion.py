"""Confusion of tasks and classes where no task is named, and the area under the ROC curve of each task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hatrack.errors import InputError
from hatrack.masks.calibration import Scorer
from hatrack.recognition.infer import InferringNetwork

__all__ = ["Confusion", "auroc", "measure_confusion"]


@dataclass(frozen=True, eq=False)
class Confusion:
    """Counts of test samples by what they are and what they were taken for, no task being named.

    A class is a class of a task: classes of two tasks that have the same name are two classes, and a sample of one that
    is taken for the other counts as confused, since its task was.

    Attributes:
        tasks: names of the tasks.
        classes: number of classes of each task.
        counts: number of samples by their class (row) and the class that they were taken for (column), the classes of
            all tasks one task after the other, int64 ``(C, C)``.
        auroc: area under the ROC curve of each task's score, its own samples against those of all others, in [0, 1];
            empty where there is one task.
    """

    tasks: tuple[str, ...]
    classes: tuple[int, ...]
    counts: Tensor
    auroc: tuple[float, ...]

    @property
    def of_tasks(self) -> Tensor:
        """Number of samples by their task (row) and the task that they were taken for (column), int64 ``(T, T)``."""
        task_of = torch.repeat_interleave(torch.arange(len(self.classes)), torch.tensor(self.classes))
        members = torch.nn.functional.one_hot(task_of, len(self.classes))
        return members.T @ self.counts @ members

    @property
    def samples(self) -> tuple[int, ...]:
        """Number of samples of each task."""
        return tuple(self.of_tasks.sum(1).tolist())

    @property
    def task_recognised(self) -> tuple[float, ...]:
        """Share of each task's samples whose task was recognised, in [0, 1]."""
        return _shares(self.of_tasks.diagonal().tolist(), self.samples)

    @property
    def class_incremental(self) -> tuple[float, ...]:
        """Share of each task's samples whose task and class were recognised, in [0, 1]."""
        right = [int(part.sum()) for part in torch.split(self.counts.diagonal(), list(self.classes))]
        return _shares(right, self.samples)


def _shares(right: list[int], samples: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(known / total for known, total in zip(right, samples, strict=True))


def measure_confusion(
    net: InferringNetwork,
    samples: Mapping[str, tuple[Tensor, Tensor]],
    classes: Mapping[str, int],
    scorer: Scorer | None = None,
    *,
    batch_size: int = 500,
) -> Confusion:
    """Count what test samples of all tasks are taken for if nobody names their tasks.

    Args:
        net: the network; it has these tasks and no others.
        samples: by task, test samples ``(N, ...)`` and their classes within the task, int64 ``(N,)``; at least one of
            every task.
        classes: number of classes by task, in the order of ``samples``.
        scorer: score by which tasks are recognised; None for the network's default.
        batch_size: samples per pass.

    Raises:
        InputError: there are no tasks, one has no samples, no number of classes or classes beyond it, or the network
            has other tasks; or as the network's ``infer``.
    """
    names = tuple(samples)
    if not names or (unknown := [name for name in names if name not in classes]):
        raise InputError("there are no tasks to measure with" if not names else f"how many classes has {unknown[0]!r}?")
    if empty := [name for name, (_, y) in samples.items() if not len(y)]:
        raise InputError(f"there are no samples of {empty[0]!r} to measure with")
    for name, (_, y) in samples.items():
        least, most = int(y.min()), int(y.max())
        if not 0 <= least <= most < classes[name]:
            raise InputError(f"classes of {name!r} are numbered from 0 to {classes[name] - 1}, not {least} to {most}")
    sizes = [classes[name] for name in names]
    first = dict(zip(names, [sum(sizes[:index]) for index in range(len(sizes))], strict=True))
    total = sum(sizes)
    counts = torch.zeros(total * total, dtype=torch.int64)
    scores = []
    for name, (x, y) in samples.items():
        for part, labels in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            inferred = net.infer(part, scorer)
            if sorted(inferred.tasks) != sorted(names):
                raise InputError(f"the network has the tasks {', '.join(inferred.tasks)}, and not {', '.join(names)}")
            offsets = torch.tensor([first[task] for task in inferred.tasks])
            taken = offsets[inferred.chosen.cpu()] + inferred.logits.argmax(1).cpu()
            counts += torch.bincount((first[name] + labels.cpu()) * total + taken, minlength=total * total)
            scores.append(inferred.scores[:, [inferred.tasks.index(task) for task in names]].cpu())
    table = torch.cat(scores)
    ends = [sum(len(y) for _, y in list(samples.values())[: index + 1]) for index in range(len(names))]
    areas = []
    for index in range(len(names)) if len(names) > 1 else ():
        begin, end = 0 if index == 0 else ends[index - 1], ends[index]
        own, rest = table[begin:end, index], torch.cat([table[:begin, index], table[end:, index]])
        areas.append(auroc(own, rest))
    return Confusion(names, tuple(sizes), counts.view(total, total), tuple(areas))


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Return the area under the ROC curve: how often a positive sample scores above a negative one, ties by half.

    That is the statistic of Mann and Whitney (Annals of Mathematical Statistics 1947) over the number of pairs; see
    Fawcett (Pattern Recognition Letters 2006).

    Args:
        positive: scores of the samples that should score high, ``(P,)``, at least one.
        negative: scores of the others, ``(N,)``, at least one.
    """
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive.contiguous(), right=False).double()
    not_above = torch.searchsorted(ordered, positive.contiguous(), right=True).double()
    return float((below + not_above).mean() / (2 * len(negative)))
