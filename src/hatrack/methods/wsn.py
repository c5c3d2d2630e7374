"""WSN: winning subnetworks."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType

from hatrack.masks import Scores
from hatrack.methods.masked import WeightMaskedMethod
from hatrack.methods.turning import TurningSettings

__all__ = ["WSN", "InitialScores", "WSNSettings"]


class InitialScores(enum.Enum):
    """Values that a task's scores begin with."""

    DRAWN = "drawn"
    """Scores drawn anew for every task."""

    CARRIED = "carried"
    """Scores of the task before, as they were when its mask was chosen: tasks share more weights then."""


@dataclass(frozen=True)
class WSNSettings(TurningSettings):
    """Settings of WSN.

    Attributes:
        keep: share c of each layer's weights that a task uses, above 0 and up to 1.
        scores: what they begin with: drawn anew for every task, or carried over from the task before, as in the
            authors' code.
    """

    keep: float = 0.5
    scores: InitialScores = InitialScores.DRAWN

    def __post_init__(self) -> None:
        super().__post_init__()
        Scores(self.keep)  # refuses what is no share


class WSN(WeightMaskedMethod):
    """Learns weights and a score for each; a task uses the best share of every layer, and later ones train the rest."""

    name = "wsn"
    description = "winning subnetworks: each task uses the best-scored share of the weights, and freezes them"
    source = "Kang et al., ICML 2022"
    settings_type = WSNSettings
    training = MappingProxyType({"optimizer": "adam", "lr": 0.001})
    grid = MappingProxyType({"keep": (0.03, 0.05, 0.1, 0.3, 0.5, 0.7)})

    def source_of_masks(self) -> Scores:
        """Return masks of the largest scores of each layer."""
        return Scores(self.settings.keep, carried=self.settings.scores is InitialScores.CARRIED)
