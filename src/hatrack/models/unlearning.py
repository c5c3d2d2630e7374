"""Unlearning a task of a network exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hatrack.errors import GuaranteeError, InputError
from hatrack.masks import union
from hatrack.masks.task_list import StateT
from hatrack.models.answering import fixed_logits
from hatrack.models.forgetting import Forgotten, report

if TYPE_CHECKING:
    from hatrack.models.base import MaskedNetwork

__all__ = ["unlearn"]


def unlearn(net: MaskedNetwork[StateT], name: str, generator: torch.Generator | None) -> Forgotten:
    """Remove a task and all weights that no other task uses; the caller undoes all of it after an error.

    Args:
        net: the network.
        name: the task.
        generator: draws new values, on the CPU; torch's global one if None.

    Returns:
        Numbers of erased entries, and of entries shared with other tasks.

    Raises:
        InputError: there is no such task, or another one is in training.
        GuaranteeError: protected entries had moved before, or other tasks would change.
    """
    masking, tasks = net.masking, net.tasks
    masking.require_attached()
    state, training = tasks.named(name), tasks.in_training
    if training is not None and training is not state:
        raise InputError(f"consolidate or forget {training.name!r}, which is in training, before {name!r}")
    net.protection.put_back()
    net.protection.check()
    masking.notice_settings()  # before shared norms go over to another task, and to its record
    with torch.inference_mode(False), torch.no_grad():
        rest = [other for other in tasks if other is not state]
        others = {other.name: masking.entries_of(other) for other in rest}
        shared = {id(parameter) for parameter in masking.shared_parameters()}
        parameters = {n: p for n, p in net.backbone.named_parameters() if id(p) in shared}
        erased = {
            key: ~union([used[key] for used in others.values() if key in used], parameter)
            for key, parameter in parameters.items()
            if parameter.is_floating_point()
        }
        result = report(name, masking.entries_of(state), others, erased.values())
        _erase(net, erased, rest, generator)
        masking.remove(state, rest[0] if rest and tasks[0] is state else None)
        del tasks[[*tasks].index(state)]
        net.recognisers.drop()
        erased_by_parameter = {parameters[key]: entries for key, entries in erased.items()}
        net.protection.hooks.remove(list(state.parameters()), erased_by_parameter)
        net.renew()
    return result


def _erase(
    net: MaskedNetwork[StateT],
    erased: Mapping[str, Tensor],
    others: Sequence[StateT],
    generator: torch.Generator | None,
) -> None:
    """Draw entries anew, and check that the logits of other tasks stay the same to the bit."""
    before = {name: net.backbone.get_parameter(name).detach().clone() for name in erased}
    answers = [fixed_logits(net.masking, state) for state in others]
    for name, where in erased.items():
        parameter = net.backbone.get_parameter(name)
        parameter.copy_(torch.where(where, net.initialization.draw(net.backbone, name, generator), parameter))
        parameter.grad = None
    now = [fixed_logits(net.masking, state) for state in others]
    moved = [s.name for s, was, says in zip(others, answers, now, strict=True) if not torch.equal(was, says)]
    if moved:
        for name, values in before.items():
            net.backbone.get_parameter(name).copy_(values)
        raise GuaranteeError(f"forgetting would change the outputs of {', '.join(moved)}; nothing was changed")
    net.masking.release(erased)
