"""Heads that users bring: checks when a task gets one, and when it is consolidated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.overrides import TorchFunctionMode

from hatrack.errors import DOES_NOT_RUN, InputError, UnsupportedError
from hatrack.masks.task_list import StateT
from hatrack.masks.tasks import TaskState
from hatrack.state.movement import StateOf, copy_of, movement_of, without_trace
from hatrack.state.tryouts import memory_of
from hatrack.support.inputs import tensor_of, tensors_in
from hatrack.support.modes import trainable
from hatrack.support.names import in_one_line
from hatrack.units.computed import computed_weights, why_it_moves

if TYPE_CHECKING:
    from hatrack.models.base import MaskedNetwork

__all__ = ["require_same_state", "require_usable_head"]

_SIZES = (1, 5, 64)
"""Numbers of samples that a head is tried with, beside that of the example: it may do something else for many."""

_REMEDY = "keep such state in a buffer (self.register_buffer), or compute it anew in every pass"


@torch.no_grad()
def require_usable_head(net: MaskedNetwork[StateT], name: str, head: int | nn.Module) -> None:
    """Check that a task can have a head: it runs on features, is nobody else's, and gives the same from call to call.

    Args:
        net: the network.
        name: name of the task.
        head: the head; a number of classes, for a linear one, needs no check.

    Raises:
        InputError: the head does not run on the features, is not initialised, or uses a tensor of another part.
        UnsupportedError: the head changes itself in a way that files do not hold, or draws random numbers in evaluation
            mode.
    """
    if not isinstance(head, nn.Module):
        return
    trainable(head)
    whose = f"the head of task {name!r}"
    if isinstance(head, torch.jit.ScriptModule):
        raise InputError(f"{whose} is a scripted module, which cannot be looked into; give the module it was made of")
    taken = {memory_of(tensor) for tensor in (*net.parameters(), *net.buffers())}
    for own, tensor in (*head.named_parameters(), *head.named_buffers()):
        if isinstance(tensor, UninitializedParameter):
            raise InputError(f"{own} of {whose} is not initialised yet; run the head on features once")
        if memory_of(tensor) in taken:
            raise InputError(f"{own} of {whose} is a part of this network already; give it its own")
    for own, module in head.named_modules():
        reason = why_it_moves(module)
        if reason is not None:
            raise UnsupportedError(f"{own or type(head).__name__} of {whose}: {reason}")
    features = net.masking.example_features()
    _require_own_tensors(whose, head, features, taken)
    tried = copy_of(head).eval().to(features.device, features.dtype)
    before = copy_of(tried)
    _require_same_outputs(whose, before, tried, features)
    for size in _SIZES:
        _require_same_outputs_if_it_runs(whose, before, tried, features[torch.arange(size) % len(features)], taken)
    try:
        with without_trace():
            tried.train()(features)
    except DOES_NOT_RUN:
        return  # such as a batch norm that would see a single value
    _require_kept_by_files(whose, before, tried)


def _require_same_outputs(whose: str, before: nn.Module, tried: nn.Module, features: Tensor) -> None:
    """Check that two calls in evaluation mode give the same, and leave the head as it was."""
    first, second = _outputs(whose, tried, features, 2)
    moved = movement_of(before, tried, ())
    if moved.buffers or moved.attributes:
        names = ", ".join((*moved.buffers, *moved.attributes))
        raise UnsupportedError(
            f"{whose} changes {names} in evaluation mode, so that its outputs could change; {_REMEDY}"
        )
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise UnsupportedError(
            f"{whose} gives other outputs from call to call in evaluation mode; randomness for training has to be off "
            "then, as that of torch.nn.Dropout is"
        )


def _require_same_outputs_if_it_runs(
    whose: str, before: nn.Module, tried: nn.Module, features: Tensor, taken: set[int]
) -> None:
    """Check the same for another number of samples, unless the head is made for none but that of the example."""
    try:
        with without_trace():
            copy_of(tried)(features)
    except DOES_NOT_RUN:
        return
    _require_own_tensors(whose, tried, features, taken)
    _require_same_outputs(whose, before, tried, features)


def require_same_state(state: TaskState) -> None:
    """Check that a head of the user's own has no state but what files hold, before its task is consolidated.

    Such as an attribute that training has moved, or that a hook on the backbone has put there.

    Args:
        state: the state of the task.

    Raises:
        UnsupportedError: other state of the head has changed since the task was added.
    """
    if state.first_head is not None:
        _require_kept_by_files(f"the head of task {state.name!r}", state.first_head.module, state.head)


def _require_kept_by_files(whose: str, before: nn.Module, head: nn.Module) -> None:
    moved = movement_of(before, head, ())
    held, buffers = set(head.state_dict()), {name for name, _ in head.named_buffers()}
    computed = {f"{name}.{own}".lstrip(".") for name, part in head.named_modules() for own in computed_weights(part)}
    names = [name for name in moved.attributes if name not in buffers | computed]
    names += [name for name in moved.buffers if name not in held]
    if names:
        raise UnsupportedError(
            f"{whose} has changed {', '.join(names)}, which no file holds and other heads may share; {_REMEDY}"
        )


def _outputs(whose: str, head: nn.Module, features: Tensor, times: int) -> list[Tensor]:
    try:
        with without_trace():
            return [tensor_of(head(features)) for _ in range(times)]
    except DOES_NOT_RUN as error:
        said = in_one_line(error)
        raise InputError(f"{whose} does not run on features of shape {tuple(features.shape)}: {said}") from error


class _Used(TorchFunctionMode):
    """Recorder of the tensors that functions are given."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.tensors.update({id(tensor): tensor for tensor in tensors_in((args, kwargs or {}))})
        return func(*args, **(kwargs or {}))


def _require_own_tensors(whose: str, head: nn.Module, features: Tensor, taken: set[int]) -> None:
    """Check that a head computes with its own parameters alone, however it reaches them.

    Raises:
        InputError: it uses a parameter that it does not own, as of a layer in a plain list or around a function; or it
            makes layers when it is called.
    """
    used, modes = _Used(), {module: module.training for module in head.modules()}
    state = StateOf(head)
    reference = next((p for p in head.parameters() if p.is_floating_point()), features)
    try:
        with without_trace(), used:
            head.eval()(features.to(reference))
    except DOES_NOT_RUN:
        pass  # which the next run says
    finally:
        state.put_back()
        for module, training in modes.items():
            module.training = training
    if [*modes] != [*head.modules()]:
        raise InputError(f"{whose} makes layers when it is called first; call it on features once before")
    own = {id(tensor) for tensor in (*head.parameters(), *head.buffers())}
    for tensor in used.tensors.values():
        trained = isinstance(tensor, nn.Parameter) or (tensor.requires_grad and tensor.is_leaf)
        if id(tensor) not in own and (trained or memory_of(tensor) in taken):
            raise InputError(
                f"{whose} uses a tensor that is no part of it, as of a layer in a plain list or around a function; "
                "it would move with other tasks: give the head its own, as attributes or in a torch.nn.ModuleList"
            )
