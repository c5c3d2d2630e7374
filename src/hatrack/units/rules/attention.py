"""Rules of attention, whose products read units where no gate can be: those of a head are merged into one.

In attention written by hand the queries, keys and values of a head become one unit: a task uses a head wholly or not at
all. That is exact, and leaves the layers before and after to be gated as usual. Where all heads would be one unit, as
with a single one, or where scores of heads are mixed, channels of the values are units; queries and keys are read where
the layers write them, or are always on where no gate can stand there.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.support.inputs import tensors_in
from hatrack.units.coupling import UNGATED
from hatrack.units.rules.probing import probe
from hatrack.units.rules.registry import rule
from hatrack.units.trace import Call, Labels, Trace

__all__ = ["attention_with_weights", "multi_head_attention", "scaled_dot_product_attention"]


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


@rule(F.multi_head_attention_forward)
def attention_with_weights(trace: Trace, call: Call) -> Labels:
    """Label the attention that is given its weights: what :func:`multi_head_attention` does, in a module of one's own.

    Inputs before which no gate can stand are always on.
    """
    given = dict(zip(inspect.signature(F.multi_head_attention_forward).parameters, call.args, strict=False))
    given |= call.kwargs
    if given.get("bias_k") is not None:
        raise trace.refuse(call, "keys and values with a bias of their own have no rule yet")
    separate = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    names = (*(separate if given.get("use_separate_proj_weight") else ("in_proj_weight",)), "out_proj_weight")
    weights = {name: given[name] for name in names}
    if any(trace.weight_of(weight) is None for weight in weights.values()):
        for value in tensors_in((call.args, call.kwargs)):
            trace.open_weight(value)
        return probe(trace, call)
    ends = []
    for value in (given["query"], given["key"], given["value"]):
        units = trace.coupling.along(trace.labels(value), -1)
        if trace.is_readable(value):
            trace.read_inside(call, value)
        else:
            trace.coupling.pin(units)
        ends.append(units if trace.sources.is_cleared(value) else torch.full_like(units, UNGATED))
    always = torch.full((1, 1), UNGATED)
    if given.get("use_separate_proj_weight"):
        for name, units in zip(separate, ends, strict=True):
            _use(trace, weights[name], always, units.view(1, -1))
    else:
        rows = given["query"].shape[-1]
        _use(trace, weights["in_proj_weight"], always, torch.stack(ends).repeat_interleave(rows, dim=0))
    for acting in map(given.get, ("key_padding_mask", "attn_mask", "in_proj_bias")):
        if isinstance(acting, Tensor):
            trace.open_weight(acting)
            trace.coupling.pin(trace.labels(acting))  # it acts on heads that are always on
    attended, weights_of_keys = call.output
    parameter, _ = trace.weight_of(weights["out_proj_weight"]) or (None, ())
    outputs = trace.write(replace(call, name=trace.parameters[id(parameter)]), attended.shape[-1])
    _use(trace, weights["out_proj_weight"], outputs.view(-1, 1), always)
    if isinstance(given.get("out_proj_bias"), Tensor):
        trace.open_weight(given["out_proj_bias"])
        outputs = trace.coupling.couple(outputs, trace.labels(given["out_proj_bias"]))
    nothing: Labels = () if weights_of_keys is None else torch.full(weights_of_keys.shape, UNGATED)
    return outputs.expand(attended.shape), nothing


def _use(trace: Trace, weight: Tensor, *sides: Tensor) -> None:
    """Record the ends of a weight whose axes may be turned."""
    parameter, order = trace.weight_of(weight) or (None, ())
    trace.use(parameter, *(side.permute([order.index(axis) for axis in range(side.dim())]) for side in sides))


@rule(torch._nested_tensor_from_mask_left_aligned)
def nested_tensor(trace: Trace, call: Call) -> Labels:
    """Refuse nested tensors, which ``nn.TransformerEncoder`` makes of padded sequences past all hooks."""
    raise trace.refuse(call, "nested tensors have no rule; build nn.TransformerEncoder with enable_nested_tensor=False")


def _product(trace: Trace, first: Tensor, second: Tensor) -> Tensor:
    """Label ``first @ second``."""
    rows = trace.coupling.merge(first, -1)
    columns = trace.coupling.merge(second, -2)
    return trace.coupling.meet(rows, columns)
