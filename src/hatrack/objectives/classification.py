"""One class for every sample, learned by the cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.objectives import metrics
from hatrack.objectives.base import Objective
from hatrack.objectives.metrics import Metric
from hatrack.objectives.weights import check_weights
from hatrack.support.names import listed

__all__ = ["Classification"]

MEASURES: Mapping[Metric, Callable[[Tensor, Tensor], float]] = MappingProxyType(
    {
        metrics.ACCURACY: metrics.accuracy,
        metrics.BALANCED_ACCURACY: metrics.balanced_accuracy,
        metrics.F1: metrics.f1_of_classes,
    }
)
"""Functions of predicted classes and targets that compute the metrics of classes."""


@dataclass(frozen=True)
class Classification(Objective):
    """One class for every sample: the cross-entropy of logits, and the accuracy. Targets are int64 ``(N,)``.

    The balanced accuracy and F1 are means over classes, to which rare classes count as much as frequent ones.

    Attributes:
        names: names of the classes; target ``i`` means ``names[i]``.
        weights: weight of every class in the loss, as ``weight`` of torch's cross-entropy; None for equal ones.
        metric: accuracy, balanced accuracy or F1.

    Raises:
        InputError: the metric is another one, or the weights do not fit.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    metric: Metric = metrics.ACCURACY
    kind: ClassVar[str] = "classification"

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        check_weights(self.weights, self.names, "class")
        if self.metric not in MEASURES:
            known = ", ".join(metric.name for metric in MEASURES)
            raise InputError(f"the metric of classes is one of: {known}; not {self.metric.name}")

    def check(self, targets: Tensor, part: str) -> None:
        """Check that targets are classes that have a name."""
        if targets.dtype != torch.int64 or int(targets.max()) >= self.outputs:
            raise InputError(f"{part} labels must be integers 0..{self.outputs - 1}")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits ``(N, classes)``."""
        weight = None if self.weights is None else outputs.new_tensor(self.weights)
        return F.cross_entropy(outputs, targets, weight)

    def measure(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the metric."""
        return self.measure_classes(outputs.argmax(dim=1), targets)

    def measure_classes(self, predicted: Tensor, targets: Tensor) -> float:
        """Return the metric of predicted classes for targets, both int64 ``(N,)``.

        A negative class stands for an answer that is none of the classes, such as one of another task.
        """
        return MEASURES[self.metric](predicted, targets)

    def unmeasured(self, targets: Tensor) -> str:
        """Say which classes no target is of."""
        counts = torch.bincount(targets, minlength=self.outputs).tolist()
        missing = [name for name, count in zip(self.names, counts, strict=True) if not count]
        if not missing:
            return ""
        said = {
            metrics.F1: "which is left out of F1 where none is taken for it, and counts 0 else",
            metrics.BALANCED_ACCURACY: "so that the balanced accuracy is the mean over the others",
        }.get(self.metric, f"so that the {self.metric.name} tells nothing of it")
        return f"none is of class {listed(missing)}, {said}"

    def drawn(self, outputs: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw a class for every sample."""
        return torch.multinomial(outputs.softmax(dim=1), 1, generator=generator).squeeze(1)

    def guesses(self, targets: Tensor) -> Tensor:
        """Return the frequencies of the classes."""
        counts = torch.bincount(targets, minlength=self.outputs)
        return counts / counts.sum()

    def guessed(self, guesses: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return logarithms of the frequencies plus Gumbel noise, whose largest entry is a draw from them."""
        uniform = torch.rand(count, self.outputs, generator=generator).clamp_(1e-12, 1 - 1e-7)
        return guesses.clamp_min(1e-12).log() - (-uniform.log()).log()

    def packed(self, targets: Tensor) -> Tensor:
        """Return a column of class numbers."""
        return targets.double().unsqueeze(1)

    def unpacked(self, packed: Tensor) -> Tensor:
        """Return class numbers."""
        return packed if packed.dtype == torch.int64 else packed[:, 0].long()

    def weighted(self, weights: Sequence[float]) -> Classification:
        """Return the objective with other weights of the classes."""
        return replace(self, weights=tuple(weights))

    def balance(self, targets: Tensor) -> tuple[float, ...]:
        """Return ``N / (C N_c)`` for every class c of N_c samples, so that all classes weigh alike."""
        counts = torch.bincount(targets, minlength=self.outputs)
        if not counts.all():
            raise InputError(f"class {self.names[int(counts.argmin())]!r} has no training sample to balance")
        return tuple((len(targets) / (self.outputs * counts.double())).tolist())

    def say(self, outputs: Tensor) -> list[str]:
        """Return the name of the likeliest class."""
        return [self.names[index] for index in outputs.argmax(dim=1).tolist()]

    def to_json(self) -> dict[str, Any]:
        """Return the weights, if there are any, and a metric that is not accuracy; the names stand elsewhere."""
        weights = {} if self.weights is None else {"weights": list(self.weights)}
        metric = {} if self.metric == metrics.ACCURACY else {"metric": self.metric.to_json()}
        return {"kind": self.kind, "outputs": self.outputs, **weights, **metric}
