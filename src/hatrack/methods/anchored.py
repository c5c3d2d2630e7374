"""Methods that tie the shared weights to their values before the task, each as strongly as it matters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from hatrack.functional import quadratic_distance
from hatrack.methods.base import Batch, Loss, Setup
from hatrack.methods.multi_head import MultiHeadMethod

__all__ = ["AnchoredMethod"]


class AnchoredMethod(MultiHeadMethod):
    """Adds ``scale · Σ Ω (θ − θ*)²`` over the backbone's parameters to the cross-entropy, from the second task on.

    Heads are left out: those of earlier tasks get no gradient, and so stay where they are. A subclass calls
    :meth:`hold` at the end of each task.

    Attributes:
        anchor: θ* by name; empty in the first task.
        importance: Ω by name; empty if all parameters matter alike.
    """

    kept: ClassVar[tuple[str, ...]] = ("anchor", "importance")

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.anchor: dict[str, Tensor] = {}
        self.importance: dict[str, Tensor] = {}

    def scale(self) -> float:
        """Return the factor of the distance: the strength, or half of it, as the paper has it."""
        strength: float = self.settings.strength
        return strength

    def hold(self, importance: Mapping[str, Tensor] | None = None) -> None:
        """Tie the weights to what they are now, from the next task on."""
        self.anchor = self.copy_of_shared()
        self.importance = dict(importance or {})

    def loss(self, batch: Batch) -> Loss:
        """Return the cross-entropy and the weighted distance to the anchor."""
        loss = super().loss(batch)
        if not self.anchor:
            return loss
        distance = quadratic_distance(self.shared_parameters(), self.anchor, self.importance or None)
        return loss.plus(self.scale() * distance)
