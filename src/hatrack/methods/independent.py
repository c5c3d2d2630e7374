"""A network per task: nothing can be forgotten, and nothing is shared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hatrack.checkpoint import (
    Checkpoint,
    check_backbone,
    description_of_modules,
    part_of,
    read_checkpoint,
    write_checkpoint,
)
from hatrack.methods.base import Batch, Loss, Setup
from hatrack.methods.multi_head import MultiHeadMethod, MultiHeadNetwork
from hatrack.names import unknown_name
from hatrack.streams import Task

__all__ = ["Independent"]

FORMAT = "hatrack.IndependentNetworks"


class Independent(MultiHeadMethod):
    """Trains a network of its own for every task, each from the same initial weights."""

    name = "independent"
    description = "a network per task: nothing forgotten, nothing shared, and as many networks as tasks"
    source = "upper bound without transfer"

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self._networks: dict[str, MultiHeadNetwork] = {}

    def begin_task(self, task: Task) -> None:
        """Make the task's network."""
        self._open(task.name, task.num_classes)

    def _open(self, name: str, num_classes: int) -> None:
        for earlier in self._networks.values():
            earlier.eval().requires_grad_(False)
        self.network = self._fresh_network()
        self._add_head(name, num_classes)
        self._networks[name] = self.network

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the task's network."""
        assert batch.tasks == (self.network.task_names[0],)
        return super().loss(batch)

    def predict(self, x: Tensor, task: str) -> Tensor:
        """Logits of the task's network."""
        if task not in self._networks:
            raise unknown_name("task", task, tuple(self._networks))
        logits: Tensor = self._networks[task](x, [task])
        return logits

    def trained_modules(self) -> Sequence[nn.Module]:
        """The last task's network."""
        return [self.network]

    def save(self, path: Path) -> None:
        """Write all networks."""
        tensors = {
            f"{index}.{name}": value
            for index, network in enumerate(self._networks.values())
            for name, value in network.state_dict().items()
        }
        description = {
            "format": FORMAT,
            "modules": description_of_modules(self.network.backbone),
            "tasks": [[name, network.num_classes(name)] for name, network in self._networks.items()],
        }
        write_checkpoint(path, Checkpoint(tensors, description))

    def load(self, path: Path) -> tuple[str, ...]:
        """Read all networks."""
        checkpoint = read_checkpoint(path, FORMAT)
        check_backbone(path, checkpoint.description["modules"], self.network.backbone)
        for index, (name, num_classes) in enumerate(checkpoint.description["tasks"]):
            self._open(name, num_classes)
            own = part_of(checkpoint.tensors, f"{index}.")
            self.network.load_state_dict(own)
        return tuple(self._networks)
