"""Extraction of a task with masks of weights: unused weights become zeros, and units that are dead then are cut out.

A unit is dead if nothing reads it: all weights that read it are 0. A unit whose incoming weights are all 0 is constant,
its value being that of its bias, activation and norm. It is added to the biases behind it, and is dead then, too. Where
a convolution pads with zeros, a constant changes at the border; such a unit stays.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.compact.cutting import PREFIX, drop_dropout, with_norms
from hatrack.compact.extract import SILENT, TOLERANCE, TaskParts, extract_task, summarize
from hatrack.compact.modules import CompactNetwork, OwnHead, whole_head
from hatrack.compact.recurrent import in_one_chunk
from hatrack.errors import DOES_NOT_RUN, InputError, UnsupportedError
from hatrack.gating.attachment import mark
from hatrack.gating.recurrent import is_recurrent
from hatrack.growth.layers import Layer, Side
from hatrack.state.tryouts import agree, random_like, says_something
from hatrack.support.example import is_mask
from hatrack.support.inputs import Inputs, map_tensors, tensor_of, tensors_in
from hatrack.support.interface import PLAIN, Interface
from hatrack.support.names import prefix_of
from hatrack.units import OUTPUT, Reader, UnitGraph, analyze
from hatrack.units.versions import HEADS_ALWAYS_ON

__all__ = ["bake", "extract_baked"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def bake(
    backbone: nn.Module,
    masks: Mapping[str, Tensor],
    copies: Mapping[str, Tensor],
    norms: Mapping[str, nn.Module],
) -> nn.Module:
    """Copy a backbone with masks written into its weights as zeros.

    Args:
        backbone: the network.
        masks: weights that are used, booleans by name of a parameter; all others become 0.
        copies: values of other parameters by name.
        norms: norms by the name of the layer they stand for.
    """
    baked = copy.deepcopy(backbone)
    mark(baked, None)
    for name, mask in masks.items():
        baked.get_parameter(name).masked_fill_(~mask, 0.0)
    for name, value in copies.items():
        baked.get_parameter(name).copy_(value)
    return with_norms(baked, norms)


@torch.no_grad()
def extract_baked(
    name: str,
    backbone: nn.Module,
    head: nn.Module,
    ask: Callable[[Inputs], Tensor],
    tried: Sequence[tuple[Inputs, Tensor]],
    interface: Interface = PLAIN,
    is_own: bool = False,
) -> CompactNetwork:
    """Extract a task from a backbone into which its masks are written as zeros.

    Where no unit is dead, or units cannot be found, the result has the backbone's own shape.

    Args:
        name: the task's name.
        backbone: maps a batch to features; it is left as it is.
        head: the task's head.
        ask: computes the masked network's logits of a batch, in evaluation mode, as one tensor.
        tried: batches to compare on, at least one, each with its logits.
        interface: how the backbone is called, and what of its result are its features.
        is_own: whether the head is the user's own.

    Raises:
        UnsupportedError: the backbone does not give the masked network's logits.
    """
    own_head = whole_head(copy.deepcopy(head), interface.unit_axis, is_own)
    plain = CompactNetwork(copy.deepcopy(backbone), own_head, interface=interface).eval().requires_grad_(False)
    drop_dropout(plain.backbone)
    in_one_chunk(plain.backbone)
    x, expected = tried[0]
    if interface.samples(x) < 2 or not says_something(expected):
        samples = interface.take(interface.repeated(x, 16), slice(16))
        samples = torch.zeros_like(samples) if isinstance(samples, Tensor) else samples
        drawn = random_like(samples, torch.Generator().manual_seed(0), ask)
        tried = [*tried, (drawn, ask(drawn))]
    if not all(agree(tensor_of(plain(batch)), logits, TOLERANCE) for batch, logits in tried):
        raise UnsupportedError(f"{name!r} cannot be extracted: its weights with zeros written in give other logits")
    graph: UnitGraph | None = None
    why: dict[str, str] = {}
    try:
        if not any(says_something(logits) for _, logits in tried):
            raise UnsupportedError(SILENT)
        # Heads of fused attention are never dead as a whole.
        graph = analyze(plain.backbone, x, PREFIX, rules=HEADS_ALWAYS_ON, interface=interface, untrained=())
        folded = copy.deepcopy(plain)
        on = ~_dead(folded, graph, [batch for batch, _ in tried])
        if not on.all():
            left = folded.head.head if isinstance(folded.head, OwnHead) else folded.head
            parts = TaskParts(name, folded.backbone.eval(), {}, graph, on, left, tried, interface, is_own)
            return extract_task(parts)
    except (InputError, UnsupportedError) as error:
        why = {"": f"dead units cannot be found: {' '.join(str(error).split()).partition(', so ')[0]}"}
    units = {} if graph is None else {group.name: group.size for group in graph.groups}
    plain.summary = summarize(name, plain, plain, x, expected, units, graph, why, interface)
    return plain


def _dead(network: CompactNetwork, graph: UnitGraph, batches: Sequence[Inputs]) -> Tensor:
    """Move constant units into the biases behind them, in place, and return the units to cut, booleans ``(U,)``."""
    zero = torch.zeros(graph.num_units, dtype=torch.bool)
    moved = zero.clone()
    for _ in range(len(graph.groups) + 1):
        constant = _without_inputs(network.backbone, graph) & ~zero & ~moved
        if not constant.any():
            break
        seen = _observe(network, graph, batches)
        for unit in constant.nonzero().flatten().tolist():
            readings = [(reader, reader.units == unit, seen[index]) for index, reader in enumerate(graph.readers)]
            values = [(reader, where, *(each[where] for each in low_high)) for reader, where, low_high in readings]
            if any(not torch.equal(low, high) for _, _, low, high in values):
                continue
            if all(not low.any() for _, _, low, _ in values):
                zero[unit] = True
            elif all(not where.any() or _takes_constants(network, reader, graph) for reader, where, _, _ in values):
                for reader, where, value, _ in values:
                    _move(_layer_of(network, reader), where, value)
                moved[unit] = True
        if not (zero | moved)[constant].any():
            break
    dead = _unread(network, graph) | zero
    for group in graph.groups:
        if dead[group.span].all():
            dead[group.start] = False  # a layer cannot be without any
    return dead


def _layer_of(network: CompactNetwork, reader: Reader) -> nn.Module:
    return network.head if reader.module == "" else network.backbone.get_submodule(reader.module)


def _without_inputs(backbone: nn.Module, graph: UnitGraph) -> Tensor:
    """Find units whose incoming weights are all 0, and that nothing else writes."""
    modules = dict(backbone.named_modules())
    written, otherwise = (torch.zeros(graph.num_units + 1, dtype=torch.bool) for _ in range(2))
    for name, units in graph.outputs.items():
        layer = Layer.of(modules[name])
        axes = () if layer is None else layer.tensors.get("weight", ())
        if layer is None or len(axes) == 0 or None in axes:
            otherwise[units] = True
        elif Side.INPUTS in axes or layer.groups > 1:
            if Side.OUTPUTS not in axes:
                otherwise[units] = True
                continue
            weight = layer.module.get_parameter("weight").movedim(axes.index(Side.OUTPUTS), 0)
            zeros = (weight == 0).flatten(1).all(1).cpu()
            written[units[zeros]] = True
            otherwise[units[~zeros]] = True
    return (written & ~otherwise)[:-1]


def _observe(network: CompactNetwork, graph: UnitGraph, batches: Sequence[Inputs]) -> list[tuple[Tensor, Tensor]]:
    """Return the smallest and the largest value that every reader reads, per index of its axis of units."""
    found: list[list[Tensor]] = [[] for _ in graph.readers]

    def watch_result(index: int, reader: Reader, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        found[index].append(output.movedim(reader.axis, 0).flatten(1))

    def watch(index: int, reader: Reader, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = reader.value_among(args, kwargs)
        if value is not None:
            found[index].append(value.movedim(reader.axis, 0).flatten(1))

    with contextlib.ExitStack() as hooks:
        for index, reader in enumerate(graph.readers):
            if reader.argument == OUTPUT:
                own = partial(watch_result, index, reader)
                hooks.enter_context(_layer_of(network, reader).register_forward_hook(own))
                continue
            hook = partial(watch, index, reader)
            hooks.enter_context(_layer_of(network, reader).register_forward_pre_hook(hook, with_kwargs=True))
        for batch in batches:
            network(batch)
        for odd in _odd_batches(batches[0]):
            with contextlib.suppress(*DOES_NOT_RUN):  # such as real numbers that stand for categories
                network(odd)
    return [
        (torch.stack([v.amin(1) for v in values]).amin(0).cpu(), torch.stack([v.amax(1) for v in values]).amax(0).cpu())
        for values in found
    ]


def _odd_batches(x: Inputs) -> Iterator[Inputs]:
    """Yield batches in which rare dependence on samples shows, if at all; integers and masks of several inputs stay."""
    alone = isinstance(x, Tensor)

    def changed(change: Callable[[Tensor], Tensor]) -> Inputs:
        return map_tensors(lambda t: change(t) if t.is_floating_point() and (alone or not is_mask(t)) else t, x)

    yield torch.zeros_like(x) if alone else changed(torch.zeros_like)
    if any(tensor.is_floating_point() for tensor in tensors_in(x)):
        for scale in (3, 30):
            yield changed(lambda t, scale=scale: scale * _drawn_like(t))  # type: ignore[misc]
        yield changed(lambda t: _drawn_like(t).abs() * 10)
        yield changed(lambda t: -_drawn_like(t).abs() * 10)


def _drawn_like(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)


def _takes_constants(network: CompactNetwork, reader: Reader, graph: UnitGraph) -> bool:
    """Return whether a constant that a reader gets can be added to its bias."""
    if reader.argument == OUTPUT:
        return False
    module = _layer_of(network, reader)
    own = dict(module.named_parameters(recurse=False))
    holders = Counter(id(p) for part in network.modules() for p in part._parameters.values() if p is not None)
    if any(holders[id(parameter)] > 1 for parameter in own.values()):
        return False
    if sum(each.module == reader.module for each in graph.readers) > 1:
        return False
    layer = Layer.of(module)
    if isinstance(module, nn.Linear):
        return layer is not None
    if layer is None or layer.groups > 1 or not isinstance(module, _CONVOLUTIONS):
        return False
    if reader.axis != -1 - len(module.kernel_size):  # it runs along the units
        return False
    unpadded = module.padding == "valid" or (not isinstance(module.padding, str) and not any(module.padding))
    return unpadded or module.padding_mode != "zeros"


def _move(module: nn.Module, where: Tensor, value: Tensor) -> None:
    """Add constant inputs of a dense layer or a convolution to its bias, and clear their weights."""
    if not where.any():
        return
    weight = module.get_parameter("weight").data
    indices = where.nonzero().flatten().to(weight.device)
    columns = weight.index_select(1, indices).double()
    shift = (columns.flatten(2).sum(2) if columns.dim() > 2 else columns) @ value.to(weight.device).double()
    if shift.any():
        bias = getattr(module, "bias", None)
        before = bias.data.double() if isinstance(bias, Tensor) else torch.zeros_like(shift)
        setattr(module, "bias", nn.Parameter((before + shift).to(weight.dtype), requires_grad=False))  # noqa: B010
    weight[:, indices] = 0.0


def _unread(network: CompactNetwork, graph: UnitGraph) -> Tensor:
    """Find units that matter to no logit: all weights that read them are 0, or belong to units that are unread."""
    alive = torch.ones(graph.num_units + 1, dtype=torch.bool)
    while True:
        now = torch.zeros_like(alive)
        now[-1] = True
        for name, module in network.backbone.named_modules():
            if is_recurrent(module, graph.uses, prefix_of(name)):  # its units read each other
                for own, _ in module.named_parameters():
                    now[graph.uses[f"{prefix_of(name)}{own}"][0].sides[0]] = True
        for reader in graph.readers:
            module = _layer_of(network, reader)
            if reader.argument == OUTPUT:  # of what functions make of it nothing is known
                now[reader.units] = True
                continue
            now[reader.units[_columns_in_use(module, _rows(graph, reader, alive), len(reader.units))]] = True
        if torch.equal(now, alive):
            return ~alive[:-1]
        alive = now


def _rows(graph: UnitGraph, reader: Reader, alive: Tensor) -> Tensor | None:
    """Return the outputs of a reader that matter; None for all."""
    units = None if reader.module == "" else graph.outputs.get(reader.module)
    return None if units is None else alive[units]


def _columns_in_use(module: nn.Module, rows: Tensor | None, width: int) -> Tensor:
    layer = Layer.of(module)
    axes: Sequence[Side | None] = () if layer is None else layer.tensors.get("weight", ())
    if layer is None or layer.groups > 1 or Side.INPUTS not in axes or Side.OUTPUTS not in axes:
        return torch.ones(width, dtype=torch.bool)
    weight = module.get_parameter("weight").movedim((axes.index(Side.OUTPUTS), axes.index(Side.INPUTS)), (0, 1))
    if weight.shape[1] != width:  # a convolution that runs along the units
        return torch.ones(width, dtype=torch.bool)
    used = (weight != 0).flatten(2).any(2) if weight.dim() > 2 else weight != 0
    used = used.cpu() if rows is None else used.cpu()[rows]
    return used.any(0)
