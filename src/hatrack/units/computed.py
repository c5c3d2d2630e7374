"""Weights that a layer computes from parameters before every use: weight norm, and torch's parametrizations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from hatrack.units.coupling import UNGATED

__all__ = ["computed_weights", "origins", "why_it_moves"]

Sides = tuple[Tensor, ...]


def origins(module: nn.Module, name: str, sides: Sides) -> Iterator[tuple[nn.Parameter, Sides]]:
    """Find the parameters that a layer computes one of its weights from, with the labels at their ends.

    Args:
        module: the layer.
        name: the layer's name of the weight, such as ``"weight"``.
        sides: the labels at the ends of the weight, each broadcastable to its shape.

    Yields:
        A plain parameter, with its ends as they are; or else all parameters that the weight is computed from. In
        weight norm an entry reaches a whole slice by way of the norm, so it is frozen with the slice; any other
        computation may mix all entries, so its parameters are frozen wholly.
    """
    value: Any = getattr(module, name, None)
    if isinstance(value, nn.Parameter):
        yield value, sides
    elif parametrize.is_parametrized(module, name):
        steps: Any = module.parametrizations[name]  # type: ignore[index]
        norms = [step for step in steps if isinstance(step, parametrizations._WeightNorm)]
        reaching = _slices(sides, value, norms[0].dim) if len(steps) == 1 == len(norms) else None
        for parameter in steps.parameters():
            yield parameter, reaching or (torch.tensor(UNGATED),)
    else:
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
                yield getattr(module, f"{name}_orig"), sides  # times a constant mask, entry by entry
            if isinstance(hook, WeightNorm) and hook.name == name:
                reaching = _slices(sides, value, hook.dim)
                yield getattr(module, f"{name}_g"), reaching
                yield getattr(module, f"{name}_v"), reaching


def computed_weights(module: nn.Module) -> Iterator[str]:
    """Yield the names of attributes of a layer that hooks compute from its parameters before every use."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            yield hook._tensor_name
        elif isinstance(hook, (WeightNorm, SpectralNorm)):
            yield hook.name


def why_it_moves(module: nn.Module) -> str | None:
    """Explain why running a layer changes it, however its parameters are protected; None if it does not."""
    if getattr(module, "max_norm", None) is not None and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "max_norm rescales entries while they are looked up, so they could not be protected; leave it out"
    hooks = module._forward_pre_hooks.values()
    spectral = isinstance(module, parametrizations._SpectralNorm) or any(isinstance(h, SpectralNorm) for h in hooks)
    if not spectral:
        return None
    return (
        "spectral norm estimates anew in every training step, by which old tasks' outputs would change; remove it "
        "(torch.nn.utils.parametrize.remove_parametrizations, or remove_spectral_norm), or use weight norm"
    )


def _slices(sides: Sides, value: Tensor, axis: int) -> Sides:
    """Return the ends that decide on a slice of a weight as a whole: those along the axis of its norms.

    Ends along the other axes are left out: an entry that no task reads is still a part of the norm.
    """
    if axis == -1:
        return (torch.tensor(UNGATED),)  # a single norm for the whole weight
    kept = []
    for side in sides:
        rows = side.expand(value.shape).movedim(axis, 0).flatten(1)
        if bool((rows == rows[:, :1]).all()):
            kept.append(rows[:, 0].view(-1, *(1,) * (value.dim() - 1 - axis % value.dim())))
    return tuple(kept) or (torch.tensor(UNGATED),)
