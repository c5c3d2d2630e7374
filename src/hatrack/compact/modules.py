"""Modules of a network without its unused units, beside torch's own layers.

Statistics of norms run over all units that the layer had at first. Units that were cut out count as zeros, as the gates
of the whole network make them. Everything here is plain arithmetic, which exports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.gating.gates import change_argument
from hatrack.support.heads import apply_head
from hatrack.support.inputs import Inputs
from hatrack.support.interface import PLAIN, Interface

__all__ = [
    "AxisLinear",
    "Clear",
    "CompactAttention",
    "CompactGroupNorm",
    "CompactLayerNorm",
    "CompactNetwork",
    "CompactRMSNorm",
    "OwnHead",
    "Summary",
    "whole_head",
]


@dataclass(frozen=True)
class Summary:
    """Size of a task's network, and of the network that it was taken from.

    Attributes:
        task: the task's name.
        units: number of units that are left, by group.
        full_units: number of units of the whole network, by group.
        parameters: number of parameters, head included; of norms the task's own alone.
        full_parameters: the same of the whole network with this task's head and norms.
        flops: floating-point operations for one sample, by torch's counter: products of matrices and convolutions; 0
            where it cannot count them.
        full_flops: the same of the whole network.
        whole: reason by group why it could not be cut; its unused units are still there and count as zeros.
        deviation: largest difference of a logit from the masked network's on the samples that were compared, relative
            to the largest logit.
        nonzero: number of parameters that are not 0; much smaller than ``parameters`` with masks of weights.
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
        if self.full_flops:
            lines.append(f"operations per sample: {self.flops:,} of {self.full_flops:,}")
        return "\n".join(lines)


class CompactNetwork(nn.Module):
    """Network of one task: its part of the backbone, and its head.

    Args:
        backbone: maps a batch to features.
        head: maps features to logits, or to whatever a head of the user's own gives.
        summary: its size; None if that was not measured.
        interface: how the backbone is called, and what of its result are its features.

    Attributes:
        summary: as above.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, summary: Summary | None = None, interface: Interface = PLAIN
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.summary = summary
        self._interface = interface

    def forward(self, x: Inputs) -> Any:
        """Compute logits, or the outputs of a head of the user's own, of a batch as the whole network takes it."""
        return self.head(self._interface.run(self.backbone, x))


class AxisLinear(nn.Linear):
    """Linear layer that acts along another axis than the last, such as that of a map's channels.

    Args:
        linear: the layer to take the parameters of.
        axis: the axis.
    """

    def __init__(self, linear: nn.Linear, axis: int) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self._axis = axis

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, with classes along the axis."""
        return apply_head(self, features, self._axis)


class OwnHead(nn.Module):
    """Head of the user's own behind features of which some were cut out: it gets zeros in their place.

    Args:
        head: the head.
        used: features that are used, booleans ``(F,)`` by their places for the head; None for all of them.
        sources: their indices among the features that are left, int64.
        axis: axis of the features that counts them.
    """

    places: Tensor | None
    sources: Tensor | None

    def __init__(
        self, head: nn.Module, used: Tensor | None = None, sources: Tensor | None = None, axis: int = -1
    ) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("places", None if used is None else used.nonzero().flatten())
        self.register_buffer("sources", sources)
        self._width, self._axis = 0 if used is None else len(used), axis

    def forward(self, features: Tensor) -> Any:
        """Return the head's outputs."""
        if self.places is None or self.sources is None:
            return self.head(features)
        shape = list(features.shape)
        shape[self._axis] = self._width
        used = features.index_select(self._axis, self.sources)
        return self.head(features.new_zeros(shape).index_copy(self._axis, self.places, used))


def whole_head(head: nn.Module, axis: int, is_own: bool) -> nn.Module:
    """Return a head for all features.

    Args:
        head: the task's head.
        axis: axis of the features that a linear head acts along.
        is_own: whether it is the user's own.
    """
    if is_own:
        return OwnHead(head)
    assert isinstance(head, nn.Linear)
    return head if axis == -1 else AxisLinear(head, axis)


