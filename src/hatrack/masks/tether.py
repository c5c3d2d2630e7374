"""What draws weights back to where they were, each as strongly as it mattered."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hatrack.functional import quadratic_distance

__all__ = ["Tether"]


class Tether(nn.Module):
    """For every weight where it was after the last task, and how much each of its entries mattered to the tasks so far.

    Importance adds up over tasks, so that a weight which one task of many relies on is held as firmly as at first
    (Schwarz et al., ICML 2018, with γ = 1); the anchor is the last task's alone.

    Args:
        weights: the weights by name; nothing holds them yet.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = tuple(weights)
        for index, weight in enumerate(weights.values()):
            self.register_buffer(f"importance_{index}", torch.zeros_like(weight.detach()))
            self.register_buffer(f"anchor_{index}", weight.detach().clone())

    @property
    def importance(self) -> dict[str, Tensor]:
        """How much every entry matters, by the weights' names; none is negative."""
        return {name: self.get_buffer(f"importance_{index}") for index, name in enumerate(self._names)}

    @property
    def anchor(self) -> dict[str, Tensor]:
        """Where the weights were when they were last tied, by their names."""
        return {name: self.get_buffer(f"anchor_{index}") for index, name in enumerate(self._names)}

    def distance(self, weights: Mapping[str, Tensor]) -> Tensor:
        """``Σ F (θ − θ*)²`` over all weights, a scalar."""
        return quadratic_distance(weights, self.anchor, self.importance)

    @torch.no_grad()
    def tie(self, weights: Mapping[str, Tensor], importance: Mapping[str, Tensor]) -> None:
        """Hold the weights where they are now.

        Args:
            weights: the weights by name.
            importance: how much their entries matter to one more task, by the same names.
        """
        for name, anchor in self.anchor.items():
            anchor.copy_(weights[name])
            self.importance[name].add_(importance[name])

    def buffers_of(self, name: str) -> tuple[str, str]:
        """The names of the buffers that hold a weight's importance and anchor."""
        index = self._names.index(name)
        return f"importance_{index}", f"anchor_{index}"

    @torch.no_grad()
    def loosen(self, weights: Mapping[str, Tensor], where: Mapping[str, Tensor]) -> None:
        """Hold some entries no longer, and remember nothing of what they were.

        Args:
            weights: the weights by name.
            where: booleans of their shapes by the same names; what is left out stays tied.
        """
        for name, entries in where.items():
            self.importance[name].masked_fill_(entries, 0.0)
            self.anchor[name].copy_(torch.where(entries, weights[name], self.anchor[name]))
