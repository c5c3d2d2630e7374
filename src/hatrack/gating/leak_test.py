"""Leak test: entries that a mask leaves free get huge values, which must not change any output under that mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from hatrack.gating.attachment import Attachment
from hatrack.masks import WeightLayout
from hatrack.protection.frozen import attention_on_entries
from hatrack.state.tryouts import random_like
from hatrack.state.undo import copies_of
from hatrack.support.inputs import Inputs, device_of
from hatrack.support.modes import evaluation_mode
from hatrack.units import ParameterUse, Role, UnitGraph
from hatrack.units.coupling import compact

__all__ = ["find_leak", "find_leak_of_weights", "overwrite"]

_MANY = 100_000
"""Number of entries from which on drawing a sign for each would cost more than a forward pass."""

_AT_ONCE = 2**16
"""Number of entries that are overwritten at once: as many as stay in a CPU's cache."""

_FEW = 8
"""Number of units of a group below which a single mask may leave too little of it on or off."""

_Entries = Mapping[str, tuple[Tensor, Callable[[], Tensor]]]
"""Tensors by name, each with a function that returns booleans of its shape: True where entries are free."""


@torch.no_grad()
def find_leak(
    attachment: Attachment,
    graph: UnitGraph,
    backbone: nn.Module,
    batch: Inputs,
    pairs: int | None = None,
    is_drawn: bool = False,
) -> str | None:
    """Test the gates of a network under random masks of units.

    A mask and its complement are used. Where a group has few units, a single mask may find little, and a second one is
    used with its complement.

    Args:
        attachment: the gates.
        graph: the units of the backbone.
        backbone: the network, which is left as it was.
        batch: a batch; its values are replaced by random ones, since zeros would hide a leak.
        pairs: number of masks to try, each with its complement; None for as many as the network needs.
        is_drawn: whether the batch is random already, and is taken as it is.

    Returns:
        The names of the parameters whose free entries changed a feature; None if there is no leak.
    """
    if pairs is None:
        pairs = 1 if all(group.size >= _FEW for group in graph.groups) else 2
    norms = {name: norm.eval() for name, norm in attachment.copy_norms().items()}

    def features(x: Inputs, masks: Sequence[Tensor]) -> Tensor:
        return attachment.run(backbone, x, masks[0], norms)

    def free(masks: Sequence[Tensor]) -> _Entries:
        attention = torch.cat([masks[0], masks[0].new_ones(1)])
        return {
            name: (parameter, partial(_free_entries, graph.uses[name], attention, parameter.shape))
            for name, parameter in backbone.named_parameters(prefix="backbone")
            if graph.roles[name] is not Role.PER_TASK and parameter.is_floating_point()
        }

    everything = [torch.ones(graph.num_units, dtype=torch.bool, device=device_of(batch))]
    return _leak_under_random_masks(backbone, batch, everything, features, free, pairs, is_drawn)


