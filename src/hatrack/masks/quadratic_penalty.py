"""Quadratic penalty on weights that leave their values after the last task, weighted by importance."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hatrack.functional import quadratic_distance

__all__ = ["QuadraticPenalty"]


class QuadraticPenalty(nn.Module):
    """Anchor of every weight after the last task, and the importance of each of its entries for the tasks so far.

    Importance adds up over tasks, so that a weight which one task of many relies on costs as much as at first
    (Schwarz et al., ICML 2018, with γ = 1); the anchor is the last task's alone.

    Args:
        weights: the weights by name; moving them costs nothing before the first call of :meth:`anchor`.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = tuple(weights)
        for index, weight in enumerate(weights.values()):
            self.register_buffer(f"importance_{index}", torch.zeros_like(weight.detach()))
            self.register_buffer(f"anchor_{index}", weight.detach().clone())

    @property
    def importance(self) -> dict[str, Tensor]:
        """Importance of every entry, at least 0, by the weights' names."""
        return {name: self.get_buffer(f"importance_{index}") for index, name in enumerate(self._names)}

    @property
    def anchors(self) -> dict[str, Tensor]:
        """Values of the weights when they were last anchored, by their names."""
        return {name: self.get_buffer(f"anchor_{index}") for index, name in enumerate(self._names)}

    def distance(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return ``Σ F (θ − θ*)²`` over all weights, a scalar."""
        return quadratic_distance(weights, self.anchors, self.importance)

    @torch.no_grad()
    def anchor(self, weights: Mapping[str, Tensor], importance: Mapping[str, Tensor]) -> None:
        """Anchor the weights where they are now, and add one more task's importance of their entries.

        Args:
            weights: the weights by name.
            importance: importance of their entries for the task, at least 0, by the same names.
        """
        for name, anchor in self.anchors.items():
            anchor.copy_(weights[name])
            self.importance[name].add_(importance[name])

    def buffers_of(self, name: str) -> tuple[str, str]:
        """Return the names of the buffers that hold a weight's importance and its anchor."""
        index = self._names.index(name)
        return f"importance_{index}", f"anchor_{index}"

    @torch.no_grad()
    def release(self, weights: Mapping[str, Tensor], where: Mapping[str, Tensor]) -> None:
        """Release some entries: they move at no cost, and their old values are erased.

        Args:
            weights: the weights by name.
            where: booleans of their shapes by the same names, True for entries to release; weights missing here keep
                all anchors.
        """
        for name, entries in where.items():
            self.importance[name].masked_fill_(entries, 0.0)
            self.anchors[name].copy_(torch.where(entries, weights[name], self.anchors[name]))
