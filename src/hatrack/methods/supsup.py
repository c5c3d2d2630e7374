"""SupSup: supermasks in superposition, for tasks that are known."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from hatrack.masks import NoWeights, Scores, lay_out, signed_constant
from hatrack.methods.masked import WeightMaskedMethod
from hatrack.methods.turning import TurningSettings

__all__ = ["SupSup", "SupSupSettings"]


@dataclass(frozen=True)
class SupSupSettings(TurningSettings):
    """Settings of SupSup.

    Attributes:
        keep: share of each layer's weights that a task uses, above 0 and up to 1; none for those with a score of 0 or
            more, as in the authors' code.
    """

    keep: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        Scores(self.keep)  # refuses what is no share


class SupSup(WeightMaskedMethod):
    """Chooses among random weights that are never trained: signs as initialised, one size per layer.

    What has no mask (biases, norms) each task trains for itself; the paper's networks have none of it to be trained.
    """

    name = "supsup"
    description = "supermasks in superposition: each task chooses among random weights, which are never trained"
    source = "Wortsman et al., NeurIPS 2020"
    settings_type = SupSupSettings
    training = MappingProxyType({"optimizer": "adam", "lr": 0.001})

    def source_of_masks(self) -> Scores:
        """Return scores of each weight."""
        return Scores(self.settings.keep)

    def conditioning(self) -> NoWeights:
        """Return that no weight is ever changed."""
        return NoWeights()

    @torch.no_grad()
    def build_backbone(self) -> nn.Module:
        """Return the backbone, its weights turned into signed constants."""
        backbone = super().build_backbone()
        for name in lay_out(backbone).masked:
            weight = backbone.get_parameter(name)
            weight.copy_(signed_constant(weight))
        return backbone