@torch.no_grad()
def find_leak_of_weights(
    features: Callable[[Inputs, Sequence[Tensor]], Tensor],
    backbone: nn.Module,
    layout: WeightLayout,
    batch: Inputs,
    is_drawn: bool = False,
) -> str | None:
    """Test a network under random masks of weights.

    Tensors of which tasks have copies are overwritten as a whole, since no task may read the backbone's own.

    Args:
        features: computes features of a batch under a mask for every masked weight, booleans.
        backbone: the network, which is left as it was.
        layout: its parameters.
        batch: a batch; its values are replaced by random ones.
        is_drawn: whether the batch is random already, and is taken as it is.

    Returns:
        The names of the tensors whose free entries changed a feature; None if there is no leak.
    """
    weights = [backbone.get_parameter(name) for name in layout.masked]
    originals = {
        name: (value, partial(torch.ones_like, value, dtype=torch.bool))
        for name, value in _copied_tensors(backbone, layout)
        if value.is_floating_point()
    }

    def free(masks: Sequence[Tensor]) -> _Entries:
        off = zip(weights, (mask.logical_not for mask in masks), strict=True)
        return {**dict(zip(layout.masked, off, strict=True)), **originals}

    everything = [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
    return _leak_under_random_masks(backbone, batch, everything, features, free, 2, is_drawn)


def _free_entries(uses: Iterable[ParameterUse], attention: Tensor, shape: torch.Size) -> Tensor:
    """Return booleans of a parameter's shape: True where a mask of units, ``(U + 1,)``, leaves its entries free."""
    return (~compact(attention_on_entries(uses, attention, shape))).expand(shape)


def _copied_tensors(backbone: nn.Module, layout: WeightLayout) -> Iterator[tuple[str, Tensor]]:
    """Yield names and values of the tensors of which tasks have copies."""
    for name in layout.copied:
        yield name, backbone.get_parameter(name)
    for name in layout.norms:
        norm = backbone.get_submodule(name)
        for own, value in (*norm.named_parameters(), *norm.named_buffers()):
            yield f"{name}.{own}", value


def _leak_under_random_masks(
    backbone: nn.Module,
    batch: Inputs,
    everything: Sequence[Tensor],
    features: Callable[[Inputs, Sequence[Tensor]], Tensor],
    free: Callable[[Sequence[Tensor]], _Entries],
    pairs: int,
    is_drawn: bool,
) -> str | None:
    """Test random masks and their complements, and return the names of the first tensors that leak.

    Args:
        backbone: the network.
        batch: a batch, for its shape and type.
        everything: masks that are on everywhere, booleans.
        features: computes features of a batch under masks.
        free: returns the entries that masks leave free.
        pairs: number of masks to try, each with its complement.
        is_drawn: whether the batch is random already, and is taken as it is.
    """
    generator = torch.Generator().manual_seed(0)
    with evaluation_mode(backbone):
        x = batch if is_drawn else random_like(batch, generator, lambda drawn: features(drawn, everything))
        tensors = {name: tensor for name, (tensor, _) in free(everything).items()}
        originals = dict(zip(tensors, copies_of([*tensors.values()]), strict=True))
        for _ in range(pairs):
            drawn = [(torch.rand(on.shape, generator=generator) < 0.5).to(on.device) for on in everything]
            for masks in (drawn, [~mask for mask in drawn]):
                asked = partial(features, x, masks)
                leak = _leak_of(asked, free(masks), originals, generator)
                if leak is not None:
                    return leak
    return None


def _leak_of(
    features: Callable[[], Tensor], free: _Entries, originals: Mapping[str, Tensor], generator: torch.Generator
) -> str | None:
    """Overwrite entries that should be free, and return the names of the tensors that changed a feature."""
    clean = features()

    def leaks(entries: _Entries) -> bool:
        with _overwritten(entries, originals, generator):
            return not _same(features(), clean)

    if not leaks(free):
        return None
    return ", ".join([name for name, entries in free.items() if leaks({name: entries})] or free)


@contextmanager
def _overwritten(entries: _Entries, originals: Mapping[str, Tensor], generator: torch.Generator) -> Iterator[None]:
    """Overwrite free entries with huge values of random sign for the duration of a block; restore copies afterwards."""
    try:
        for tensor, free in entries.values():
            overwrite(tensor, free(), generator)
        yield
    finally:
        for name, (tensor, _) in entries.items():
            tensor.copy_(originals[name])


def overwrite(tensor: Tensor, free: Tensor, generator: torch.Generator) -> None:
    """Overwrite free entries, booleans of the tensor's shape, with huge values of random sign.

    Each entry of a small tensor has a sign of its own; in large ones it is the product of one sign per index of each
    axis. These are written in pieces, since a tensor of a parameter's size would cost more than what is computed.
    """
    huge = 1e30 if torch.finfo(tensor.dtype).max > 1e30 else 1e3  # float16 holds no more
    if tensor.numel() <= _MANY:
        torch.where(free, huge * _signs(tensor, tensor.shape, generator), tensor, out=tensor)
        return
    first = _signs(tensor, (len(tensor), *(1,) * (tensor.dim() - 1)), generator)
    rest = tensor.new_full((), huge)
    for axis in range(1, tensor.dim()):
        rest = rest * _signs(tensor, (tensor.shape[axis], *(1,) * (tensor.dim() - axis - 1)), generator)
    rows = max(1, _AT_ONCE // rest.numel())
    for part, where, signs in zip(*(torch.split(each, rows) for each in (tensor, free, first)), strict=True):
        torch.where(where, signs * rest, part, out=part)


def _signs(tensor: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw signs, of the type and on the device of a tensor."""
    return (torch.randint(0, 2, tuple(shape), generator=generator) * 2 - 1).to(tensor.device, tensor.dtype)


def _same(one: Tensor, other: Tensor) -> bool:
    """Compare to the bit; "not a number" equals itself, since an activation may give it on random input."""
    return torch.equal(one.nan_to_num(nan=0.0), other.nan_to_num(nan=0.0)) and torch.equal(one.isnan(), other.isnan())
