"""A plain network with a head per task, and what methods on top of it have in common."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.checkpoint import (
    Checkpoint,
    check_backbone,
    description_of_modules,
    part_of,
    read_checkpoint,
    write_checkpoint,
)
from hatrack.errors import CheckpointError
from hatrack.heads import linear_head
from hatrack.methods.base import Batch, Loss, Method, Setup
from hatrack.names import unknown_name
from hatrack.streams import Task, seeded_generator

__all__ = ["MultiHeadMethod", "MultiHeadNetwork"]

FORMAT = "hatrack.MultiHeadNetwork"
EXTRA = "method."
"""What the names of a method's own tensors begin with in a file; those of the network begin otherwise."""


class MultiHeadNetwork(nn.Module):
    """A backbone shared by all tasks without protection, and a linear head per task.

    Args:
        backbone: maps a batch to features ``(N, F)``.
        features: F.
    """

    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.features = features
        self.heads = nn.ModuleList()
        self.task_names: list[str] = []

    def add_task(self, name: str, num_classes: int, generator: torch.Generator) -> None:
        """Open a head, on the device of the backbone."""
        device = next((p.device for p in self.backbone.parameters()), torch.device("cpu"))
        self.heads.append(linear_head(self.features, num_classes, generator).to(device))
        self.task_names.append(name)

    def head(self, task: str) -> nn.Linear:
        """The head of a task.

        Raises:
            InputError: there is no such task.
        """
        if task not in self.task_names:
            raise unknown_name("task", task, self.task_names)
        head = self.heads[self.task_names.index(task)]
        assert isinstance(head, nn.Linear)
        return head

    def num_classes(self, task: str) -> int:
        """Number of classes of a task."""
        return self.head(task).out_features

    def forward(self, x: Tensor, tasks: Sequence[str], task_of: Tensor | None = None) -> Tensor:
        """Logits ``(N, most classes)`` of samples of one task, or of several: −inf behind a task's last class."""
        return self.logits(self.backbone(x), tasks, task_of)

    def logits(self, features: Tensor, tasks: Sequence[str], task_of: Tensor | None = None) -> Tensor:
        """Logits of features ``(N, F)``; see :meth:`forward`."""
        if len(tasks) == 1:
            result: Tensor = self.head(tasks[0])(features)
            return result
        assert task_of is not None
        each = [self.head(task)(features) for task in tasks]
        widest = max(logits.shape[1] for logits in each)
        padded = [F.pad(logits, (0, widest - logits.shape[1]), value=float("-inf")) for logits in each]
        return torch.stack(padded)[task_of, torch.arange(len(features), device=features.device)]

    def frozen_copy(self) -> MultiHeadNetwork:
        """The network as it is now, in evaluation mode, and never to be trained."""
        frozen = copy.deepcopy(self)
        frozen.zero_grad()
        return frozen.eval().requires_grad_(False)


class MultiHeadMethod(Method):
    """Trains a :class:`MultiHeadNetwork` with the cross-entropy; the base of everything that adds to that."""

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.network = self._fresh_network()

    def _fresh_network(self) -> MultiHeadNetwork:
        backbone = self.setup.build_backbone()
        with torch.no_grad():
            training = backbone.training
            features = backbone.eval()(torch.zeros(1, *self.setup.input_shape)).shape[1]
            backbone.train(training)
        return MultiHeadNetwork(backbone, features).to(self.setup.device)

    def _add_head(self, name: str, num_classes: int) -> None:
        self.network.add_task(name, num_classes, seeded_generator(self.setup.seed, "head", name))

    def begin_task(self, task: Task) -> None:
        """Open the task's head."""
        self._add_head(task.name, task.num_classes)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the right head's logits."""
        logits = self.network(batch.x, batch.tasks, batch.task_of)
        return Loss(F.cross_entropy(logits, batch.y), logits)

    def end_task(self, task: Task) -> None:
        """Nothing to do."""

    def predict(self, x: Tensor, task: str) -> Tensor:
        """Logits of the task's head."""
        logits: Tensor = self.network(x, [task])
        return logits

    def trained_modules(self) -> Sequence[nn.Module]:
        """The whole network."""
        return [self.network]

    def trained_parameters(self) -> list[nn.Parameter]:
        """All parameters; heads of other tasks get no gradient."""
        return list(self.network.parameters())

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """The backbone's parameters by their names there: what later tasks would overwrite."""
        return dict(self.network.backbone.named_parameters())

    def _extra_state(self) -> Mapping[str, Tensor]:
        """What further tasks need beside the network, by names of the method's choice."""
        return {}

    def _load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`_extra_state` gave, on the method's device; the network is loaded already."""

    def save(self, path: Path) -> None:
        """Write backbone, heads, and what else the method needs."""
        network = self.network
        tasks = [[name, network.num_classes(name)] for name in network.task_names]
        description = {
            "format": FORMAT,
            "method": self.name,
            "modules": description_of_modules(network.backbone),
            "tasks": tasks,
        }
        extra = {EXTRA + name: value for name, value in self._extra_state().items()}
        write_checkpoint(path, Checkpoint({**network.state_dict(), **extra}, description))

    def load(self, path: Path) -> tuple[str, ...]:
        """Read backbone, heads, and what else the method needs.

        Raises:
            CheckpointError: the file is damaged, or of another method or backbone.
        """
        checkpoint = read_checkpoint(path, FORMAT)
        if checkpoint.description["method"] != self.name:
            raise CheckpointError(
                f"{path} was saved by the method {checkpoint.description['method']}, not by {self.name}"
            )
        check_backbone(path, checkpoint.description["modules"], self.network.backbone)
        for name, num_classes in checkpoint.description["tasks"]:
            self._add_head(name, num_classes)
        extra, device = part_of(checkpoint.tensors, EXTRA), self.setup.device
        self.network.load_state_dict({k: v for k, v in checkpoint.tensors.items() if not k.startswith(EXTRA)})
        self._load_extra_state({name: value.to(device) for name, value in extra.items()})
        return tuple(self.network.task_names)
