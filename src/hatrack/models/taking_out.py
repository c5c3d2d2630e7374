"""Taking a consolidated task out of a network, as a plain module of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hatrack.compact import CompactNetwork, TaskParts, bake, cut_task, extract_baked, extract_task
from hatrack.errors import InputError, UnsupportedError
from hatrack.gating.attachment import without_gates
from hatrack.masks.task_list import StateT
from hatrack.models.answering import ask, logits_of
from hatrack.models.masking import Masking
from hatrack.state.tryouts import random_like, says_something

if TYPE_CHECKING:
    from hatrack.models.base import MaskedNetwork
    from hatrack.models.unit_masking import UnitMasking
    from hatrack.models.weight_masking import WeightMasking

__all__ = ["cut_units", "extract", "extract_units", "extract_weights"]


@torch.no_grad()
def extract(net: MaskedNetwork[StateT], task: str, example: Tensor | None) -> CompactNetwork:
    """Return a consolidated task of a network as a plain module of its own.

    Args:
        net: the network.
        task: the task.
        example: samples to compare on; random ones if None.

    Raises:
        InputError: there is no such task, or it is not consolidated.
        UnsupportedError: the plain module does not give the network's logits.
    """
    net.masking.require_attached()
    state = net.tasks.named(task)
    with net.masking.evaluating():
        net.admit(net.masking.example(16) if example is None else example, [state])
    return ask(net, [state], lambda masking, _: masking.extract(task, example))


def extract_units(masking: UnitMasking, task: str, example: Tensor | None) -> CompactNetwork:
    """Return a task of masked units as a network of its own, which says how large it is.

    Args:
        masking: the masks.
        task: the task.
        example: samples to compare on; random ones if None.

    Raises:
        InputError: there is no such task, or it is not consolidated.
        UnsupportedError: masks are soft, or the backbone without gates does not give the gated network's logits.
    """
    return extract_task(_source(masking, task, example))


def cut_units(masking: UnitMasking, task: str) -> CompactNetwork:
    """Return a task of masked units as a network of its own; otherwise as :func:`extract_units`."""
    return cut_task(_source(masking, task, None))[0]


def _source(masking: UnitMasking, task: str, example: Tensor | None) -> TaskParts:
    state = _consolidated(masking, task)
    mask = state.mask
    if mask.dtype != torch.bool:
        raise UnsupportedError(f"the mask of {task!r} is soft: every unit is used a little, and none can be cut out")
    ask = _asking(masking, state)
    tried = [] if example is None else [(example, ask(example))]
    if not tried or len(tried[0][0]) < 2 or not says_something(tried[0][1]):
        drawn = random_like(masking.example(16), torch.Generator().manual_seed(0), ask)
        tried.append((drawn, ask(drawn)))
    backbone = without_gates(masking.backbone)
    masking.own_state.write_into(backbone, state)
    return TaskParts(task, backbone, masking.norms(state), masking.graph, mask, state.head, tried)


def extract_weights(masking: WeightMasking, task: str, example: Tensor | None) -> CompactNetwork:
    """Return a task of masked weights as a network of its own, with zeros where its masks are off.

    Args:
        masking: the masks.
        task: the task.
        example: samples to compare on; random ones if None.

    Raises:
        InputError: there is no such task, or it is not consolidated.
        UnsupportedError: the backbone with zeros written in does not give the masked network's logits.
    """
    state = _consolidated(masking, task)
    ask = _asking(masking, state)
    if example is None:
        example = random_like(masking.example(16), torch.Generator().manual_seed(0), ask)
    masks = dict(zip(masking.layout.masked, masking.settled_masks(state), strict=True))
    copies, norms = masking.copies_of(state)
    backbone = bake(masking.backbone, masks, dict(zip(masking.layout.copied, copies, strict=True)), norms)
    masking.own_state.write_into(backbone, state)
    return extract_baked(task, backbone, state.head, ask, example)


def _consolidated(masking: Masking[StateT], task: str) -> StateT:
    state = masking.tasks.named(task)
    if not state.consolidated:
        raise InputError(f"task {task!r} is still in training: consolidate it before it is extracted")
    return state


def _asking(masking: Masking[StateT], state: StateT) -> Callable[[Tensor], Tensor]:
    """Return a function that gives the masked network's logits of a batch, in evaluation mode."""

    def ask(x: Tensor) -> Tensor:
        with masking.evaluating():
            return logits_of(masking, x, state)

    return ask
