"""What a network without its unused units needs beside torch's own layers.

Statistics of a normalisation run over all units that the layer had at first. Those that were cut out count as zeros:
that is what the gates of the whole network make of them. Everything here is plain arithmetic, which exports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Clear",
    "CompactAttention",
    "CompactGroupNorm",
    "CompactLayerNorm",
    "CompactNetwork",
    "CompactRMSNorm",
    "Summary",
]


@dataclass(frozen=True)
class Summary:
    """How large a task's network is, and the network that it was taken from.

    Attributes:
        task: the task's name.
        units: by group how many units it has.
        full_units: by group how many there were.
        parameters: number of parameters, head included; of norms the task's own alone.
        full_parameters: the same of the whole network with this task's head and norms.
        flops: floating-point operations for one sample, by torch's counter: products of matrices and convolutions.
        full_flops: the same of the whole network.
        whole: by group why it could not be cut; its unused units are still there and count as zeros.
        deviation: largest difference of a logit from the masked network's on the samples that were compared, relative
            to the largest logit.
        nonzero: number of parameters that are not 0: far fewer than there are where masks are about weights.
        bitwise: whether all logits on these samples were the masked network's to the bit.
    """

    task: str
    units: Mapping[str, int]
    full_units: Mapping[str, int]
    parameters: int
    full_parameters: int
    flops: int
    full_flops: int
    whole: Mapping[str, str]
    deviation: float
    nonzero: int
    bitwise: bool

    def __str__(self) -> str:
        lines = [
            f"{name or 'backbone'}: {count} of {self.full_units[name]} units" for name, count in self.units.items()
        ]
        lines += [f"{name or 'backbone'} stays whole: {reason}" for name, reason in self.whole.items()]
        zeros = f", {self.nonzero:,} of them not 0" if self.nonzero < self.parameters else ""
        lines.append(f"parameters: {self.parameters:,} of {self.full_parameters:,}{zeros}")
        lines.append(f"operations per sample: {self.flops:,} of {self.full_flops:,}")
        return "\n".join(lines)


class CompactNetwork(nn.Module):
    """A task's network: its part of the backbone, and its head.

    Args:
        backbone: maps a batch to features ``(N, F)``.
        head: maps features to logits ``(N, classes)``.
        summary: how large it is.

    Attributes:
        summary: as above.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear, summary: Summary | None = None) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.summary = summary

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, classes)`` of a batch."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


class Clear(nn.Module):
    """Clears what is not used along an axis of a module's argument: all that is left of a gate where none can be cut.

    It is a forward pre-hook of the module that reads.

    Args:
        off: booleans ``(width,)``, True where to clear.
        axis: the axis, counted from the end.
        argument: position of the argument.
        keyword: its name.
    """

    off: Tensor

    def __init__(self, off: Tensor, axis: int, argument: int, keyword: str) -> None:
        super().__init__()
        self.register_buffer("off", off.view(-1, *(1,) * (-axis - 1)))
        self._argument, self._keyword = argument, keyword

    def forward(self, value: Tensor) -> Tensor:
        """The value, with zeros for what is off."""
        return value.masked_fill(self.off, 0.0)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The pre-hook."""
        if self._argument < len(args):
            cleared = self(args[self._argument])
            return (*args[: self._argument], cleared, *args[self._argument + 1 :]), kwargs
        return args, {**kwargs, self._keyword: self(kwargs[self._keyword])}


class CompactLayerNorm(nn.Module):
    """Layer norm of what is left of ``count`` entries, the others being zeros.

    Args:
        axes: how many of the last axes it normalises.
        count: how many entries there were.
        missing: how many of them were cut out.
        eps: added to the variance.
        weight: factor of each entry that is left, or None.
        bias: shift of each entry that is left, or None.
    """

    def __init__(
        self, axes: int, count: int, missing: int, eps: float, weight: Tensor | None, bias: Tensor | None
    ) -> None:
        super().__init__()
        self.axes, self.count, self.missing, self.eps = tuple(range(-axes, 0)), count, missing, eps
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised, of the shape of ``x``."""
        mean = x.sum(self.axes, keepdim=True) / self.count
        centered = x - mean
        squares = centered.square().sum(self.axes, keepdim=True) + self.missing * mean.square()
        result = centered * torch.rsqrt(squares / self.count + self.eps)
        result = result if self.weight is None else result * self.weight
        return result if self.bias is None else result + self.bias


