"""Layers whose weights are masked anew for every sample: ``W ⊙ H`` with ``H`` generated from the sample's embedding."""

from __future__ import annotations

import abc
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hatrack.methods.dwa.losses import MaskMagnitude, mask_activity, plasticity_loss

__all__ = ["FactoredDense", "MaskForm", "MaskGate", "Masked", "MaskedConv", "MaskedDense", "MaskedLayer", "Usage"]


class MaskForm(enum.Enum):
    """Form of a dense layer's mask in its two generated vectors, a per output and b per input."""

    TANH_OF_OUTER = "tanh-of-outer"
    """``tanh(a bᵀ)``, as the author's code has it."""

    OUTER_OF_TANH = "outer-of-tanh"
    """``tanh(a) tanh(b)ᵀ``: of rank one, so that no mask need ever be written out, which is faster by far."""


class MaskGate(enum.Enum):
    """Function that bounds the entries of masks."""

    TANH = "tanh"
    """Entries in (−1, 1), as the paper has it: a weight may change its sign."""

    SIGMOID = "sigmoid"
    """Entries in (0, 1), as the author's code has it by default."""

    def __call__(self, values: Tensor) -> Tensor:
        """Return the gate of every value."""
        return values.tanh() if self is MaskGate.TANH else values.sigmoid()


@dataclass(frozen=True)
class Usage:
    """Measure of the use of weights; see :func:`~hatrack.methods.dwa.losses.plasticity_loss`.

    Attributes:
        eta: η.
        magnitude: what an entry of a mask counts as.
        importance: of every masked weight's entries to earlier tasks, by the weight's name; empty if there were none.
    """

    eta: float = 1.0
    magnitude: MaskMagnitude = MaskMagnitude.POSITIVE
    importance: Mapping[str, Tensor] = field(default_factory=dict)


class Masked(NamedTuple):
    """Result of a masked layer for N samples.

    Attributes:
        output: ``(N, ...)``.
        activity: mean magnitude of each sample's mask, ``(N,)``.
        plasticity: plasticity loss of each sample's mask, ``(N,)``; 0 where nothing is important yet.
    """

    output: Tensor
    activity: Tensor
    plasticity: Tensor


