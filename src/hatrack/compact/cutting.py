"""Cutting of unused units out of a copy of a backbone, layer by layer, by the labels of its unit graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hatrack.compact.modules import Clear, CompactAttention, CompactGroupNorm, CompactLayerNorm, CompactRMSNorm
from hatrack.compact.recurrent import cut_recurrent
from hatrack.gating.attention import cleared_weights
from hatrack.gating.recurrent import is_recurrent
from hatrack.growth.layers import Layer, Side
from hatrack.support.layouts import memory_format_of
from hatrack.support.names import prefix_of
from hatrack.units import OUTPUT, ParameterUse, Reader, UnitGraph

__all__ = ["PREFIX", "Cut", "UnfitError", "cut_backbone", "drop_dropout", "unflattens", "with_norms"]

PREFIX = "backbone."
"""Prefix of the names of a backbone's parameters."""

_HEADS = ("heads", "num_heads", "n_heads", "n_head", "nhead")
"""Names of the attribute with the number of heads in modules with attention written by hand."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class UnfitError(Exception):
    """Error of a layer that cannot be cut as asked; the text gives the reason."""


@dataclass(frozen=True)
class Cut:
    """Selection of units to cut.

    Attributes:
        graph: the units of the backbone.
        on: the units that the task uses, booleans ``(U + 1,)``; the last stands for "ungated" and is True.
        keep: the units that stay, on or off, booleans ``(U + 1,)``.
        device: device of the backbone; units are on the CPU, what is chosen of its tensors by them is not.
    """

    graph: UnitGraph
    on: Tensor
    keep: Tensor
    device: torch.device

    def kept(self, units: Tensor) -> Tensor:
        """Return the indices of an axis that stay, given the units along it, on the backbone's device."""
        return self.keep[units].nonzero().flatten().to(self.device)

    def off(self, units: Tensor) -> Tensor:
        """Return which of the indices that stay belong to units that are off, booleans on the backbone's device."""
        return ~self.on[units[self.keep[units]]].to(self.device)

    def readers(self, name: str) -> list[Reader]:
        """Return the readings of units by a module, at its arguments."""
        return [each for each in self.graph.readers[:-1] if each.module == name and each.argument != OUTPUT]


@torch.no_grad()
def cut_backbone(backbone: nn.Module, cut: Cut) -> None:
    """Cut units out of a backbone in place, and clear units that stay though they are off.

    Dropout is removed, and weights that are computed from others, as in weight norm, are written out.

    Raises:
        UnfitError: a layer cannot be cut as asked.
    """
    for module in list(backbone.modules()):
        if parametrize.is_parametrized(module):
            _write_out(module)
    drop_dropout(backbone)
    modules = dict(backbone.named_modules())
    done: set[int] = set()
    for name, module in modules.items():
        if type(module) in (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm) and cut.readers(name):
            done |= _cut_norm(backbone, name, module, cut)
        elif type(module) is nn.MultiheadAttention:
            done |= _cut_attention(backbone, name, module, cut)
        elif isinstance(module, nn.MultiheadAttention) and name in cut.graph.heads:  # a class of the user's own
            _clear_heads(name, module, cut)
        elif is_recurrent(module, cut.graph.uses, prefix_of(name)):
            reason = cut_recurrent(module, cut.graph, prefix_of(name), cut.keep, cut.on)
            if reason is not None:
                raise UnfitError(f"{name!r} cannot be cut: {reason}")
            done |= {id(module)}
    for name, module in modules.items():
        layer = None if id(module) in done else Layer.of(module)
        if layer is not None:
            _cut_layer(name, layer, cut)
            done |= {id(module)}
        elif id(module) not in done:
            _cut_own_parameters(name, module, cut)
            for reader in cut.readers(name):
                _clear(module, reader, cut)
    for reader in cut.graph.readers[:-1]:
        if reader.argument == OUTPUT:
            _clear(backbone.get_submodule(reader.module), reader, cut)
    _count_heads_again(modules, cut)


def drop_dropout(backbone: nn.Module) -> None:
    """Replace dropout layers, which do nothing in evaluation mode, by identities."""
    for module in list(backbone.modules()):
        if isinstance(module, _DROPOUTS):
            replace_module(backbone, module, nn.Identity())


