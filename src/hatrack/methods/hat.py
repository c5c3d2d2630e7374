"""Hard attention to the task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hatrack.errors import InputError
from hatrack.functional import Compensation, Conditioning
from hatrack.loading import load_as
from hatrack.methods.base import Setup
from hatrack.methods.masked import MaskedMethod
from hatrack.network import HATNetwork
from hatrack.norm import BatchNorms

__all__ = ["HAT", "HATSettings"]


@dataclass(frozen=True)
class HATSettings:
    """Settings of HAT, with the paper's values.

    Attributes:
        s_max: largest scale of the gates; 25 to 800 work.
        c: weight of the regulariser, how compact a task has to be; 0.1 to 2.5 work.
        hard: masks of exactly 0 and 1 once a task is learned; false keeps the sigmoid's values, which forgets a little.
        compensation: arithmetic of the embedding's gradient: exact, float32 (as the authors' code), or none.
        gate_inputs: learn which input features a task uses, too.
        conditioning: which weights earlier tasks hold: cumulative (the paper) or per-task, which frees more.
        batch_norms: per-task (each task has its own), or shared (the first task's, frozen).
    """

    s_max: float = 400.0
    c: float = 0.75
    hard: bool = True
    compensation: Compensation = Compensation.EXACT
    conditioning: Conditioning = Conditioning.CUMULATIVE
    batch_norms: BatchNorms = BatchNorms.PER_TASK
    gate_inputs: bool = False

    def __post_init__(self) -> None:
        if self.s_max <= 0:
            raise InputError(f"s_max must be above 0, not {self.s_max}")


class HAT(MaskedMethod):
    """Trains a :class:`~hatrack.HATNetwork`."""

    name = "hat"
    description = "hard attention to the task: a mask of units per task, nothing forgotten"
    source = "Serrà et al., ICML 2018"
    settings_type = HATSettings
    network: HATNetwork

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.network = HATNetwork(
            setup.build_backbone(),
            torch.zeros(1, *setup.input_shape),
            s_max=settings.s_max,
            hard=settings.hard,
            compensation=settings.compensation,
            conditioning=settings.conditioning,
            batch_norms=settings.batch_norms,
            gate_inputs=settings.gate_inputs,
        ).to(setup.device)

    def strength(self) -> float:
        """The c of Eq. 4, times the share of free units that the task takes."""
        c: float = self.settings.c
        return c

    def load(self, path: Path) -> tuple[str, ...]:
        """Read the network."""
        self.network = load_as(HATNetwork, path, self.network.detach()).to(self.setup.device)
        return self.network.task_names
