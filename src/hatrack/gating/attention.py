"""Fused attention under a task: its heads are gated by weights, since no hook reaches inside its kernel.

Under a hard mask a task computes with weights in which all entries of heads that are off are cleared: their results are
0, whatever the weights are, and nobody reads them. Under a soft mask the columns of the output projection that read a
head are scaled, which is the same as to gate the head's result. Where a layer has a single head, its channels are
units; those of the scores are scaled in the projection of the queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.errors import UnsupportedError
from hatrack.gating.gates import ActiveTask
from hatrack.masks.packing import move_along
from hatrack.support.compilers import keep_compilers_out

__all__ = ["HeadSwitch", "Weights", "cleared_weights"]

_Result = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class _Arguments:
    """Arguments of :meth:`torch.nn.MultiheadAttention.forward`."""

    query: Tensor
    key: Tensor
    value: Tensor
    key_padding_mask: Tensor | None = None
    need_weights: bool = True
    attn_mask: Tensor | None = None
    average_attn_weights: bool = True
    is_causal: bool = False

    def of_samples(self, rows: Tensor) -> _Arguments:
        """Return the arguments of some samples, int64; all inputs count samples along their first axis."""
        mask, padding = self.attn_mask, self.key_padding_mask
        if mask is not None and mask.dim() == 3:  # one for every sample and head
            mask = mask.view(len(self.query), -1, *mask.shape[1:])[rows].flatten(0, 1)
        padding = None if padding is None else padding[rows]
        query, key, value = self.query[rows], self.key[rows], self.value[rows]
        return replace(self, query=query, key=key, value=value, key_padding_mask=padding, attn_mask=mask)


class HeadSwitch(nn.Module):
    """Replacement for the ``forward`` of one fused attention: it computes with the active task's part of the weights.

    It is a module so that its index tensors move along with the network; it has no parameters.

    Args:
        module: the layer.
        channels: position in the embedding of every channel of its queries and keys, and of its values, int64
            ``(2, E)``, as in :attr:`hatrack.units.UnitGraph.heads`.
        active: the state shared by all gates of the network.
    """

    def __init__(self, module: nn.Module, channels: Tensor, active: ActiveTask) -> None:
        super().__init__()
        self._of = (module,)  # in a tuple, so that it is no part of the switch
        self._active = active
        self._channels = channels.clone()
        self._scales_scores = not torch.equal(channels[0], channels[1])

    @property
    def module(self) -> nn.Module:
        """The layer."""
        return self._of[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HeadSwitch:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._channels = move_along(self._channels, fn)
        return self

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Do nothing, as a forward pre-hook that keeps encoder layers from computing past this switch.

        In evaluation mode :class:`torch.nn.TransformerEncoderLayer` hands all its weights to one kernel, unless a part
        of it has a hook.
        """

    def forward(self, *args: Any, **kwargs: Any) -> _Result:
        """Compute the layer's result under the active task, or with all of its weights while no task is active."""
        return self.forward_of(self.module, *args, **kwargs)

    def forward_of(self, module: nn.Module, *args: Any, **kwargs: Any) -> _Result:
        """Compute the result of the layer, or of a twin of it with other parameters.

        Raises:
            UnsupportedError: the inputs are nested tensors.
        """
        assert isinstance(module, nn.MultiheadAttention)
        active = self._active
        per_unit = active.attention if active.cleared is None else active.cleared
        if per_unit is None:
            active.require_forward()
            result: _Result = type(module).forward(module, *args, **kwargs)
            return result
        given = _Arguments(*args, **kwargs)
        if given.query.is_nested:
            raise UnsupportedError(
                "heads of attention cannot be gated on nested tensors, which nn.TransformerEncoder makes of padded "
                "sequences; build it with enable_nested_tensor=False"
            )
        gates = per_unit[..., self._channels]
        if per_unit.dim() > 1:
            return self._compute_mixed(module, given, gates)
        return self._compute(module, given, gates)

    def _compute(self, module: nn.MultiheadAttention, given: _Arguments, gates: Tensor) -> _Result:
        """Compute the result under gates of the channels, ``(2, E)``: booleans, True where off, or numbers."""
        scores, values = gates[0], gates[1]
        if gates.dtype == torch.bool:
            return _attended(module, given, cleared_weights(module, scores, values))
        return _attended(module, given, _scaled(module, scores if self._scales_scores else None, values))

    def _compute_mixed(self, module: nn.MultiheadAttention, given: _Arguments, gates: Tensor) -> _Result:
        """Compute the result for samples of several tasks, at a time those with the same gates, ``(N, 2, E)``.

        Raises:
            ValueError: the first axis of the inputs does not count samples.
        """
        inputs = (given.query, given.key, given.value)
        if not module.batch_first or any(each.dim() != 3 or len(each) != len(gates) for each in inputs):
            raise ValueError("the first axis of what a layer reads does not count samples")
        kinds, kind_of = torch.unique(gates, dim=0, return_inverse=True)
        rows = [(kind_of == number).nonzero().flatten() for number in range(len(kinds))]
        parts = [self._compute(module, given.of_samples(r), own) for r, own in zip(rows, kinds, strict=True)]
        order = torch.cat(rows).argsort()
        shares = [each for _, each in parts if each is not None]
        return torch.cat([each for each, _ in parts])[order], torch.cat(shares)[order] if shares else None


