"""Widening of a network in place, between tasks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hatrack.errors import GuaranteeError, InputError
from hatrack.growth.policy import plan_growth, require_growable
from hatrack.growth.tasks import widen_optimizer
from hatrack.growth.widening import widen
from hatrack.masks.task_list import StateT
from hatrack.models.answering import fixed_logits
from hatrack.state.tryouts import largest
from hatrack.state.undo import UndoLog
from hatrack.units import UnitGraph

if TYPE_CHECKING:
    from hatrack.models.base import MaskedNetwork

__all__ = ["grow", "grow_if_full"]


def grow(net: MaskedNetwork[StateT], groups: Mapping[str, int], generator: torch.Generator | None) -> None:
    """Widen a network; the caller undoes all of it after an error.

    Args:
        net: the network.
        groups: numbers of units to add, by group.
        generator: source of randomness on the CPU; torch's global one if None.

    Raises:
        InputError: there is no such group, it cannot be widened, or a task is in training.
        GuaranteeError: protected entries had moved before, or outputs would change.
    """
    masking = net.masking
    masking.require_attached()
    net.protection.require_same_shapes()
    if not isinstance(groups, Mapping):
        raise InputError(
            "groups must say how many units to add to which group, such as {'fc1': 8}, and be no "
            f"{type(groups).__name__}, {groups!r}; net.units names the groups"
        )
    graph, training = masking.units_now(), net.tasks.in_training
    require_growable(groups, graph)
    if training is not None:
        raise InputError(f"the network grows between tasks: consolidate {training.name!r} first")
    net.protection.put_back()
    net.protection.check()
    before = _answers(net)
    with torch.inference_mode(False), torch.no_grad():
        _widen(net, graph, groups, generator, UndoLog())
        net.renew()
        differing, leak = _differing(before, _answers(net)), masking.find_leak(masking.example())
        if differing or leak is not None:
            what = f"the outputs of {', '.join(differing)}" if differing else f"what protects {leak}"
            raise GuaranteeError(f"widening {', '.join(groups)} would change {what}; nothing was changed")


def _widen(
    net: MaskedNetwork[StateT],
    graph: UnitGraph,
    groups: Mapping[str, int],
    generator: torch.Generator | None,
    undo_log: UndoLog,
) -> None:
    """Widen a backbone together with its tasks and the state of optimizers.

    Args:
        net: the network.
        graph: the units as they are.
        groups: numbers of units to add, by group.
        generator: source of randomness on the CPU; torch's global one if None.
        undo_log: records all changes.

    Raises:
        InputError: one of the groups cannot be widened.
    """
    masking = net.masking
    assert masking.origin is not None
    masking.detach()
    scales = masking.origin.initial_scales
    widening = widen(net.backbone, graph, groups, masking.analyze, scales, generator, undo_log)
    places = {**widening.places(), **masking.widen_tasks(widening, undo_log)}
    for optimizer in net.protection.hooks.optimizers():
        widen_optimizer(optimizer, places, undo_log)
    masking.fit(widening.graph)


def grow_if_full(net: MaskedNetwork[StateT], generator: torch.Generator | None) -> None:
    """Widen the groups of which too little is free by the network's policy, as far as they can be.

    Args:
        net: the network.
        generator: source of randomness on the CPU; torch's global one if None.
    """
    masking = net.masking
    if net.growth is None or not masking.is_attached:
        return
    graph = masking.units_now()
    assert masking.origin is not None
    wanted = plan_growth(net.growth, masking.room(graph), masking.origin.widths)
    refusals = {name: _why_not(net, {name: count}) for name, count in wanted.items()}
    possible = {name: count for name, count in wanted.items() if refusals[name] is None}
    if possible:
        net.grow(possible, generator=generator)
    elif wanted:
        warnings.warn(f"no full group can grow: {next(iter(refusals.values()))}", stacklevel=4)


def _why_not(net: MaskedNetwork[StateT], groups: Mapping[str, int]) -> str | None:
    """Widen on trial and undo it; return the reason why that does not work, None if it does."""
    masking, log, refusal = net.masking, UndoLog(), None
    graph = masking.units_now()
    with torch.inference_mode(False), torch.no_grad():
        try:
            _widen(net, graph, groups, torch.Generator(), log)
        except InputError as error:  # after any other error the whole of add_task is taken back
            refusal = str(error)
        log.undo()
        masking.fit(graph)
        net.renew_protection()
    return refusal


def _answers(net: MaskedNetwork[StateT]) -> dict[str, Tensor]:
    return {state.name: fixed_logits(net.masking, state, 16) for state in net.tasks.consolidated}


def _differing(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tasks whose logits changed by more than rounding in kernels of another shape.

    Args:
        before: logits of every task on the same samples before.
        now: logits by the same names now.
    """
    differing = []
    for name, logits in before.items():
        # On a GPU products may be rounded to ten bits (TF32), whatever the type.
        tolerance = max(100 * torch.finfo(logits.dtype).eps, 0.01 if logits.is_cuda else 0.0)
        if not torch.allclose(now[name], logits, rtol=0.0, atol=tolerance * largest(logits), equal_nan=True):
            differing.append(name)
    return differing
