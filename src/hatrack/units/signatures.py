"""Call signatures: kinds of calls of a backbone, each of which is analysed before it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hatrack.support.inputs import (
    Inputs,
    Kind,
    TensorKind,
    device_of,
    has_shape,
    kind_from_json,
    kind_of,
    kind_to_json,
)
from hatrack.support.interface import PLAIN, Interface

__all__ = ["CallKey", "Signature", "key_of"]


@dataclass(frozen=True)
class Signature:
    """Signature of a call: all facts that a network may choose its path by, except values and the number of samples.

    Attributes:
        inputs: kind of the inputs.
        single: whether the batch has one sample alone.
        training: whether the network is in training mode.
        grad: whether gradients are recorded.
        autocast: type of mixed precision, by its name in torch; empty where it is off.
        inference: whether torch is in inference mode.
        samples: number of samples of an example; more than 2 where a batch of two takes another path.
    """

    inputs: Kind
    single: bool
    training: bool
    grad: bool
    autocast: str = ""
    inference: bool = False
    samples: int = 2

    @classmethod
    def of(cls, x: Inputs, training: bool, grad: bool | None = None, interface: Interface = PLAIN) -> Signature:
        """Return the signature of a call at this moment.

        Args:
            x: the input.
            training: whether the network is in training mode.
            grad: whether gradients are recorded; None for torch's present mode.
            interface: interface of the backbone.
        """
        device = device_of(x).type
        autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else ""
        return cls(
            kind_of(x, interface.batch_axis),
            interface.samples(x) == 1,
            training,
            torch.is_grad_enabled() if grad is None else grad,
            autocast.partition(".")[2],
            torch.is_inference_mode_enabled(),
        )

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> Signature:
        """Make the signature that :meth:`to_json` described."""
        rest = dict(described)
        if "shape" in rest:
            names = [name for name in ("shape", "dtype", "contiguous", "differentiable") if name in rest]
            of_tensor = {name: rest.pop(name) for name in names}
            return cls(TensorKind(**{**of_tensor, "shape": tuple(of_tensor["shape"])}), **rest)
        return cls(kind_from_json(rest.pop("inputs")), **rest)

    def to_json(self) -> dict[str, Any]:
        """Convert the signature to JSON values; those of a single tensor stand beside the others."""
        rest = {name: value for name, value in asdict(self).items() if name != "inputs"}
        if isinstance(self.inputs, TensorKind):
            of_tensor = {name: value for name, value in asdict(self.inputs).items() if name != "batched"}
            return {**of_tensor, "shape": list(self.inputs.shape), **rest}
        return {"inputs": kind_to_json(self.inputs), **rest}

    @property
    def size(self) -> int:
        """Number of samples of an example."""
        return 1 if self.single else self.samples

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return a context with the mixed precision of this signature, or with none."""
        dtype = getattr(torch, self.autocast) if self.autocast else None
        return torch.autocast(device.type, dtype=dtype, enabled=bool(self.autocast))

    def __str__(self) -> str:
        batch = "1" if self.single else "N" if self.samples == 2 else f"N = {self.samples}"
        mode = "training" if self.training else "evaluation"
        kind = self.inputs
        alone = isinstance(kind, TensorKind)
        dtype = f" of {kind.dtype}" if isinstance(kind, TensorKind) else ""
        said = f"inputs {has_shape(kind, batch)}{dtype} in {mode} mode with{'' if self.grad else 'out'} gradients"
        unusual = {
            f"under autocast to {self.autocast}": bool(self.autocast),
            "in inference mode": self.inference,
            "not contiguous in memory": alone and not getattr(kind, "contiguous", True),
            "with gradients of the inputs": alone and getattr(kind, "differentiable", False),
        }
        return ", ".join([said, *(words for words, holds in unusual.items() if holds)])


CallKey = tuple[Any, ...]
"""Key of a signature and the number of samples, of torch's own values: quick to make and to compare."""


def key_of(x: Inputs, training: bool, interface: Interface = PLAIN) -> CallKey:
    """Return the key of a call at this moment.

    Args:
        x: the input.
        training: whether the network is in training mode.
        interface: interface of the backbone.
    """
    device = device_of(x).type
    modes = (
        training,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
    )
    if isinstance(x, Tensor):
        return x.shape, x.dtype, x.is_contiguous(), x.requires_grad, *modes
    return kind_of(x, interface.batch_axis), interface.samples(x), *modes