class Clear(nn.Module):
    """Gate that clears unused units of a module's argument, where they cannot be cut.

    It is attached as a forward pre-hook of the module that reads.

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
        """Return the value with zeros where it is off."""
        return value.masked_fill(self.off, 0.0)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Clear the argument: the forward pre-hook."""
        return change_argument(args, kwargs, self._argument, self._keyword, self)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Clear the result: the forward hook."""
        cleared: Tensor = self(output)
        return cleared


def _optional(values: Tensor | None) -> nn.Parameter | None:
    return None if values is None else nn.Parameter(values)


def _scaled(values: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Apply the affine part of a norm."""
    values = values if weight is None else values * weight
    return values if bias is None else values + bias


class CompactLayerNorm(nn.Module):
    """Layer norm of the entries that are left of ``count``, the others being zeros.

    Args:
        axes: number of last axes that it normalises.
        count: number of entries before the cut.
        missing: number of entries that were cut out.
        eps: added to the variance.
        weight: factor of each entry that is left, or None.
        bias: shift of each entry that is left, or None.
    """

    def __init__(
        self, axes: int, count: int, missing: int, eps: float, weight: Tensor | None, bias: Tensor | None
    ) -> None:
        super().__init__()
        self.axes, self.count, self.missing, self.eps = tuple(range(-axes, 0)), count, missing, eps
        self.weight, self.bias = _optional(weight), _optional(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch; the result has its shape."""
        mean = x.sum(self.axes, keepdim=True) / self.count
        centered = x - mean
        squares = centered.square().sum(self.axes, keepdim=True) + self.missing * mean.square()
        return _scaled(centered * torch.rsqrt(squares / self.count + self.eps), self.weight, self.bias)


class CompactRMSNorm(nn.Module):
    """RMS norm of the entries that are left of ``count``, the others being zeros.

    Args:
        axes: number of last axes that it normalises.
        count: number of entries before the cut.
        eps: added to the mean of the squares; None for the type's precision.
        weight: factor of each entry that is left, or None.
    """

    def __init__(self, axes: int, count: int, eps: float | None, weight: Tensor | None) -> None:
        super().__init__()
        self.axes, self.count, self.eps = tuple(range(-axes, 0)), count, eps
        self.weight = _optional(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch; the result has its shape."""
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        return _scaled(x * torch.rsqrt(x.square().sum(self.axes, keepdim=True) / self.count + eps), self.weight, None)


class CompactGroupNorm(nn.Module):
    """Group norm of the channels that are left of each group, the others being zeros.

    Args:
        group_of: group of every channel that is left, int64 ``(channels,)``.
        groups: number of groups.
        per_group: number of channels of each group before the cut.
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
        members = F.one_hot(group_of, groups).to(torch.float32 if weight is None else weight.dtype)
        self.register_buffer("members", members)  # (channels, groups)
        self.register_buffer("missing", per_group - members.sum(0))
        self.per_group, self.eps = per_group, eps
        self.weight, self.bias = _optional(weight), _optional(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch ``(N, channels, ...)``; the result has its shape."""
        flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
        places = flat.shape[2]
        members, missing = self.members.to(x.dtype), self.missing.to(x.dtype)  # which no weight may have told
        mean = flat.sum(2) @ members / (self.per_group * places)  # (N, groups)
        centered = flat - (mean @ members.T).unsqueeze(2)
        squares = centered.square().sum(2) @ members + missing * places * mean.square()
        scale = torch.rsqrt(squares / (self.per_group * places) + self.eps)
        weight, bias = (None if each is None else each.unsqueeze(1) for each in (self.weight, self.bias))
        return _scaled(centered * (scale @ members.T).unsqueeze(2), weight, bias).reshape(x.shape)


class CompactAttention(nn.Module):
    """Attention that reads, writes and has fewer units than ``nn.MultiheadAttention``.

    Its results are those of :class:`torch.nn.MultiheadAttention`, without dropout. Heads that were cut out add nothing
    to the result, and weigh all keys alike in the weights that come with it.

    Args:
        projections: weights of queries, keys and values that are left, ``(channels, inputs)`` each.
        shifts: their biases one after the other, or None.
        out: the layer after the heads.
        heads: number of heads before the cut.
        batch_first: whether batches come before sequences.
        left: indices of the heads that are left, int64; None for all.
        width: number of channels of a head before the cut, by which scores are scaled; None for those that are left.
        further: a key and a value to attend to besides, as ``add_bias_kv`` gives them, ``(1, 1, channels)`` each; None
            for none.
        attends_to_zero: whether a key and a value of zeros are attended to besides, as with ``add_zero_attn``.
    """

    left: Tensor
    in_proj_bias: None = None
    _qkv_same_embed_dim = False  # so that encoder layers do not take the path past this module

    def __init__(
        self,
        projections: tuple[Tensor, Tensor, Tensor],
        shifts: Tensor | None,
        out: nn.Linear,
        heads: int,
        batch_first: bool,
        *,
        left: Tensor | None = None,
        width: int | None = None,
        further: tuple[Tensor, Tensor] | None = None,
        attends_to_zero: bool = False,
    ) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Parameter(weight) for weight in projections)
        self.shifts = _optional(shifts)
        self.out, self.num_heads, self.batch_first = out, heads, batch_first
        self.register_buffer("left", torch.arange(heads) if left is None else left)
        self.further_key, self.further_value = (_optional(each) for each in further or (None, None))
        self._attends_to_zero = attends_to_zero
        self._scale = (width or len(self.queries) // len(self.left)) ** -0.5

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
        """Compute what :meth:`torch.nn.MultiheadAttention.forward` computes, for batches."""
        if not self.batch_first:
            query, key, value = (each.transpose(0, 1) for each in (query, key, value))
        weights, count = (self.queries, self.keys, self.values), len(self.left)
        rows = [len(weight) for weight in weights]
        shifts = (None, None, None) if self.shifts is None else torch.split(self.shifts, rows)
        projected = [F.linear(*each) for each in zip((query, key, value), weights, shifts, strict=True)]
        q, k, v = (_heads(each, count) for each in (projected[0], *self._with_further(*projected[1:])))
        scores = q @ k.transpose(-2, -1) * self._scale
        mask = _mask(attn_mask, key_padding_mask, scores, self.num_heads)
        if need_weights:
            scores = self._with_all_heads(scores)
        elif mask is not None and mask.shape[1] > 1:
            mask = mask.index_select(1, self.left)
        shares = F.softmax(scores if mask is None else scores + mask, dim=-1)
        own = shares.index_select(1, self.left) if need_weights and count < self.num_heads else shares
        attended = self.out((own @ v).transpose(1, 2).flatten(2))
        result = attended if self.batch_first else attended.transpose(0, 1)
        if not need_weights:
            return result, None
        return result, shares.mean(1) if average_attn_weights else shares

    def _with_further(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append what is attended to besides the inputs, ``(N, S, channels)``."""
        if self.further_key is not None and self.further_value is not None:
            keys = torch.cat([keys, self.further_key.expand(len(keys), -1, -1)], dim=1)
            values = torch.cat([values, self.further_value.expand(len(values), -1, -1)], dim=1)
        if self._attends_to_zero:
            keys, values = F.pad(keys, (0, 0, 0, 1)), F.pad(values, (0, 0, 0, 1))
        return keys, values

    def _with_all_heads(self, scores: Tensor) -> Tensor:
        """Return scores ``(N, heads, L, S)`` with zeros for heads that were cut out."""
        if len(self.left) == self.num_heads:
            return scores
        shape = (len(scores), self.num_heads, *scores.shape[2:])
        return scores.new_zeros(shape).index_copy(1, self.left, scores)


def _heads(x: Tensor, heads: int) -> Tensor:
    """Split ``(N, L, E)`` into ``(N, heads, L, E / heads)``."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _mask(mask: Tensor | None, padding: Tensor | None, scores: Tensor, heads: int) -> Tensor | None:
    """Return the numbers to add to scores ``(N, heads, L, S)``: −inf where masks of booleans are True.

    Args:
        mask: for all samples ``(L, keys)``, or for every sample and head ``(N · heads, L, keys)``.
        padding: of every sample's keys, ``(N, keys)``.
        scores: for their type, and the number S of what is attended to; what is not among the keys is never masked.
        heads: number of heads of the mask.
    """

    def numbers(each: Tensor) -> Tensor:
        if each.dtype == torch.bool:
            each = torch.zeros_like(each, dtype=scores.dtype).masked_fill(each, float("-inf"))
        return F.pad(each.to(scores.dtype), (0, scores.shape[-1] - each.shape[-1]))

    total = None
    if mask is not None:
        every = mask if mask.dim() == 3 else mask[None]
        total = numbers(every.reshape(-1, heads if mask.dim() == 3 else 1, *every.shape[1:]))
    if padding is not None:
        padded = numbers(padding)[:, None, None, :]
        total = padded if total is None else total + padded
    return total