keep_compilers_out(HeadSwitch._compute_mixed)  # which gates are alike depends on values

Weights = dict[str, Tensor | None]
"""Weights by their names among the arguments of :func:`torch.nn.functional.multi_head_attention_forward`."""


def _weights_of(module: nn.MultiheadAttention) -> Weights:
    names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias", "bias_k", "bias_v")
    own: Weights = {name: getattr(module, name) for name in names}
    return {**own, "out_proj_weight": module.out_proj.weight}


def cleared_weights(module: nn.MultiheadAttention, scores: Tensor, values: Tensor) -> Weights:
    """Return weights in which all entries of channels that are off are 0, however large they are.

    Args:
        module: the layer.
        scores: channels of queries and keys that are off, booleans ``(E,)``.
        values: channels of values that are off, likewise.
    """
    rows = torch.cat([scores, scores, values])
    off = {
        "in_proj_weight": rows.unsqueeze(1),
        "q_proj_weight": scores.unsqueeze(1),
        "k_proj_weight": scores.unsqueeze(1),
        "v_proj_weight": values.unsqueeze(1),
        "in_proj_bias": rows,
        "bias_k": scores,
        "bias_v": values,
        "out_proj_weight": values,
    }
    weights = _weights_of(module).items()
    return {name: None if weight is None else weight.masked_fill(off[name], 0.0) for name, weight in weights}


def _scaled(module: nn.MultiheadAttention, scores: Tensor | None, values: Tensor) -> Weights:
    """Return weights under a soft mask: columns that read channels of values are scaled, and so are scores.

    Args:
        module: the layer.
        scores: attention to channels of queries and keys, ``(E,)``; None where it is that to the values, which they
            only serve.
        values: attention to channels of values, ``(E,)``.
    """
    weights = _weights_of(module)
    factors = {"out_proj_weight": values}
    if scores is not None:
        ones = torch.ones_like(scores)
        rows = torch.cat([scores, ones, ones])
        factors |= {"in_proj_weight": rows.unsqueeze(1), "in_proj_bias": rows, "q_proj_weight": scores.unsqueeze(1)}
    for name, factor in factors.items():
        weight = weights[name]
        weights[name] = None if weight is None else weight * factor.to(weight.dtype)
    return weights


def _attended(module: nn.MultiheadAttention, given: _Arguments, weights: Weights) -> _Result:
    """Compute what a layer computes, with other weights."""
    query, key, value = given.query, given.key, given.value
    turned = module.batch_first and query.dim() == 3
    if turned:  # what is the same value stays so, which torch projects in one product
        same_key, same_value = key is query, value is key
        query = query.transpose(0, 1)
        key = query if same_key else key.transpose(0, 1)
        value = key if same_value else value.transpose(0, 1)
    named: dict[str, Any] = weights
    attended, shares = F.multi_head_attention_forward(
        query,
        key,
        value,
        module.embed_dim,
        module.num_heads,
        add_zero_attn=module.add_zero_attn,
        dropout_p=module.dropout,
        out_proj_bias=module.out_proj.bias,
        training=module.training,
        key_padding_mask=given.key_padding_mask,
        need_weights=given.need_weights,
        attn_mask=given.attn_mask,
        use_separate_proj_weight=weights["in_proj_weight"] is None,
        average_attn_weights=given.average_attn_weights,
        is_causal=given.is_causal,
        **named,
    )
    return attended.transpose(0, 1) if turned else attended, shares
