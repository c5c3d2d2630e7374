"""The poison test: whatever is called free may hold anything, and no output of a task that does not use it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hatrack.attachment import Attachment
from hatrack.masks import WeightLayout
from hatrack.modes import evaluation_mode
from hatrack.protection.frozen import attention_on_entries
from hatrack.tryouts import random_like
from hatrack.units import Role, UnitGraph

__all__ = ["find_leak", "find_leak_of_weights", "leak_of", "poison_value", "poisoned"]


def poison_value(dtype: torch.dtype) -> float:
    """Return how large a poisonous entry is: 1e30 where the type can hold it, 1e3 in half precision."""
    return 1e30 if torch.finfo(dtype).max > 1e30 else 1e3


@contextmanager
def poisoned(entries: dict[Tensor, Tensor], generator: torch.Generator) -> Iterator[None]:
    """While this lasts, some entries of tensors hold huge values of random sign.

    Args:
        entries: for each tensor a bool tensor of its shape, True where it is to be poisoned.
        generator: source of randomness, on the CPU.
    """
    originals = {tensor: tensor.detach().clone() for tensor in entries}
    try:
        with torch.no_grad():
            for tensor, where in entries.items():
                value = poison_value(tensor.dtype) * _signs(tensor, generator)
                torch.where(where, value, tensor, out=tensor)
        yield
    finally:
        with torch.no_grad():
            for tensor, original in originals.items():
                tensor.copy_(original)


_MANY = 100_000
"""Entries of tensors for which drawing a sign each would cost more than a forward pass."""


def _signs(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs of a tensor's shape and type; of large tensors products of one sign per index of each axis."""
    shapes = [(size, *(1,) * (tensor.dim() - axis - 1)) for axis, size in enumerate(tensor.shape)]
    signs = tensor.new_ones(())
    for shape in shapes if tensor.numel() > _MANY else [tensor.shape]:
        drawn = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        signs = signs * drawn.to(tensor.device, tensor.dtype)
    return signs


@torch.no_grad()
def find_leak(
    attachment: Attachment, graph: UnitGraph, backbone: nn.Module, example: Tensor, pairs: int = 2
) -> str | None:
    """Try the gates of a network that was just attached: under random masks, poison all that a mask leaves free.

    Two masks and their complements are tried, since on a narrow network a single one may say little.

    Args:
        attachment: the gates.
        graph: the units of the backbone.
        backbone: the network, which is left as it was.
        example: a batch; its values are replaced by random ones, since zeros would hide a leak.
        pairs: how many masks to try, each with its complement.

    Returns:
        The names of the parameters whose free entries changed a feature, or None when all is well.
    """
    generator = torch.Generator().manual_seed(0)
    norms = {name: norm.eval() for name, norm in attachment.copy_norms().items()}
    with evaluation_mode(backbone):
        on = torch.ones(graph.num_units, dtype=torch.bool, device=example.device)
        example = random_like(example, generator, lambda x: attachment.run(backbone, x, on, norms))
        for _ in range(pairs):
            mask = (torch.rand(graph.num_units, generator=generator) < 0.5).to(example.device)
            for used in (mask, ~mask):

                def features(used: Tensor = used) -> Tensor:
                    return attachment.run(backbone, example, used, norms)

                leak = leak_of(features, _free_entries(graph, backbone, used), generator)
                if leak is not None:
                    return leak
    return None


def _free_entries(graph: UnitGraph, backbone: nn.Module, used: Tensor) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """By name, the shared parameters and where the mask leaves them free."""
    attention = torch.cat([used, used.new_ones(1)])
    return {
        name: (parameter, ~attention_on_entries(graph.uses[name], attention, parameter.shape))
        for name, parameter in backbone.named_parameters(prefix="backbone")
        if graph.roles[name] is not Role.PER_TASK and parameter.is_floating_point()
    }


@torch.no_grad()
def find_leak_of_weights(
    features: Callable[[Tensor, Sequence[Tensor]], Tensor], backbone: nn.Module, layout: WeightLayout, example: Tensor
) -> str | None:
    """Try masks of weights: under random ones and their complements, poison what they leave free.

    What tasks have copies of is poisoned as a whole, since none of them may look at the backbone's own.

    Args:
        features: features of a batch under a mask for every masked weight, booleans.
        backbone: the network, which is left as it was.
        layout: its parameters.
        example: a batch; its values are replaced by random ones.

    Returns:
        The names of the tensors whose free entries changed a feature, or None when all is well.
    """
    generator = torch.Generator().manual_seed(0)
    weights = [backbone.get_parameter(name) for name in layout.masked]
    originals = {
        name: (value, torch.ones_like(value, dtype=torch.bool))
        for name, value in _originals(backbone, layout)
        if value.is_floating_point()
    }
    with evaluation_mode(backbone):
        whole = [torch.ones(w.shape, dtype=torch.bool, device=w.device) for w in weights]
        example = random_like(example, generator, lambda x: features(x, whole))
        for _ in range(2):
            drawn = [(torch.rand(w.shape, generator=generator) < 0.5).to(w.device) for w in weights]
            for masks in (drawn, [~mask for mask in drawn]):

                def of_masks(masks: Sequence[Tensor] = masks) -> Tensor:
                    return features(example, masks)

                free = zip(layout.masked, zip(weights, (~mask for mask in masks), strict=True), strict=True)
                leak = leak_of(of_masks, {**dict(free), **originals}, generator)
                if leak is not None:
                    return leak
    return None


def _originals(backbone: nn.Module, layout: WeightLayout) -> Iterator[tuple[str, Tensor]]:
    """Return what tasks have copies of."""
    for name in layout.copied:
        yield name, backbone.get_parameter(name)
    for name in layout.norms:
        norm = backbone.get_submodule(name)
        for own, value in (*norm.named_parameters(), *norm.named_buffers()):
            yield f"{name}.{own}", value


def leak_of(
    features: Callable[[], Tensor], free: Mapping[str, tuple[Tensor, Tensor]], generator: torch.Generator
) -> str | None:
    """Poison entries that should be free, and compare.

    Args:
        features: gives what must not change.
        free: by name, tensors and where they are free.
        generator: source of randomness, on the CPU.

    Returns:
        The names of the tensors whose free entries changed something, or None when all is well.
    """
    clean = features()
    with poisoned(dict(free.values()), generator):
        if _same(features(), clean):
            return None
    culprits = []
    for name, (parameter, where) in free.items():
        with poisoned({parameter: where}, generator):
            if not _same(features(), clean):
                culprits.append(name)
    return ", ".join(culprits or free)


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal to the bit, where "not a number" equals itself: an activation may give it on random input."""
    return torch.equal(one.nan_to_num(nan=0.0), other.nan_to_num(nan=0.0)) and torch.equal(one.isnan(), other.isnan())
