"""Taking a consolidated task out of a network, as a plain module of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hatrack.compact import CompactNetwork, TaskParts, bake, cut_task, extract_baked, extract_task
from hatrack.compact.modules import whole_head
from hatrack.compact.recurrent import in_one_chunk
from hatrack.errors import DOES_NOT_RUN, InputError, UnsupportedError
from hatrack.gating.attachment import without_gates
from hatrack.gating.norms import let_train
from hatrack.masks.task_list import StateT
from hatrack.masks.tasks import UnitTask, WeightTask
from hatrack.models.answering import ask, logits_of
from hatrack.models.masking import Masking
from hatrack.state.tryouts import random_like, says_something
from hatrack.support.inputs import Inputs, are_alike, tensor_of
from hatrack.support.modes import plain_modes

if TYPE_CHECKING:
    from hatrack.models.base import MaskedNetwork
    from hatrack.models.unit_masking import UnitMasking
    from hatrack.models.weight_masking import WeightMasking

__all__ = ["cut_units", "extract_units", "extract_weights", "take_out", "take_whole"]


@plain_modes()
@torch.no_grad()
def take_out(
    net: MaskedNetwork[StateT], task: str, example: Inputs | None, build: Callable[[Any, StateT], CompactNetwork]
) -> CompactNetwork:
    """Return a consolidated task of a network as a plain module of its own.

    Args:
        net: the network.
        task: name of the task.
        example: samples that the module is going to be compared on; random ones if None.
        build: builds the module from the masking and the task's state.

    Raises:
        InputError: there is no such task, or it is not consolidated.
        UnsupportedError: the plain module does not give the network's logits.
    """
    net.masking.require_attached()
    state = net.tasks.named(task)
    if not state.consolidated:
        raise InputError(f"task {task!r} is still in training: consolidate it before it is extracted")
    with net.masking.evaluating():
        asked = net.masking.example(16) if example is None else net.masking.interface.accepted(example)
        net.admit(asked, [state])
    return ask(net, [state], lambda masking, states: build(masking, states[0]))


@torch.no_grad()
def take_whole(net: MaskedNetwork[Any], task: str) -> CompactNetwork:
    """Return a copy of the whole backbone with a task's head, without gates and masks, in evaluation mode.

    It is as large and as fast as a network without hard attention, to compare times with. Its answers are not those of
    the task.

    Args:
        net: the network.
        task: name of the task.

    Raises:
        InputError: there is no such task.
    """
    state, interface = net.tasks.named(task), net.masking.interface
    backbone = copy.deepcopy(without_gates(net.masking.backbone))
    in_one_chunk(backbone)
    head = whole_head(copy.deepcopy(state.head), interface.unit_axis, is_own=state.num_classes is None)
    return CompactNetwork(backbone, head, interface=interface).eval().requires_grad_(False)


def extract_units(masking: UnitMasking, state: UnitTask, example: Inputs | None) -> CompactNetwork:
    """Return a task of masked units as a network of its own, with a summary of its size.

    Args:
        masking: the masks.
        state: the consolidated task.
        example: samples to compare on; random ones if None.

    Raises:
        UnsupportedError: masks are soft, or the backbone without gates does not give the gated network's logits.
    """
    return extract_task(_parts_of(masking, state, example))


def cut_units(masking: UnitMasking, state: UnitTask) -> CompactNetwork:
    """Return a task of masked units as a network of its own, compared on random samples and without a summary.

    Args:
        masking: the masks.
        state: the consolidated task.

    Raises:
        UnsupportedError: masks are soft, or the backbone without gates does not give the gated network's logits.
    """
    return cut_task(_parts_of(masking, state, None))[0]


def _parts_of(masking: UnitMasking, state: UnitTask, example: Inputs | None) -> TaskParts:
    """Return the parts of a task's network, as :func:`extract_units` takes its arguments."""
    mask = state.mask
    if mask.dtype != torch.bool:
        raise UnsupportedError(
            f"the mask of {state.name!r} is soft: every unit is used a little, and none can be cut out"
        )
    logits = _logits_in_evaluation(masking, state)
    interface = masking.interface
    example = None if example is None else interface.accepted(example)
    tried = [] if example is None else [(example, logits(example))]
    if not tried or interface.samples(example) < 2 or not says_something(tried[0][1]):
        drawn = random_like(masking.example(16), torch.Generator().manual_seed(0), logits)
        tried.append((drawn, logits(drawn)))
    tried += _of_other_kinds(masking, logits)
    backbone = without_gates(masking.backbone)
    masking.own_state.write_into(backbone, state)
    is_own = state.num_classes is None
    return TaskParts(
        state.name, backbone, masking.norms(state), masking.graph, mask, state.head, tried, interface, is_own
    )


def extract_weights(masking: WeightMasking, state: WeightTask, example: Inputs | None) -> CompactNetwork:
    """Return a task of masked weights as a network of its own, with zeros where its masks are off.

    Args:
        masking: the masks.
        state: the consolidated task.
        example: samples to compare on; random ones if None.

    Raises:
        UnsupportedError: the backbone with zeros written in does not give the masked network's logits.
    """
    logits = _logits_in_evaluation(masking, state)
    interface = masking.interface
    if example is None:
        example = random_like(masking.example(16), torch.Generator().manual_seed(0), logits)
    example = interface.accepted(example)
    masks = dict(zip(masking.layout.masked, masking.settled_masks(state), strict=True))
    copies, norms = masking.copies_of(state)
    backbone = bake(masking.backbone, masks, dict(zip(masking.layout.copied, copies, strict=True)), norms)
    let_train(backbone)
    masking.own_state.write_into(backbone, state)
    is_own = state.num_classes is None
    tried = [(example, logits(example)), *_of_other_kinds(masking, logits)]
    return extract_baked(state.name, backbone, state.head, logits, tried, interface, is_own)


def _of_other_kinds(
    masking: Masking[StateT], logits: Callable[[Inputs], Tensor], most: int = 8
) -> list[tuple[Inputs, Tensor]]:
    """Return random batches of kinds of inputs that the network was asked about beside the example's, with logits.

    Args:
        masking: the masks.
        logits: computes the masked network's logits of a batch.
        most: largest number of kinds.
    """
    kinds = [masking.example_input.kind]
    for kind in masking.kinds_of_inputs():
        if len(kinds) <= most and not any(are_alike(kind, known) for known in kinds):
            kinds.append(kind)
    tried = []
    for kind in kinds[1:]:
        with suppress(*DOES_NOT_RUN):  # such as a network of whole groups of samples
            x = masking.example_input.batch(4, masking.device, kind)
            x = random_like(x, torch.Generator().manual_seed(0), logits)
            tried.append((x, logits(x)))
    return tried


def _logits_in_evaluation(masking: Masking[StateT], state: StateT) -> Callable[[Inputs], Tensor]:
    """Return a function that gives the masked network's outputs of a batch as one tensor, in evaluation mode."""

    def logits(x: Inputs) -> Tensor:
        with masking.evaluating():
            return tensor_of(logits_of(masking, x, state))

    return logits
