"""Settings of the gates of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hatrack import functional
from hatrack.errors import InputError
from hatrack.functional import Compensation, Conditioning, GateFunction, Regularization
from hatrack.gating.norms import BatchNorms
from hatrack.masks.described import from_values, to_values
from hatrack.protection.conditioning import UnitConditioning, describe_unit_conditioning, unit_conditioning_from
from hatrack.support.ranges import require_types

__all__ = ["GateSettings"]


@dataclass(frozen=True)
class GateSettings:
    """Settings of the gates of a network; :class:`hatrack.HATNetwork` explains them.

    Raises:
        InputError: ``s_max`` is not positive and finite, or settings do not go together.
    """

    s_max: float = 400.0
    hard: bool = True
    compensation: Compensation = Compensation.EXACT
    conditioning: UnitConditioning = Conditioning.CUMULATIVE
    gate_function: GateFunction = GateFunction.SIGMOID
    regularizer: Regularization = Regularization.WEIGHTED_L1
    batch_norms: BatchNorms = BatchNorms.PER_TASK
    gate_inputs: bool = False

    def __post_init__(self) -> None:
        require_types(self)
        try:
            functional.annealed_scale(1.0, self.s_max)
            functional.compensated_gate(torch.zeros(1), 1.0, self.s_max, self.compensation, self.gate_function)
        except ValueError as error:
            raise InputError(str(error)) from error

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> GateSettings:
        """Return the settings that :meth:`to_json` described; other entries of the description do not matter."""
        values = {field.name: described[field.name] for field in dataclasses.fields(cls)}
        return from_values(cls, {**values, "conditioning": unit_conditioning_from(described["conditioning"])})

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {**to_values(self), "conditioning": describe_unit_conditioning(self.conditioning)}
