"""Heads that users bring: checks before a task gets one."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from hatrack.errors import DOES_NOT_RUN, InputError, UnsupportedError
from hatrack.masks.task_list import StateT
from hatrack.state.movement import movement_of, without_trace
from hatrack.state.tryouts import memory_of
from hatrack.support.inputs import tensor_of

if TYPE_CHECKING:
    from hatrack.models.base import MaskedNetwork

__all__ = ["require_usable_head"]


@torch.no_grad()
def require_usable_head(net: MaskedNetwork[StateT], name: str, head: int | nn.Module) -> None:
    """Check that a task can have a head: it runs on features, is nobody else's, and gives the same from call to call.

    Args:
        net: the network.
        name: name of the task.
        head: the head; a number of classes, for a linear one, needs no check.

    Raises:
        InputError: the head does not run on the features, is not initialised, or shares a tensor with another part.
        UnsupportedError: in evaluation mode the head changes itself, or draws random numbers.
    """
    if not isinstance(head, nn.Module):
        return
    taken = {memory_of(tensor) for tensor in (*net.parameters(), *net.buffers())}
    for own, tensor in (*head.named_parameters(), *head.named_buffers()):
        if isinstance(tensor, UninitializedParameter):
            raise InputError(
                f"{own} of the head of task {name!r} is not initialised yet; run the head on features once"
            )
        if memory_of(tensor) in taken:
            raise InputError(f"{own} of the head of task {name!r} is a part of this network already; give it its own")
    features = net.masking.example_features()
    tried = copy.deepcopy(head).eval().to(features.device, features.dtype)
    before = copy.deepcopy(tried)
    try:
        with without_trace():
            first, second = (tensor_of(tried(features)) for _ in range(2))
    except DOES_NOT_RUN as error:
        raise InputError(
            f"the head of task {name!r} does not run on features of shape {tuple(features.shape)}: {error}"
        ) from error
    movement = movement_of(before, tried, ())
    if movement.buffers or movement.attributes:
        raise UnsupportedError(
            f"the head of task {name!r} changes {', '.join((*movement.buffers, *movement.attributes))} in evaluation "
            "mode, so that its outputs could change; let it change nothing then"
        )
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise UnsupportedError(
            f"the head of task {name!r} gives other outputs from call to call in evaluation mode; randomness for "
            "training has to be off then, as that of torch.nn.Dropout is"
        )
