"""What a network holds for one task: head, norms, and what decides on its mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.calibration import Calibration

__all__ = ["TaskState", "UnitTask"]


class TaskState(nn.Module):
    """Everything that belongs to one task alone, whatever its mask is about.

    Args:
        name: the task's name.
        num_classes: outputs of its head.
        head: maps features ``(N, F)`` to logits ``(N, num_classes)``.
        norms: its batch norms, by the name of the layer they stand for.

    Attributes:
        calibration: what is kept of its training data to recognise it by; None until that is asked for.
    """

    def __init__(self, name: str, num_classes: int, head: nn.Linear, norms: dict[str, nn.Module]) -> None:
        super().__init__()
        self.name = name
        self.num_classes = num_classes
        self.consolidated = False
        self.head = head
        self._norm_names = list(norms)
        self.batch_norms = nn.ModuleList(norms.values())
        self.calibration: Calibration | None
        self.register_module("calibration", None)

    @property
    def norms(self) -> dict[str, nn.Module]:
        """The task's batch norms, by the name of the layer they stand for."""
        return dict(zip(self._norm_names, self.batch_norms, strict=True))

    def take_norms_of(self, other: TaskState) -> None:
        """Take over another task's batch norms, which this one used already."""
        self._norm_names, self.batch_norms = other._norm_names, other.batch_norms

    def prepare_for(self, saved: Mapping[str, Tensor]) -> None:
        """Take the types of what a file holds, tensors by their names in ``state_dict``, before it is loaded."""
        self._prepare_calibration(saved)
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(saved.get(name, parameter).dtype)

    def _prepare_calibration(self, saved: Mapping[str, Tensor], prefix: str = "") -> None:
        own = f"{prefix}calibration."
        found = {name.removeprefix(own): value for name, value in saved.items() if name.startswith(own)}
        self.calibration = Calibration.like(found).to(self.head.weight.device) if found else None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._prepare_calibration(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def close(self) -> None:
        """End the training: from now on nothing of the task moves."""
        self.consolidated = True
        self.train(False)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None

    def train(self, mode: bool = True) -> TaskState:
        """Training mode, which a consolidated task never enters: its norms' statistics would move."""
        super().train(mode and not self.consolidated)
        return self

    def get_extra_state(self) -> Tensor:
        """Whether the task is consolidated, as part of ``state_dict``."""
        return torch.tensor(self.consolidated)

    def set_extra_state(self, state: Any) -> None:
        """Take over whether the task is consolidated from a ``state_dict``."""
        if bool(state):
            self.close()
        else:
            self.consolidated = False
            self.requires_grad_(True)


class UnitTask(TaskState):
    """The state of a task whose mask is about units.

    Args:
        name: the task's name.
        num_classes: outputs of its head.
        embedding: its embedding to begin with, ``(U,)``.
        head: maps features ``(N, F)`` to logits ``(N, num_classes)``.
        norms: its batch norms, by the name of the layer they stand for.
    """

    mask: Tensor

    def __init__(
        self, name: str, num_classes: int, embedding: Tensor, head: nn.Linear, norms: dict[str, nn.Module]
    ) -> None:
        super().__init__(name, num_classes, head, norms)
        self.embedding = nn.Parameter(embedding)
        self.register_buffer("mask", torch.zeros(len(embedding), dtype=torch.bool, device=embedding.device))

    def freeze(self, mask: Tensor) -> None:
        """Fix the mask, booleans or numbers ``(U,)``; from now on nothing of the task moves."""
        self.mask = mask.detach().clone()
        self.close()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A soft mask holds numbers where a fresh task has booleans; copying would round them.
        mask = state_dict.get(prefix + "mask")
        if isinstance(mask, Tensor) and mask.shape == self.mask.shape:
            self.mask = self.mask.to(mask.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)