def _write_out(module: nn.Module) -> None:
    """Replace parametrizations of a module by the weights that they compute; the class that torch made is shared."""
    values = {
        name: getattr(module, name).detach().clone() for name in module.get_submodule("parametrizations")._modules
    }
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module by another one wherever it is registered."""
    for module in list(root.modules()):
        for name, part in module._modules.items():
            if part is old:
                module._modules[name] = new


def with_norms(backbone: nn.Module, norms: Mapping[str, nn.Module]) -> nn.Module:
    """Replace norms of a backbone, in place, by copies of a task's.

    Args:
        backbone: the network.
        norms: the task's norms by the names of the layers that they stand for.

    Returns:
        The same backbone.
    """
    for name, norm in norms.items():
        replace_module(backbone, backbone.get_submodule(name), copy.deepcopy(norm))
    return backbone


def _cut_layer(name: str, layer: Layer, cut: Cut) -> None:
    """Cut rows and columns of one of torch's layers, and set columns of units that are off to 0."""
    module, outputs, readers = layer.module, cut.graph.outputs.get(name), cut.readers(name)
    if readers and not isinstance(getattr(module, "weight", None), nn.Parameter):
        raise UnfitError(f"{name!r} computes its weight")
    inputs = readers[0].units if readers else None
    if readers and isinstance(module, _CONVOLUTIONS) and readers[0].axis != -1 - len(module.kernel_size):
        if len(cut.kept(readers[0].units)) < len(readers[0].units):
            raise UnfitError(f"{name!r} runs along the units")
        _clear(module, readers[0], cut)
        inputs = None
    kept: dict[Side, Tensor] = {}
    if outputs is not None:
        kept[Side.OUTPUTS] = cut.kept(outputs)
    if inputs is not None:
        kept[Side.INPUTS] = cut.kept(inputs)
    if layer.groups > 1:
        _cut_grouped(name, layer, cut, inputs, kept)
    widths = {side: layer.width(side) for side in set(layer.sizes.values())}
    whole = all(len(indices) == widths[side] for side, indices in kept.items())
    if any(not len(indices) for indices in kept.values()):
        raise UnfitError(f"nothing would be left of {name!r}")
    if not whole:
        for own, axes in layer.tensors.items():
            tensor = getattr(module, own, None)
            if isinstance(tensor, Tensor):
                for axis, side in enumerate(axes):
                    if side in kept and tensor.shape[axis] == widths[side]:
                        tensor = tensor.index_select(axis, kept[side])
                _set(module, own, tensor)
        widths |= {side: len(indices) for side, indices in kept.items()}
        for attribute, side in layer.sizes.items():
            setattr(module, attribute, widths[side])
    if inputs is not None and layer.groups == 1 and cut.off(inputs).any():
        axis, weight = layer.tensors["weight"].index(Side.INPUTS), module.get_parameter("weight").detach().clone()
        weight.movedim(axis, 0)[cut.off(inputs)] = 0.0
        _set(module, "weight", weight)  # a new one: another layer may have it too, and read other units with it


