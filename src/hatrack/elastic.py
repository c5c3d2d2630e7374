"""Weights with masks that are held, or drawn back to where they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

import torch
from torch import Tensor, nn

from hatrack.errors import InputError
from hatrack.growing_weights import GrowingWeights
from hatrack.growth import Growth
from hatrack.masks import ElasticWeights, QuadraticPenalty, WeightConditioning, WeightTask
from hatrack.undo import all_or_nothing

__all__ = ["ElasticNetwork"]


class ElasticNetwork(GrowingWeights):
    """A network of masks of weights, with what draws the weights back where they are elastic.

    Args:
        backbone: maps a batch to features ``(N, F)``.
        example_input: a batch of the shape that the backbone expects.
        growth: when the backbone is widened by itself; None for never.
        conditioning: what of the weights later tasks may change.

    Attributes:
        conditioning: what of the weights later tasks may change.
    """

    def __init__(
        self, backbone: nn.Module, example_input: Tensor, growth: Growth | None, conditioning: WeightConditioning
    ) -> None:
        super().__init__(backbone, example_input, growth)
        self.conditioning = conditioning
        self.register_module(
            "tether", QuadraticPenalty(self._named()) if isinstance(conditioning, ElasticWeights) else None
        )

    def penalty(self) -> Tensor:
        """Return the cost of leaving where elastic weights were, to be added to the loss: ``λ/2 Σ F (θ − θ*)²``.

        A scalar; 0 with other conditionings, and before :meth:`tie` was called.
        """
        if self.tether is None or not self._consolidated_states():
            return torch.zeros((), device=self._weights()[0].device)
        assert isinstance(self.conditioning, ElasticWeights)
        return self.conditioning.strength / 2 * self.tether.distance(self._named())

    @all_or_nothing(lambda net: () if net.tether is None else net.tether.buffers())
    def tie(self, importance: Mapping[str, Tensor]) -> None:
        """Hold elastic weights where they are now, in addition to what holds them already: once after every task.

        Args:
            importance: how much every entry of the weights matters to the task, none negative, by the names of
                :meth:`masks`; such as the diagonal of the Fisher information under the task's mask.

        Raises:
            InputError: the network does not have elastic weights, or these are not its weights.
        """
        if self.tether is None:
            raise InputError("tie acts on elastic weights; give the network conditioning=ElasticWeights(...)")
        weights = self._named()
        if {name: value.shape for name, value in importance.items()} != {n: w.shape for n, w in weights.items()}:
            raise InputError(f"tie takes a tensor of its shape for every weight: {', '.join(weights)}")
        self.tether.anchor(weights, importance)

    def _shared_parameters(self) -> list[nn.Parameter]:
        return self._weights() if self.conditioning.trains_weights else []

    def _erase(
        self, erased: Mapping[str, Tensor], others: Sequence[WeightTask], generator: torch.Generator | None
    ) -> None:
        super()._erase(erased, others, generator)
        if self.tether is not None:
            self.tether.release(self._named(), erased)

    def _weights(self) -> list[nn.Parameter]:
        return [self._part(name) for name in self._layout.masked]

    def _named(self) -> dict[str, Tensor]:
        return dict(zip(self._layout.masked, self._weights(), strict=True))

    def _part(self, name: str) -> nn.Parameter:
        """A parameter of the backbone, or the tensor that ``torch.func.functional_call`` has put in its place."""
        part: nn.Parameter = attrgetter(name)(self.backbone)
        return part
