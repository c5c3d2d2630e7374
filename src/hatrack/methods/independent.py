"""A network per task: nothing can be forgotten, and nothing is shared."""

from __future__ import annotations

from torch import Tensor

from hatrack.methods.multi_head import MultiHeadNetwork
from hatrack.methods.stored import NetworkPerTask

__all__ = ["Independent"]


class Independent(NetworkPerTask[MultiHeadNetwork]):
    """Trains a network of its own for every task, each from the same initial weights."""

    name = "independent"
    description = "a network per task: nothing forgotten, nothing shared, and as many networks as tasks"
    source = "upper bound without transfer"
    capturable = True
    file_format = "hatrack.IndependentNetworks"

    def new_network(self, name: str, num_classes: int) -> MultiHeadNetwork:
        """Make a network of one head."""
        network = MultiHeadNetwork.for_setup(self.setup)
        network.add_task(name, num_classes, self.setup.generator("head", name))
        return network

    def logits(self, x: Tensor, task: str) -> Tensor:
        """Return the logits of the task's network."""
        return self.networks[task](x, task)
