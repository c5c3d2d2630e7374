"""One class for every sample, learned by the cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.objectives.base import Objective, listed
from hatrack.objectives.metrics import ACCURACY, Metric
from hatrack.objectives.weights import check_weights

__all__ = ["Classification"]


@dataclass(frozen=True)
class Classification(Objective):
    """One class for every sample: the cross-entropy of logits, and the accuracy. Targets are int64 ``(N,)``.

    Attributes:
        names: names of the classes; target ``i`` means ``names[i]``.
        weights: weight of every class in the loss, as ``weight`` of torch's cross-entropy; None for equal ones.

    Raises:
        InputError: the weights do not fit.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    metric: ClassVar[Metric] = ACCURACY  # type: ignore[misc]
    kind: ClassVar[str] = "classification"

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        check_weights(self.weights, self.names, "class")

    def check(self, targets: Tensor, part: str) -> None:
        """Check that targets are classes that have a name."""
        if targets.dtype != torch.int64 or int(targets.max()) >= self.outputs:
            raise InputError(f"{part} labels must be integers 0..{self.outputs - 1}")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits ``(N, classes)``."""
        weight = None if self.weights is None else outputs.new_tensor(self.weights)
        return F.cross_entropy(outputs, targets, weight)

    def measure(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the accuracy."""
        return int((outputs.argmax(dim=1) == targets).sum()) / len(targets)

    def untold(self, targets: Tensor) -> str:
        """Say which classes no target is of."""
        counts = torch.bincount(targets, minlength=self.outputs).tolist()
        missing = [name for name, count in zip(self.names, counts, strict=True) if not count]
        if not missing:
            return ""
        return f"none is of class {listed(missing)}, so that the {self.metric.name} tells nothing of it"

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
        """Return the weights, if there are any; the names of classes stand elsewhere."""
        weights = {} if self.weights is None else {"weights": list(self.weights)}
        return {"kind": self.kind, "outputs": self.outputs, **weights}
