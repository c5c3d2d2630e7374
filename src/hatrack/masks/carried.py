"""Values that masks are learned by, carried from a task to the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["CarriedValues"]


class CarriedValues(nn.Module):
    """Values that the masks of the task learned last were chosen by, as buffers; the next task's begin with them.

    They tell of every task so far, and are dropped when one of them is unlearned.

    Args:
        weights: the weights by name; nothing is carried before the first call of :meth:`keep`.

    Attributes:
        known: whether there are values, a boolean tensor.
    """

    known: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._count = len(weights)
        self.drop(list(weights.values()))

    @property
    def values(self) -> list[Tensor] | None:
        """Values of every weight, of its shape, in the order of the weights; None where there are none."""
        if not self.known:
            return None
        return [self.get_buffer(f"values_{index}") for index in range(self._count)]

    def keep(self, values: Sequence[Tensor]) -> None:
        """Keep a task's values, one tensor per weight."""
        self._register(_buffers([value.detach().clone() for value in values], known=True))

    def drop(self, weights: Sequence[Tensor]) -> None:
        """Drop all values, and fit what is kept from now on to the shapes of the weights."""
        self._register(self.dropped(weights))

    @staticmethod
    def dropped(weights: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the buffers, by name, that :meth:`drop` puts into their places."""
        return _buffers([torch.zeros_like(weight.detach()) for weight in weights], known=False)

    def _register(self, buffers: Mapping[str, Tensor]) -> None:
        # New tensors, so that whoever takes a change back only has to put the old ones into their places.
        for name, value in buffers.items():
            self.register_buffer(name, value)


def _buffers(values: Sequence[Tensor], known: bool) -> dict[str, Tensor]:
    device = values[0].device if values else torch.device("cpu")
    named = {f"values_{index}": value for index, value in enumerate(values)}
    return {**named, "known": torch.tensor(known, device=device)}
