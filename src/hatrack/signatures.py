"""Call signatures: the kinds of calls of a backbone, for each of which its units are found before it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Signature"]


@dataclass(frozen=True)
class Signature:
    """All that a network may choose its path by, but for values.

    Attributes:
        shape: of one sample.
        dtype: type of the input, by its name in torch.
        one: whether the batch has a single sample.
        training: whether the network is in training mode.
        grad: whether gradients are recorded.
        autocast: whether mixed precision is on.
        samples: how many samples show what there is to see, where two do not.
    """

    shape: tuple[int, ...]
    dtype: str
    one: bool
    training: bool
    grad: bool
    autocast: bool = False
    samples: int = 2

    @classmethod
    def of(cls, x: Tensor, training: bool) -> Signature:
        """The signature of a call at this moment."""
        autocast = torch.is_autocast_enabled(x.device.type)
        name = str(x.dtype).partition(".")[2]
        return cls(tuple(x.shape[1:]), name, len(x) == 1, training, torch.is_grad_enabled(), autocast)

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> Signature:
        """The signature that :meth:`to_json` described."""
        return cls(**{**described, "shape": tuple(described["shape"])})

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "shape": list(self.shape)}

    def example(self, device: torch.device | None) -> Tensor:
        """A batch of zeros of this signature."""
        return torch.zeros(
            1 if self.one else self.samples, *self.shape, dtype=getattr(torch, self.dtype), device=device
        )

    def __str__(self) -> str:
        batch = "1" if self.one else "N" if self.samples == 2 else f"N = {self.samples}"
        mode = "training" if self.training else "evaluation"
        size = ", ".join(map(str, (batch, *self.shape)))
        return f"inputs ({size}) of {self.dtype} in {mode} mode with{'' if self.grad else 'out'} gradients"
