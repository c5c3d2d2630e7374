"""PMASK: hard attention on parameters."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from hatrack.errors import InputError
from hatrack.functional import Compensation
from hatrack.masks import Embedding
from hatrack.methods.masked import WeightMaskedMethod

__all__ = ["PMASK", "PMASKSettings"]


@dataclass(frozen=True)
class PMASKSettings:
    """Settings of PMASK: those of HAT, with weights in the place of units.

    Attributes:
        s_max: largest scale of the gates.
        c: weight of the regulariser, how few weights a task has to get by with.
        compensation: arithmetic of the embedding's gradient: exact, float32 (as the code of HAT's authors), or none.
    """

    s_max: float = 400.0
    c: float = 0.75
    compensation: Compensation = Compensation.EXACT

    def __post_init__(self) -> None:
        if self.s_max <= 0:
            raise InputError(f"s_max must be above 0, not {self.s_max}")


class PMASK(WeightMaskedMethod):
    """Learns an embedding per weight and task; layers compute with ``σ(s E) ⊙ W``, and used weights are held."""

    name = "pmask"
    description = "hard attention on parameters: a mask of weights per task, learned as HAT learns its mask of units"
    source = "Raskoti and Ghimire"
    settings_type = PMASKSettings
    training = MappingProxyType({"optimizer": "adam", "lr": 0.001})

    def source_of_masks(self) -> Embedding:
        """An embedding, annealed and compensated as in HAT."""
        return Embedding(self.settings.s_max, self.settings.compensation)

    def strength(self) -> float:
        """The c of HAT's Eq. 4, times the share of free weights that the task takes."""
        c: float = self.settings.c
        return c