def _cut_grouped(name: str, layer: Layer, cut: Cut, inputs: Tensor | None, kept: dict[Side, Tensor]) -> None:
    """Reduce the groups of a convolution to those that are left, or refuse; set weights that read off units to 0."""
    module = layer.module
    widths = {side: layer.width(side) for side in (Side.INPUTS, Side.OUTPUTS)}
    inside, outside = (widths[side] // layer.groups for side in (Side.INPUTS, Side.OUTPUTS))
    if inputs is None and inside == 1 and Side.OUTPUTS in kept:  # depthwise: passes units on
        groups = torch.unique(kept[Side.OUTPUTS] // outside)
        if len(groups) * outside != len(kept[Side.OUTPUTS]):
            raise UnfitError(f"{name!r} is a convolution in groups, which are not cut as a whole")
        kept[Side.INPUTS] = groups
        setattr(module, "groups", len(groups))  # noqa: B010
        return
    if any(len(indices) != widths[side] for side, indices in kept.items()):
        raise UnfitError(f"{name!r} is a convolution in {layer.groups} groups, which all need to be of one size")
    if inputs is not None:
        off, weight = cut.off(inputs), module.get_parameter("weight").data
        if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            weight[off] = 0.0
        else:
            columns = off.view(layer.groups, inside).repeat_interleave(outside, 0)
            weight[columns] = 0.0


def _cut_norm(backbone: nn.Module, name: str, module: nn.Module, cut: Cut) -> set[int]:
    """Replace a norm that reads units that are cut by one whose statistics run over the original width."""
    (reader,) = cut.readers(name)
    kept, off = cut.kept(reader.units), cut.off(reader.units)
    if off.any():
        _clear(module, reader, cut)
    if len(kept) == len(reader.units):
        return {id(module)}
    if off.any():
        raise UnfitError(f"{name!r} reads units of which some are cut and some are not")
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(module, nn.GroupNorm):
        per_group = module.num_channels // module.num_groups
        weight, bias = (None if each is None else each.detach()[kept] for each in (weight, bias))
        new: nn.Module = CompactGroupNorm(kept // per_group, module.num_groups, per_group, module.eps, weight, bias)
    else:
        assert isinstance(module, (nn.LayerNorm, nn.RMSNorm))
        shape = torch.Size(module.normalized_shape)
        axis, count = len(shape) + reader.axis, shape.numel()
        weight, bias = (
            None if each is None else each.detach().index_select(axis, kept).clone() for each in (weight, bias)
        )
        missing = count // shape[axis] * (shape[axis] - len(kept))
        if isinstance(module, nn.LayerNorm):
            new = CompactLayerNorm(len(shape), count, missing, module.eps, weight, bias)
        else:
            new = CompactRMSNorm(len(shape), count, module.eps, weight)
    replace_module(backbone, module, new)
    return {id(module)}


def _cut_attention(backbone: nn.Module, name: str, module: nn.MultiheadAttention, cut: Cut) -> set[int]:
    """Replace torch's attention by one for the heads, inputs and outputs that are left."""
    scores, values = map(cut.kept, _channels(name, module, cut))
    rows = (scores, scores, values)
    if not all(map(len, rows)):
        raise UnfitError(f"nothing would be left of the heads of {name!r}")
    whole = _with_heads_cleared(name, module, cut)
    weights = [own[kept] for own, kept in zip(_projections(whole), rows, strict=True)]
    for reader in cut.readers(name):
        columns = weights[reader.argument].index_select(1, cut.kept(reader.units)).clone()
        columns[:, cut.off(reader.units)] = 0.0
        weights[reader.argument] = columns
    projection = module.out_proj
    outputs = cut.graph.outputs.get(name)
    written = torch.arange(projection.out_features, device=cut.device) if outputs is None else cut.kept(outputs)
    out = nn.Linear(len(values), len(written), bias=projection.bias is not None, device="meta")
    out.weight = nn.Parameter(whole["out_proj_weight"][written][:, values].clone())
    if projection.bias is not None:
        out.bias = nn.Parameter(projection.bias.detach()[written].clone())
    shifts, further = None, None
    if "in_proj_bias" in whole:
        shifts = torch.cat([own[kept] for own, kept in zip(whole["in_proj_bias"].chunk(3), rows, strict=True)])
    if "bias_k" in whole:
        further = (whole["bias_k"][..., scores], whole["bias_v"][..., values])
    first, second, third = weights
    compact = CompactAttention(
        (first, second, third),
        shifts,
        out,
        module.num_heads,
        module.batch_first,
        left=torch.unique(values // module.head_dim),
        width=module.head_dim,
        further=further,
        attends_to_zero=module.add_zero_attn,
    )
    replace_module(backbone, module, compact)
    return {id(module), id(projection)}


def _clear_heads(name: str, module: nn.MultiheadAttention, cut: Cut) -> None:
    """Clear heads that are off in an attention that stays as it is."""
    for own, weight in _with_heads_cleared(name, module, cut).items():
        if own == "out_proj_weight":
            _set(module.out_proj, "weight", weight)
        else:
            _set(module, own, weight)


def _channels(name: str, module: nn.MultiheadAttention, cut: Cut) -> Tensor:
    """Return the units of the channels of an attention, ``(2, E)``; "ungated" where its heads are none."""
    return cut.graph.heads.get(name, torch.full((2, module.embed_dim), cut.graph.num_units))


def _with_heads_cleared(name: str, module: nn.MultiheadAttention, cut: Cut) -> dict[str, Tensor]:
    """Return the weights of an attention that it has, by name, with zeros for heads that are off."""
    scores, values = ~cut.on[_channels(name, module, cut)].to(cut.device)
    weights = cleared_weights(module, scores, values)
    return {own: weight.detach() for own, weight in weights.items() if weight is not None}


def _projections(weights: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """Return the projections of queries, keys and values, ``(E, inputs)`` each."""
    if "in_proj_weight" in weights:
        return weights["in_proj_weight"].chunk(3)
    return [weights[f"{own}_proj_weight"] for own in "qkv"]


def _cut_own_parameters(name: str, module: nn.Module, cut: Cut) -> None:
    """Cut entries per unit of parameters of the user's own modules: tokens, scales, weights written out."""
    for own, parameter in list(module.named_parameters(recurse=False)):
        uses = cut.graph.uses.get(PREFIX + f"{name}.{own}".lstrip("."), ())
        if not uses:
            continue
        kept = [_axes(name, own, parameter, use, cut) for use in uses]
        if any(each.keys() != kept[0].keys() for each in kept) or any(
            not torch.equal(each[axis], kept[0][axis]) for each in kept for axis in each
        ):
            raise UnfitError(f"{own!r} of {name!r} is used in two ways")
        value = parameter.detach()
        for axis, indices in kept[0].items():
            value = value.index_select(axis, indices)
        if value.shape != parameter.shape:
            _set(module, own, value)


def _axes(name: str, own: str, parameter: Tensor, use: ParameterUse, cut: Cut) -> dict[int, Tensor]:
    """Return the indices that stay, for each axis of a parameter that is cut."""
    kept = {}
    for side in use.sides:
        axis = _axis_of(side)
        if axis is None:
            if not cut.keep[side].all():
                raise UnfitError(f"{own!r} of {name!r} has units along several axes")
            continue
        units = side.movedim(axis, 0).reshape(side.shape[axis], -1)[:, 0]
        indices = cut.kept(units)
        if len(indices) < len(units):
            kept[parameter.dim() - side.dim() + axis] = indices
    return kept


def _axis_of(side: Tensor) -> int | None:
    """Return the one axis along which units differ; None if there are several, or none."""
    differing = [axis for axis in range(side.dim()) if not bool((side == side.narrow(axis, 0, 1)).all())]
    return differing[0] if len(differing) == 1 else None


def _clear(module: nn.Module, reader: Reader, cut: Cut) -> None:
    """Clear units that stay though they are off, before a module that mixes units in ways of its own."""
    off = cut.off(reader.units)
    if off.any():
        clear = Clear(off, reader.axis, reader.argument, reader.keyword)
        if reader.argument == OUTPUT:
            module.add_module("clear_result", clear)
            module.register_forward_hook(clear.after)
            return
        module.add_module(f"clear{reader.argument}", clear)
        module.register_forward_pre_hook(clear.before, with_kwargs=True)


def _count_heads_again(modules: dict[str, nn.Module], cut: Cut) -> None:
    """Correct the number of heads in modules that split values into heads, where heads are units."""
    for group in cut.graph.groups:
        left = int(cut.keep[group.span].sum())
        for producer in group.name.split("+"):
            parent = modules.get(producer.rpartition(".")[0])
            for attribute in _HEADS if parent is not None and left < group.size < group.outputs else ():
                if vars(parent).get(attribute) == group.size:
                    setattr(parent, attribute, left)


def _set(module: nn.Module, own: str, value: Tensor) -> None:
    whole = getattr(module, own)
    layout = memory_format_of(whole) if whole.dim() == value.dim() else torch.contiguous_format
    value = value.detach().clone(memory_format=layout)  # what is cut lies as it did, or convolutions copy it each time
    setattr(module, own, nn.Parameter(value) if isinstance(whole, nn.Parameter) else value)


def unflattens(backbone: nn.Module) -> Sequence[nn.Unflatten]:
    """Return the modules that split an axis into sizes that are written down."""
    return [module for module in backbone.modules() if isinstance(module, nn.Unflatten)]
