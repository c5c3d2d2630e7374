"""Any number of labels for every sample, learned by the binary cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

__all__ = ["MultiLabel"]

_OF_NONE = {
    metrics.MEAN_AVERAGE_PRECISION: "which is left out of the mean average precision",
    metrics.F1: "which is left out of F1 where none is given it, and counts 0 where one is",
    metrics.EXACT_MATCH: "of which the exact match tells only whether none is given it",
}
"""Meaning of every metric for a label that no sample has."""
METRICS_OF_LABELS = tuple(_OF_NONE)


@dataclass(frozen=True)
class MultiLabel(Objective):
    """Any number of labels per sample: the binary cross-entropy, and the mean average precision.

    Targets are bool ``(N, L)``. A label is given where its probability is above one half, that is, its logit above 0.
    The mean average precision needs no such threshold, which a loss of rare labels seldom reaches.

    Attributes:
        names: names of the L labels.
        weights: weight of every label's positive samples, as ``pos_weight`` of torch's loss; None for 1.
        metric: mean average precision, F1 (mean over labels) or exact match.

    Raises:
        InputError: the metric is another one, or the weights do not fit.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    metric: Metric = metrics.MEAN_AVERAGE_PRECISION
    kind: ClassVar[str] = "multi-label"

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        check_weights(self.weights, self.names, "label")
        if self.metric not in METRICS_OF_LABELS:
            known = ", ".join(metric.name for metric in METRICS_OF_LABELS)
            raise InputError(f"the metric of several labels is one of: {known}; not {self.metric.name}")

    def check(self, targets: Tensor, part: str) -> None:
        """Check that targets are truth values, as many as there are names."""
        if targets.dtype != torch.bool or targets.shape[1:] != (self.outputs,):
            raise InputError(f"{part} targets must be bool (N, {self.outputs})")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross-entropy over samples and labels."""
        wide = torch.promote_types(outputs.dtype, torch.float32)
        weight = None if self.weights is None else outputs.new_tensor(self.weights, dtype=wide)
        return F.binary_cross_entropy_with_logits(outputs.to(wide), targets.to(wide), pos_weight=weight)

    def given(self, outputs: Tensor) -> Tensor:
        """Return which labels are given, bool ``(N, L)``."""
        return outputs > 0

    def measure(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the metric."""
        if self.metric == metrics.MEAN_AVERAGE_PRECISION:
            return metrics.mean_average_precision(outputs, targets)
        measure = metrics.f1 if self.metric == metrics.F1 else metrics.exact_match
        return measure(self.given(outputs), targets)

    def unmeasured(self, targets: Tensor) -> str:
        """Say which labels no target has, or all have."""
        counts = targets.sum(0).tolist()
        missing = [name for name, count in zip(self.names, counts, strict=True) if not count]
        constant = [name for name, count in zip(self.names, counts, strict=True) if count == len(targets)]
        said = [f"none has label {listed(missing)}, {_OF_NONE[self.metric]}"] if missing else []
        if constant and self.metric == metrics.MEAN_AVERAGE_PRECISION:
            said.append(f"all have label {listed(constant)}, whose average precision is 1 whatever is predicted")
        return "; ".join(said)

    def drawn(self, outputs: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw every label with its probability."""
        return torch.rand(outputs.shape, generator=generator) < outputs.sigmoid()

    def guesses(self, targets: Tensor) -> Tensor:
        """Return the frequencies of the labels."""
        return targets.float().mean(0)

    def guessed(self, guesses: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return logits of the frequencies plus logistic noise, above 0 as often as the label occurs."""
        uniform = torch.rand(count, self.outputs, generator=generator).clamp_(1e-7, 1 - 1e-7)
        return guesses.clamp(1e-7, 1 - 1e-7).logit() + uniform.logit()

    def packed(self, targets: Tensor) -> Tensor:
        """Return zeros and ones."""
        return targets.double()

    def unpacked(self, packed: Tensor) -> Tensor:
        """Return truth values."""
        return packed[:, : self.outputs].bool()

    def weighted(self, weights: Sequence[float]) -> MultiLabel:
        """Return the objective with other weights of the labels' positive samples."""
        return replace(self, weights=tuple(weights))

    def balance(self, targets: Tensor) -> tuple[float, ...]:
        """Return ``(N − N_l) / N_l`` for every label l of N_l samples, so that both answers weigh alike."""
        counts = targets.sum(0)
        for name, count in zip(self.names, counts.tolist(), strict=True):
            if not 0 < count < len(targets):
                raise InputError(f"label {name!r} is on {count} of {len(targets)} training samples; nothing to balance")
        return tuple(((len(targets) - counts) / counts.double()).tolist())

    def say(self, outputs: Tensor) -> list[str]:
        """Return the labels that are given, joined by commas."""
        return [", ".join(labels) for labels in self.labels(outputs)]

    def labels(self, outputs: Tensor) -> list[tuple[str, ...]]:
        """Return the labels that are given to every sample."""
        return [
            tuple(name for name, there in zip(self.names, row, strict=True) if there)
            for row in self.given(outputs).tolist()
        ]

    def to_json(self) -> dict[str, Any]:
        """Return labels, weights and metric."""
        weights = {} if self.weights is None else {"weights": list(self.weights)}
        return {"kind": self.kind, "names": list(self.names), **weights, "metric": self.metric.to_json()}
