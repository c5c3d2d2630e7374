"""The poison test: whatever is called free may hold anything, and no output of a task that does not use it changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hatrack.gates import ActiveTask
from hatrack.protect import attention_on_entries
from hatrack.units import Role

if TYPE_CHECKING:
    from hatrack.network import HATNetwork

__all__ = ["find_leak", "poison_value", "poisoned"]


def poison_value(dtype: torch.dtype) -> float:
    """How large a poisonous entry is: 1e30 where the type can hold it, 1e3 in half precision."""
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
                signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
                value = poison_value(tensor.dtype) * signs.to(tensor.device, tensor.dtype)
                tensor.copy_(torch.where(where, value, tensor))
        yield
    finally:
        with torch.no_grad():
            for tensor, original in originals.items():
                tensor.copy_(original)


@torch.no_grad()
def find_leak(net: HATNetwork, example: Tensor) -> str | None:
    """Try the gates of a network that was just attached with a random mask, and poison all that the mask leaves free.

    Args:
        net: the network.
        example: a batch; floating-point values are replaced by random ones, since zeros would hide a leak.

    Returns:
        The names of the parameters whose free entries changed a feature, or None when all is well.
    """
    generator = torch.Generator().manual_seed(0)
    graph, active = net.units, net._active
    if example.is_floating_point():
        example = torch.randn(example.shape, generator=generator).to(example.device, example.dtype)
    mask = (torch.rand(graph.num_units, generator=generator) < 0.5).to(example.device)
    attention = torch.cat([mask, mask.new_ones(1)])
    free = {}
    for name, parameter in net.backbone.named_parameters(prefix="backbone"):
        if graph.roles[name] is not Role.PER_TASK and parameter.is_floating_point():
            free[name] = (parameter, ~attention_on_entries(graph.uses[name], attention, parameter.shape))

    norms = {name: switch.copy_for_task().eval() for name, switch in net._norm_switches().items()}

    def features() -> Tensor:
        with _evaluation(net), _masked(active, mask, norms):
            result: Tensor = net._gates[-1](net.backbone(example))
            return result

    clean = features()
    with poisoned(dict(free.values()), generator):
        if torch.equal(features(), clean):
            return None
    culprits = []
    for name, (parameter, where) in free.items():
        with poisoned({parameter: where}, generator):
            if not torch.equal(features(), clean):
                culprits.append(name)
    return ", ".join(culprits or free)


@contextmanager
def _masked(active: ActiveTask, mask: Tensor, norms: dict[str, torch.nn.Module]) -> Iterator[None]:
    active.activate(mask, norms)
    try:
        yield
    finally:
        active.deactivate()


@contextmanager
def _evaluation(net: HATNetwork) -> Iterator[None]:
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