class CompactRMSNorm(nn.Module):
    """RMS norm of what is left of ``count`` entries, the others being zeros.

    Args:
        axes: how many of the last axes it normalises.
        count: how many entries there were.
        eps: added to the mean of the squares; None for the type's precision.
        weight: factor of each entry that is left, or None.
    """

    def __init__(self, axes: int, count: int, eps: float | None, weight: Tensor | None) -> None:
        super().__init__()
        self.axes, self.count, self.eps = tuple(range(-axes, 0)), count, eps
        self.weight = None if weight is None else nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised, of the shape of ``x``."""
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        result = x * torch.rsqrt(x.square().sum(self.axes, keepdim=True) / self.count + eps)
        return result if self.weight is None else result * self.weight


class CompactGroupNorm(nn.Module):
    """Group norm of the channels that are left of each group, the others being zeros.

    Args:
        group_of: for every channel that is left its group, int64 ``(channels,)``.
        groups: number of groups.
        per_group: how many channels each group had.
        eps: added to the variance.
        weight: factor of each channel that is left, or None.
        bias: shift of each channel that is left, or None.
    """

    group_of: Tensor
    members: Tensor
    missing: Tensor

    def __init__(
        self, group_of: Tensor, groups: int, per_group: int, eps: float, weight: Tensor | None, bias: Tensor | None
    ) -> None:
        super().__init__()
        dtype = torch.get_default_dtype() if weight is None else weight.dtype
        members = F.one_hot(group_of, groups).to(dtype)
        self.register_buffer("members", members)  # (channels, groups)
        self.register_buffer("missing", per_group - members.sum(0))
        self.per_group, self.eps = per_group, eps
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised, of the shape of ``x``, ``(N, channels, ...)``."""
        flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
        places = flat.shape[2]
        mean = flat.sum(2) @ self.members / (self.per_group * places)  # (N, groups)
        centered = flat - (mean @ self.members.T).unsqueeze(2)
        squares = centered.square().sum(2) @ self.members + self.missing * places * mean.square()
        scale = torch.rsqrt(squares / (self.per_group * places) + self.eps)
        result = centered * (scale @ self.members.T).unsqueeze(2)
        result = result if self.weight is None else result * self.weight.unsqueeze(1)
        return (result if self.bias is None else result + self.bias.unsqueeze(1)).reshape(x.shape)


class CompactAttention(nn.Module):
    """Attention with as many heads as ever, which reads and writes fewer units than ``nn.MultiheadAttention``.

    It answers what :class:`torch.nn.MultiheadAttention` answers, without dropout.

    Args:
        projections: weights of queries, keys and values, ``(E, inputs)`` each.
        shifts: their biases, ``(3 E,)``, or None.
        out: the layer after the heads.
        heads: number of heads.
        batch_first: whether batches come before sequences.
    """

    in_proj_bias: None = None
    _qkv_same_embed_dim = False  # so that encoder layers do not take the path past this module

    def __init__(
        self,
        projections: tuple[Tensor, Tensor, Tensor],
        shifts: Tensor | None,
        out: nn.Linear,
        heads: int,
        batch_first: bool,
    ) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Parameter(weight) for weight in projections)
        self.shifts = None if shifts is None else nn.Parameter(shifts)
        self.out, self.num_heads, self.batch_first = out, heads, batch_first

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`torch.nn.MultiheadAttention.forward`, for batches."""
        if not self.batch_first:
            query, key, value = (each.transpose(0, 1) for each in (query, key, value))
        shifts = (None, None, None) if self.shifts is None else self.shifts.chunk(3)
        weights = (self.queries, self.keys, self.values)
        q, k, v = (
            _heads(F.linear(each, weight, shift), self.num_heads)
            for each, weight, shift in zip((query, key, value), weights, shifts, strict=True)
        )
        mask = _mask(attn_mask, key_padding_mask, q)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        shares = F.softmax(scores if mask is None else scores + mask, dim=-1)
        attended = self.out((shares @ v).transpose(1, 2).flatten(2))
        result = attended if self.batch_first else attended.transpose(0, 1)
        if not need_weights:
            return result, None
        return result, shares.mean(1) if average_attn_weights else shares


def _heads(x: Tensor, heads: int) -> Tensor:
    """``(N, L, E)`` as ``(N, heads, L, E / heads)``."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _mask(mask: Tensor | None, padding: Tensor | None, like: Tensor) -> Tensor | None:
    """What is added to scores ``(N, heads, L, S)``; booleans say what is left out."""

    def numbers(each: Tensor) -> Tensor:
        if each.dtype != torch.bool:
            return each.to(like.dtype)
        return torch.zeros_like(each, dtype=like.dtype).masked_fill(each, float("-inf"))

    total = None
    if mask is not None:
        total = numbers(mask if mask.dim() == 2 else mask.view(like.shape[0], like.shape[1], *mask.shape[1:]))
    if padding is not None:
        padded = numbers(padding)[:, None, None, :]
        total = padded if total is None else total + padded
    return total
