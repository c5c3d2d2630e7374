"""What methods have in common that tie the shared weights to what they were, each as strongly as it matters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hatrack.checkpoint import part_of
from hatrack.functional import quadratic_distance
from hatrack.methods.base import Batch, Loss, Setup
from hatrack.methods.multi_head import MultiHeadMethod

__all__ = ["AnchoredMethod"]


class AnchoredMethod(MultiHeadMethod):
    """Adds ``scale · Σ Ω (θ − θ*)²`` over the backbone's parameters to the cross-entropy, from the second task on.

    Heads are left out: those of earlier tasks get no gradient, and so stay where they are. A subclass calls
    :meth:`hold` at the end of each task.
    """

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.anchor: dict[str, Tensor] = {}
        self.importance: dict[str, Tensor] | None = None

    def scale(self) -> float:
        """What the distance is multiplied by: the strength, or half of it, as the paper has it."""
        strength: float = self.settings.strength
        return strength

    def hold(self, importance: Mapping[str, Tensor] | None = None) -> None:
        """Tie the weights to what they are now, from the next task on."""
        self.anchor = {name: value.detach().clone() for name, value in self.shared_parameters().items()}
        self.importance = None if importance is None else dict(importance)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy and the weighted distance to the anchor."""
        loss = super().loss(batch)
        if not self.anchor:
            return loss
        distance = quadratic_distance(self.shared_parameters(), self.anchor, self.importance)
        return loss._replace(value=loss.value + self.scale() * distance)

    def _extra_state(self) -> Mapping[str, Tensor]:
        state = {f"anchor.{name}": value for name, value in self.anchor.items()}
        return state | {f"importance.{name}": value for name, value in (self.importance or {}).items()}

    def _load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.anchor = part_of(state, "anchor.")
        self.importance = part_of(state, "importance.") or None
