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

__all__ = ["attention_with_weights", "heads_always_on", "multi_head_attention", "scaled_dot_product_attention"]


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
    """Read the inputs of the fused module, whose heads are units, and write units of its outputs.

    No hook reaches inside its kernel. A task computes with weights in which the entries of heads that are off are
    cleared instead, see :class:`hatrack.gating.attention.HeadSwitch`. As in attention written by hand, a single head is
    no unit: channels of its values are units, and so are those of its scores, a query's channel with the key's.
    """
    module, width = call.target, call.target.embed_dim
    if module.num_heads > 1:
        heads = trace.write(_part(call, "heads"), module.num_heads).repeat_interleave(width // module.num_heads)
        channels = torch.stack([heads, heads])
    else:
        channels = torch.stack([trace.write(_part(call, name), width) for name in ("scores", "values")])
    trace.heads[call.name] = channels
    return _fused_attention(trace, call, *channels)


def heads_always_on(trace: Trace, call: Call) -> Labels:
    """Read the inputs of :class:`torch.nn.MultiheadAttention` and write its outputs; its heads are always on.

    Projections into the heads are frozen where a task uses the unit that is read, projections out of them where it uses
    the unit that is written. Networks in files from before heads were units are read so. It can be given as
    ``rules={torch.nn.MultiheadAttention: hatrack.units.heads_always_on}``.
    """
    always = torch.full((call.target.embed_dim,), UNGATED)
    return _fused_attention(trace, call, always, always)


def _part(call: Call, name: str) -> Call:
    """Return a call that stands for a part of a module."""
    return replace(call, name=f"{call.name}.{name}".lstrip("."))


def _fused_attention(trace: Trace, call: Call, scores: Tensor, values: Tensor) -> Labels:
    """Label a call of the fused module, and record the ends of its parameters.

    Args:
        trace: the trace.
        call: the call.
        scores: labels of the channels of queries and keys, ``(E,)``.
        values: labels of the channels of values, ``(E,)``.
    """
    module = call.target
    names = ("query", "key", "value")
    ends = [trace.read(call, call.argument(i, name), -1, argument=i, keyword=name) for i, name in enumerate(names)]
    for mask in (call.argument(3, "key_padding_mask"), call.argument(5, "attn_mask")):
        if isinstance(mask, Tensor):
            trace.coupling.pin(trace.labels(mask))  # no gate clears it, and it acts on heads that are off, too
    channels = (scores, scores, values)
    rows = torch.cat(channels)
    if module.in_proj_weight is not None:
        alike = all(torch.equal(end, ends[0]) for end in ends)
        inputs = ends[0].view(1, -1) if alike else torch.stack(ends).repeat_interleave(module.embed_dim, dim=0)
        trace.use_of(call, "in_proj_weight", rows.view(-1, 1), inputs)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        for weight, own, units in zip(weights, channels, ends, strict=True):
            trace.use(weight, own.view(-1, 1), units.view(1, -1))
    trace.use_of(call, "in_proj_bias", rows)
    trace.use(module.bias_k, scores.view(1, 1, -1))
    trace.use(module.bias_v, values.view(1, 1, -1))
    outputs = trace.write(call, module.embed_dim)
    trace.use(module.out_proj.weight, outputs.view(-1, 1), values.view(1, -1))
    trace.use(module.out_proj.bias, outputs)
    attended, weights_of_keys = call.output
    # Which weights of keys come out follows from the heads that a task uses; those that are off weigh all keys alike.
    nothing: Labels = () if weights_of_keys is None else torch.full(weights_of_keys.shape, UNGATED)
    return outputs.expand(attended.shape), nothing


@rule(F.multi_head_attention_forward)
def attention_with_weights(trace: Trace, call: Call) -> Labels:
    """Label the attention that is given its weights, in a module of one's own: its heads are always on.

    Inputs before which no gate can stand are always on, too.
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
