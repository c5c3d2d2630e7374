"""Moving a network to another device, and converting its numbers."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hatrack.errors import InputError

if TYPE_CHECKING:
    from hatrack.models.base import MaskedNetwork

__all__ = ["convert"]


def convert(net: MaskedNetwork[Any], change: Callable[[Tensor], Tensor], apply: Callable[[], object]) -> None:
    """Move or convert a network, and derive its protection again.

    Args:
        net: the network.
        change: function that moves or converts a tensor.
        apply: applies that function to the network's parameters and buffers, as torch does.

    Raises:
        GuaranteeError: protected entries had moved before a conversion, which would hide it.
        InputError: the device is "meta", which keeps no values; or values are not kept, as by ``to_empty``.
    """
    if change(torch.zeros(1)).device.type == "meta":
        raise InputError(
            'a network of masks cannot go to the device "meta", where all that its tasks rely on would be lost; '
            "move a copy of the backbone there, before it is attached"
        )
    if len(net.tasks) and not _keeps_values(change):
        raise InputError(
            "this would put other values in the place of all that the tasks of a network of masks rely on, as to_empty "
            "does; call it on the backbone before it is attached"
        )
    protection = net.protection
    protection.require_same_parts()
    converting = any(change(torch.zeros(1, dtype=dtype)).dtype != dtype for dtype in (torch.float32, torch.float64))
    relied_on = [tensor.detach().clone() for tensor, _ in protection.plan.all()] if converting else []
    if converting or protection.digests:  # moved entries would get new digests
        protection.check()
    apply()
    if any(not torch.equal(change(before).to(before.dtype), before) for before in relied_on):
        warnings.warn(
            "this conversion rounds weights: the outputs of consolidated tasks are other ones from here on, and "
            "converting back does not bring the old ones back; convert a copy (copy.deepcopy) to keep them",
            stacklevel=5,
        )
    net.masking.example_input = net.masking.example_input.converted(change)
    protection.report_layouts(stacklevel=7)
    protection.hooks.lay_memory_out()
    net.renew_protection()
    if converting:
        protection.renew_digests()


def _keeps_values(change: Callable[[Tensor], Tensor]) -> bool:
    """Return whether a function moves or converts numbers, and does not make others of them.

    The numbers are small whole ones, which all types have; drawn anew, so that no memory that was freed holds them.
    """
    drawn = torch.tensor([*secrets.token_bytes(32)], dtype=torch.float32).remainder_(101.0)
    return torch.equal(change(drawn.clone()).to(drawn), drawn)
