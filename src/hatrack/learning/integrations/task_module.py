"""Network that is asked about one task, as a module of its inputs alone."""

from __future__ import annotations

from typing import Any

from torch import nn

from hatrack.models.base import MaskedNetwork
from hatrack.support.inputs import Inputs

__all__ = ["TaskModule"]


class TaskModule(nn.Module):
    """Network that is asked about one task, for trainers that call their model with a batch and nothing else.

    Make one for every task: programs that wrap models (mixed precision, several processes) wrap it, and leave the
    network itself as it is.

    Args:
        net: the network.
        task: name of the task, which may be added later.

    Attributes:
        net: the network.
        task: name of the task.
    """

    def __init__(self, net: MaskedNetwork[Any], task: str) -> None:
        super().__init__()
        self.net = net
        self.task = task

    def forward(self, x: Inputs) -> Any:
        """Return the outputs of the task for a batch, as :meth:`hatrack.HATNetwork.forward` does."""
        return self.net(x, self.task)
