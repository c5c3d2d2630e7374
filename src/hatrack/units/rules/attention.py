"""Rules of attention, whose products read units where no gate can be: those of a head are merged into one.

In attention written by hand the queries, keys and values of a head become one unit: a task uses a head wholly or not at
all. That is exact, and leaves the layers before and after to be gated as usual. Where all heads would be one unit, as
with a single one, or where scores of heads are mixed, channels of the values are units; queries and keys are read where
the layers write them, or are always on where no gate can stand there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.units.coupling import UNGATED
from hatrack.units.rules.registry import rule
from hatrack.units.trace import Call, Labels, Trace

__all__ = ["multi_head_attention", "scaled_dot_product_attention"]


@rule(F.scaled_dot_product_attention)
def scaled_dot_product_attention(trace: Trace, call: Call) -> Tensor:
    """Couple queries, keys and values ``(..., length, width)`` of attention."""
    values = [call.argument(position, name) for position, name in enumerate(("query", "key", "value"))]
    query, key, value = map(trace.labels, values)
    if trace.read_products(call, [(each, each.dim() - 1) for each in values[:2]]):
        query, key = torch.full_like(query, UNGATED), torch.full_like(key, UNGATED)
    if call.kwargs.get("enable_gqa"):
        key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], dim=-3) for each in (key, value))
    scores = _product(trace, query, key.transpose(-2, -1))
    mask = call.argument(3, "attn_mask")
    if isinstance(mask, Tensor):
        scores = trace.coupling.couple(scores, trace.labels(mask))
    return _product(trace, scores, value).expand(call.output.shape)


@rule(nn.MultiheadAttention)
def multi_head_attention(trace: Trace, call: Call) -> Labels:
    """Read the inputs of the fused module; its heads are always on, since no hook reaches inside its kernel.

    Projections into the heads are frozen where a task uses the unit that is read, projections out of them where it uses
    the unit that is written.
    """
    module = call.target
    if module.bias_k is not None:
        raise trace.refuse(call, "add_bias_kv has no rule yet")
    names = ("query", "key", "value")
    ends = [trace.read(call, call.argument(i, name), -1, argument=i, keyword=name) for i, name in enumerate(names)]
    for mask in (call.argument(3, "key_padding_mask"), call.argument(5, "attn_mask")):
        if isinstance(mask, Tensor):
            trace.coupling.pin(trace.labels(mask))  # it acts on heads that are always on
    always = torch.full((1, 1), UNGATED)
    if module.in_proj_weight is not None:
        per_row = torch.stack(ends).repeat_interleave(module.embed_dim, dim=0)
        trace.use_of(call, "in_proj_weight", always, per_row)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        for weight, units in zip(weights, ends, strict=True):
            trace.use(weight, always, units.view(1, -1))
    trace.use_of(call, "in_proj_bias", torch.full((1,), UNGATED))
    outputs = trace.write(call, module.embed_dim)
    trace.use(module.out_proj.weight, outputs.view(-1, 1), always)
    trace.use(module.out_proj.bias, outputs)
    attended, weights_of_keys = call.output
    nothing: Labels = () if weights_of_keys is None else torch.full(weights_of_keys.shape, UNGATED)
    return outputs.expand(attended.shape), nothing


@rule(torch._nested_tensor_from_mask_left_aligned)
def nested_tensor(trace: Trace, call: Call) -> Labels:
    """Refuse nested tensors, which ``nn.TransformerEncoder`` makes of padded sequences past all hooks."""
    raise trace.refuse(call, "nested tensors have no rule; build nn.TransformerEncoder with enable_nested_tensor=False")


def _product(trace: Trace, first: Tensor, second: Tensor) -> Tensor:
    """Label ``first @ second``."""
    rows = trace.coupling.merge(first, -1)
    columns = trace.coupling.merge(second, -2)
    return trace.coupling.meet(rows, columns)