class MaskedLayer(nn.Module, abc.ABC):
    """A layer of a network, and the generator of its masks.

    Masks are written out for so many samples at a time that they have at most ``chunk_entries`` entries, or for one
    sample if that has more; while gradients are kept, a chunk's masks are made again in the backward pass instead of
    being stored. Memory is bounded by a few tensors of that size.

    Args:
        layer: whose weight is masked; its bias is not.
        chunk_entries: most entries of the masks held at once.
        gate: bounds the entries of masks.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, chunk_entries: int, gate: MaskGate = MaskGate.TANH) -> None:
        super().__init__()
        self.layer, self.gate = layer, gate
        self.chunk_entries = chunk_entries

    @abc.abstractmethod
    def masks(self, embedding: Tensor) -> Tensor:
        """Return masks ``(N, *weight)`` of embeddings ``(N, D)``, all written out at once."""

    @abc.abstractmethod
    def _apply_masks(self, x: Tensor, masks: Tensor) -> Tensor:
        """Return the layer's output for each sample under its own mask, or under the only one."""

    def chunk(self) -> int:
        """Return the number of samples whose masks are held at once."""
        return max(1, self.chunk_entries // self.layer.weight.numel())

    def forward(self, x: Tensor, embedding: Tensor, importance: Tensor | None, usage: Usage) -> Masked:
        """Run samples through the layer.

        Args:
            x: what the layer reads, ``(N, ...)``.
            embedding: ``(N, D)``, or ``(1, D)`` for one mask that all samples share; activity and plasticity are then
                those of the one mask, ``(1,)``.
            importance: of the weight's entries to earlier tasks, of the weight's shape; None if there were none.
            usage: how the use of what is important is measured.
        """

        def of_chunk(x: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
            masks = self.masks(embedding)
            activity = mask_activity(masks)
            plasticity = torch.zeros_like(activity)
            if importance is not None:
                plasticity = plasticity_loss(masks, importance, usage.eta, usage.magnitude)
            return self._apply_masks(x, masks), activity, plasticity

        size = self.chunk()
        if len(embedding) == 1 or len(embedding) <= size:
            return Masked(*of_chunk(x, embedding))
        again = partial(checkpoint, of_chunk, use_reentrant=False, preserve_rng_state=False)  # in the backward pass
        run = again if torch.is_grad_enabled() else of_chunk
        pieces = [run(*chunk) for chunk in zip(torch.split(x, size), torch.split(embedding, size), strict=True)]
        return Masked(*(torch.cat(part) for part in zip(*pieces, strict=True)))


class MaskedConv(MaskedLayer):
    """A convolution; its generator is one dense layer with an output per entry of the weight, and the gate.

    Args:
        layer: a convolution of one group, padded with zeros if at all.
        embedding: length of an embedding, D.
        chunk_entries: see :class:`MaskedLayer`.
        gate: see :class:`MaskedLayer`.
    """

    def __init__(self, layer: nn.Conv2d, embedding: int, chunk_entries: int, gate: MaskGate = MaskGate.TANH) -> None:
        super().__init__(layer, chunk_entries, gate)
        self.generator = nn.Linear(embedding, layer.weight.numel())

    def masks(self, embedding: Tensor) -> Tensor:
        """Return masks ``(N, *weight)`` of embeddings ``(N, D)``."""
        return self.gate(self.generator(embedding)).view(len(embedding), *self.layer.weight.shape)

    def _apply_masks(self, x: Tensor, masks: Tensor) -> Tensor:
        """Run one convolution of as many groups as there are masks, each with the channels of its samples."""
        layer = self.layer
        assert isinstance(layer, nn.Conv2d)
        groups, weight = len(masks), layer.weight * masks
        grouped = x.reshape(len(x) // groups, -1, *x.shape[2:])
        y = F.conv2d(grouped, weight.flatten(0, 1), None, layer.stride, layer.padding, layer.dilation, groups)
        y = y.view(len(x), layer.out_channels, *y.shape[2:])
        return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


class MaskedDense(MaskedLayer):
    """A dense layer whose mask is the gate of ``a bᵀ``; the generator is two dense layers, for a and b.

    Args:
        layer: a dense layer.
        embedding: length of an embedding, D.
        chunk_entries: see :class:`MaskedLayer`.
        gate: see :class:`MaskedLayer`.
    """

    def __init__(self, layer: nn.Linear, embedding: int, chunk_entries: int, gate: MaskGate = MaskGate.TANH) -> None:
        super().__init__(layer, chunk_entries, gate)
        self.per_output = nn.Linear(embedding, layer.out_features)
        self.per_input = nn.Linear(embedding, layer.in_features)

    def masks(self, embedding: Tensor) -> Tensor:
        """Return masks ``(N, *weight)`` of embeddings ``(N, D)``."""
        a, b = self.per_output(embedding), self.per_input(embedding)
        return self.gate(a.unsqueeze(2) * b.unsqueeze(1))

    def _apply_masks(self, x: Tensor, masks: Tensor) -> Tensor:
        weight = self.layer.weight * masks
        y = F.linear(x, weight[0]) if len(masks) == 1 else torch.bmm(weight, x.unsqueeze(2)).squeeze(2)
        return y if self.layer.bias is None else y + self.layer.bias


class FactoredDense(MaskedDense):
    """A dense layer whose mask is ``tanh(a) tanh(b)ᵀ``: ``(W ⊙ H) x = tanh(a) ⊙ W (tanh(b) ⊙ x)``, without a mask.

    Another gate stands in the place of tanh.
    """

    def _factors(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate(self.per_output(embedding)), self.gate(self.per_input(embedding))

    def masks(self, embedding: Tensor) -> Tensor:
        """Return masks ``(N, *weight)`` of embeddings ``(N, D)``."""
        a, b = self._factors(embedding)
        return a.unsqueeze(2) * b.unsqueeze(1)

    def forward(self, x: Tensor, embedding: Tensor, importance: Tensor | None, usage: Usage) -> Masked:
        """Run samples through the layer; see :meth:`MaskedLayer.forward`."""
        a, b = self._factors(embedding)
        y = a * F.linear(b * x, self.layer.weight)
        y = y if self.layer.bias is None else y + self.layer.bias
        activity = a.abs().mean(dim=1) * b.abs().mean(dim=1)
        if importance is None:
            return Masked(y, activity, torch.zeros_like(activity))
        # An entry of the outer product is above 0 where both factors are, or neither.
        pairs = [(a.relu(), b.relu()), ((-a).relu(), (-b).relu())]
        if usage.magnitude is MaskMagnitude.ABSOLUTE:
            pairs = [(a.abs(), b.abs())]
        plasticity = torch.stack([(u @ importance * v).sum(dim=1) for u, v in pairs]).sum(dim=0)
        return Masked(y, activity, usage.eta * plasticity)
