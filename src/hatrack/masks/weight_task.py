"""State of a task with masks of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.masks.packing import bytes_for, pack, unpack
from hatrack.masks.tasks import TaskState

__all__ = ["WeightTask"]


class WeightTask(TaskState):
    """State of a task with masks of weights: values while it is trained, then one bit per weight.

    Args:
        name: the task's name.
        num_classes: outputs of its linear head; None for a head of the user's own.
        shapes: shapes of the weights with masks.
        choice: the values that each mask is learned by, of the weights' shapes; empty where the source has none.
        copies: its copies of parameters without masks.
        head: maps features to logits, or to whatever a head of the user's own gives.
        norms: its batch norms, by the name of the layer they stand for.
        unit_axis: axis of the features that a linear head acts along.

    Attributes:
        shapes: shapes of the weights with masks.
        choice: the values that each mask is learned by; empty once the masks are settled.
        copies: its copies of parameters without masks.
        packed: the bits of the masks, weight after weight, each beginning with a new byte; zeros until settled.
        settled: whether the masks are final, as a part of ``state_dict``.
        is_settled: copy of ``settled`` outside of tensors, since reading a tensor of another device takes time.
    """

    mask_names = ("packed", "settled")
    packed: Tensor
    settled: Tensor

    def __init__(
        self,
        name: str,
        num_classes: int | None,
        shapes: Sequence[torch.Size],
        choice: Sequence[Tensor],
        copies: Sequence[Tensor],
        head: nn.Module,
        norms: dict[str, nn.Module],
        unit_axis: int = -1,
    ) -> None:
        super().__init__(name, num_classes, head, norms, unit_axis)
        self.shapes = tuple(shapes)
        self.choice = nn.ParameterList(nn.Parameter(values) for values in choice)
        self.copies = nn.ParameterList(nn.Parameter(value) for value in copies)
        self.packed = torch.zeros(sum(self._bytes), dtype=torch.uint8)
        self.settled = torch.tensor(False)
        self.is_settled = False

    @property
    def _bytes(self) -> list[int]:
        return [bytes_for(shape.numel()) for shape in self.shapes]

    def mask(self, index: int) -> Tensor:
        """Return the settled mask of one weight, booleans of its shape."""
        start = sum(self._bytes[:index])
        return unpack(self.packed[start : start + self._bytes[index]], self.shapes[index])

    def settle(self, masks: Sequence[Tensor]) -> None:
        """Store the final masks of all weights, and drop the values that they were learned by."""
        self.packed.copy_(self.packed_of(masks))
        self.settled.fill_(True)
        self.is_settled = True
        self._drop_choice()

    @staticmethod
    def packed_of(masks: Sequence[Tensor]) -> Tensor:
        """Pack the masks of all weights one after the other, as in :attr:`packed`."""
        return torch.cat([pack(mask) for mask in masks] or [torch.zeros(0, dtype=torch.uint8)])

    def _drop_choice(self) -> None:
        for values in self.choice:
            values.grad = None
        self.choice = nn.ParameterList()

    def take_shapes_of(self, saved: Mapping[str, Any]) -> None:
        """Take the shapes of saved tensors, without a choice if the masks are settled."""
        super().take_shapes_of(saved)
        if "settled" not in saved:
            return
        self.is_settled = bool(saved["settled"])
        if self.is_settled:
            self._drop_choice()
        elif not self.choice:
            values = [value.detach() for name, value in saved.items() if name.startswith("choice.")]
            self.choice = nn.ParameterList(nn.Parameter(value.to(self.packed.device, copy=True)) for value in values)
