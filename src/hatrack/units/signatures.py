"""Call signatures: kinds of calls of a backbone, each of which is analysed before it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["CallKey", "Signature", "key_of"]


@dataclass(frozen=True)
class Signature:
    """Signature of a call: all facts that a network may choose its path by, except values and the number of samples.

    Attributes:
        shape: shape of one sample.
        dtype: type of the input, by its name in torch.
        single: whether the batch has one sample alone.
        training: whether the network is in training mode.
        grad: whether gradients are recorded.
        autocast: type of mixed precision, by its name in torch; empty where it is off.
        inference: whether torch is in inference mode.
        contiguous: whether the input lies in memory in the order of its axes.
        differentiable: whether gradients of the input are asked for.
        samples: number of samples of :meth:`example`; more than 2 where a batch of two takes another path.
    """

    shape: tuple[int, ...]
    dtype: str
    single: bool
    training: bool
    grad: bool
    autocast: str = ""
    inference: bool = False
    contiguous: bool = True
    differentiable: bool = False
    samples: int = 2

    @classmethod
    def of(cls, x: Tensor, training: bool, grad: bool | None = None) -> Signature:
        """Return the signature of a call at this moment.

        Args:
            x: the input, ``(N, ...)``.
            training: whether the network is in training mode.
            grad: whether gradients are recorded; None for torch's present mode.
        """
        device = x.device.type
        autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else ""
        return cls(
            tuple(x.shape[1:]),
            str(x.dtype).partition(".")[2],
            len(x) == 1,
            training,
            torch.is_grad_enabled() if grad is None else grad,
            autocast.partition(".")[2],
            torch.is_inference_mode_enabled(),
            x.is_contiguous(),
            x.requires_grad,
        )

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> Signature:
        """Make the signature that :meth:`to_json` described."""
        return cls(**{**described, "shape": tuple(described["shape"])})

    def to_json(self) -> dict[str, Any]:
        """Convert the signature to JSON values."""
        return {**asdict(self), "shape": list(self.shape)}

    def example(self, device: torch.device | None) -> Tensor:
        """Make a batch of zeros of this signature."""
        size = (1 if self.single else self.samples, *self.shape)
        zeros = torch.zeros(size if self.contiguous else size[::-1], dtype=getattr(torch, self.dtype), device=device)
        return zeros if self.contiguous else zeros.permute(*reversed(range(len(size))))

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return a context with the mixed precision of this signature, or with none."""
        dtype = getattr(torch, self.autocast) if self.autocast else None
        return torch.autocast(device.type, dtype=dtype, enabled=bool(self.autocast))

    def __str__(self) -> str:
        batch = "1" if self.single else "N" if self.samples == 2 else f"N = {self.samples}"
        mode = "training" if self.training else "evaluation"
        size = ", ".join(map(str, (batch, *self.shape)))
        said = f"inputs ({size}) of {self.dtype} in {mode} mode with{'' if self.grad else 'out'} gradients"
        unusual = {
            f"under autocast to {self.autocast}": bool(self.autocast),
            "in inference mode": self.inference,
            "not contiguous in memory": not self.contiguous,
            "with gradients of the inputs": self.differentiable,
        }
        return ", ".join([said, *(words for words, holds in unusual.items() if holds)])


CallKey = tuple[torch.Size, torch.dtype, bool, bool, bool, bool, bool, torch.dtype | None]
"""Key of a signature and the number of samples, of torch's own values: quick to make and to compare."""


def key_of(x: Tensor, training: bool) -> CallKey:
    """Return the key of a call at this moment.

    Args:
        x: the input, ``(N, ...)``.
        training: whether the network is in training mode.
    """
    device = x.device.type
    return (
        x.shape,
        x.dtype,
        training,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        x.is_contiguous(),
        x.requires_grad,
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
    )
