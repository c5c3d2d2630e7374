"""First runs of a network that is being attached, which several tests of it share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from hatrack.state.movement import ScratchRuns
from hatrack.state.tryouts import random_batches
from hatrack.support.inputs import Inputs
from hatrack.support.interface import Interface

__all__ = ["EarlierRuns", "RandomRuns"]


class RandomRuns:
    """Random batches to try a network with, and runs of a copy in evaluation mode on the first of them.

    Args:
        example: the example input.
        several: a batch of at least two samples of it.
        runs: runs of the copy, which are added to.
        interface: how the network is called, and what of its result are its features.

    Attributes:
        example: the example input.
        several: several samples of it.
        runs: runs of the copy so far.
        batches: two random batches of as many samples as ``several``.
    """

    def __init__(self, example: Inputs, several: Inputs, runs: ScratchRuns, interface: Interface) -> None:
        self.example, self.several, self.runs = example, several, runs
        generator, one = torch.Generator().manual_seed(0), interface.take(example, slice(1))
        self.batches = random_batches(several, generator, runs.run, 2, one)


@dataclass(frozen=True)
class EarlierRuns:
    """Runs of copies of a network that were made before it was attached.

    Attributes:
        copies: by mode (True for training) a copy that was run on several samples of the example, with these samples.
        random: runs on random batches; None if there were none.
    """

    copies: Mapping[bool, tuple[nn.Module, Inputs]] = field(default_factory=dict)
    random: RandomRuns | None = None
