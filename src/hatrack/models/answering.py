"""Answers of a network: logits of tasks, computed with the saved values of all frozen entries.

The functions that compute take a masking, not a network: that of the network itself, or of a copy with saved values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from hatrack.errors import InputError
from hatrack.masks.task_list import StateT
from hatrack.masks.tasks import TaskState
from hatrack.models.masking import Masking
from hatrack.recognition import Inferred
from hatrack.state.twins import twin
from hatrack.support.compilers import keep_compilers_out, start_compilers_inside
from hatrack.support.example import is_mask
from hatrack.support.heads import pad_classes
from hatrack.support.inputs import Inputs, has_shape, kind_of, map_tensors, tensor_of, tensors_in
from hatrack.support.interface import Interface
from hatrack.support.modes import at_hand

if TYPE_CHECKING:
    from hatrack.models.base import MaskedNetwork

__all__ = ["ask", "features_of", "fixed_logits", "is_transformed", "joined", "logits_of", "logits_of_mixed"]

AnswerT = TypeVar("AnswerT")


# ------------------------------------------------------------------------------------------------------------ computing


def logits_of(masking: Masking[StateT], x: Inputs, state: StateT) -> Any:
    """Return a task's logits of a batch, classes along the features' axis of units; or its own head's outputs.

    Args:
        masking: the masks.
        x: the batch.
        state: the task.

    Raises:
        InputError: the batch does not have the shape that the backbone expects.
    """
    return state.classify(features_of(masking, x, state))


def features_of(masking: Masking[StateT], x: Inputs, state: StateT) -> Tensor:
    """Return features of a batch under a task's mask, as its head reads them.

    Args:
        masking: the masks.
        x: the batch.
        state: the task.

    Raises:
        InputError: the batch does not have the shape that the backbone expects.
    """
    try:
        features = masking.features(x, state)
    except (RuntimeError, ValueError, IndexError) as error:
        _require_example_types(masking, x, error)
        if masking.has_example_kind(x):
            raise
        raise _misshapen(masking, x) from error
    is_odd = features.dim() > 2 and not masking.has_example_axes(x)  # such as a batch that was not flattened
    has_other_rows = features.dim() < 2 or len(features) != masking.interface.samples(x)
    if has_other_rows and masking.has_example_kind(x):
        masking.interface.require_rows(features, x)
    if has_other_rows or is_odd:
        raise _misshapen(masking, x)
    return features


def logits_of_mixed(masking: Masking[StateT], x: Inputs, states: Sequence[StateT], task_of: Tensor) -> Tensor:
    """Return logits of samples of several tasks, ``(N, most classes)``, filled with −inf.

    Args:
        masking: the masks.
        x: the batch.
        states: the tasks.
        task_of: for every sample the index of its task, int64 ``(N,)``.
    """
    features = masking.features_mixed(x, states, task_of)
    return joined(masking.interface, x, states, task_of, features, partial(logits_of, masking))


def fixed_logits(masking: Masking[StateT], state: StateT, samples: int | None = None) -> Tensor:
    """Return a task's logits of a fixed batch, in evaluation mode, with the weights as they are at this moment.

    Args:
        masking: the masks.
        state: the task.
        samples: number of samples; as many as the example input had if left out.

    Returns:
        The logits; all outputs of a head of the user's own side by side, ``(N, outputs)``.
    """
    zeros, generator = masking.example(samples), torch.Generator().manual_seed(0)
    with torch.no_grad(), masking.evaluating():
        try:
            drawn = map_tensors(partial(_drawn, generator=generator, alone=isinstance(zeros, Tensor)), zeros)
            return tensor_of(logits_of(masking, drawn, state))
        except (RuntimeError, ValueError, IndexError):  # such as real numbers that stand for categories
            return tensor_of(logits_of(masking, zeros, state))


def _drawn(zeros: Tensor, generator: torch.Generator, alone: bool) -> Tensor:
    """Return random real numbers in place of zeros; a mask among several inputs stays."""
    drawn = torch.randn(zeros.shape, generator=generator).to(zeros)
    return drawn if zeros.is_floating_point() and (alone or not is_mask(zeros)) else zeros


def _require_example_types(masking: Masking[StateT], x: Inputs, cause: Exception) -> None:
    """Check that an input on which a network does not run has the types of the example.

    Raises:
        InputError: it has others.
    """
    found, wanted = ([tensor.dtype for tensor in tensors_in(each)] for each in (x, masking.example(1)))
    if len(found) == len(wanted) and found != wanted:
        named = ", ".join(dict.fromkeys(str(dtype) for dtype in found))
        remedy = ", ".join(dict.fromkeys(str(dtype) for dtype in wanted))
        raise InputError(
            f"the input is of type {named}, the network expects {remedy}; convert it, x.to(...)"
        ) from cause


def _misshapen(masking: Masking[StateT], x: Inputs) -> InputError:
    if isinstance(x, Tensor):
        found = str(tuple(x.shape))
    else:
        axis = masking.interface.batch_axis
        found = has_shape(kind_of(x, axis), str(masking.interface.samples(x)))
    return InputError(f"the input has shape {found}, the network expects {has_shape(masking.example_input.kind)}")


def joined(
    interface: Interface,
    x: Inputs,
    states: Sequence[StateT],
    task_of: Tensor,
    features: Tensor | None,
    one_by_one: Callable[[Inputs, StateT], Tensor],
) -> Tensor:
    """Return logits of samples of several tasks, ``(N, most classes)``, filled with −inf.

    Args:
        interface: interface of the backbone.
        x: the batch.
        states: the tasks.
        task_of: for every sample the index of its task, int64 ``(N,)``.
        features: features from one pass, ``(N, F)``; None to ask for each task's samples.
        one_by_one: computes a task's logits of its samples.
    """
    if not states:
        return next(iter(tensors_in(x))).new_zeros(0, 0)
    counts = [state.count_classes() for state in states]
    logits: Tensor | None = None
    for number, (state, count) in enumerate(zip(states, counts, strict=True)):
        rows = (task_of == number).nonzero().flatten()
        part = one_by_one(interface.take(x, rows), state) if features is None else state.classify(features[rows])
        part = pad_classes(part, max(counts) - count, state.unit_axis)
        if logits is None:
            logits = part.new_full((len(task_of), *part.shape[1:]), float("-inf"))
        logits = logits.index_copy(0, rows, part)
    assert logits is not None
    return logits


# ------------------------------------------------------------------------------------------------------------ answering


def ask(
    net: MaskedNetwork[StateT],
    states: Sequence[StateT],
    compute: Callable[[Masking[StateT], Sequence[StateT]], AnswerT],
) -> AnswerT:
    """Compute an answer in which all frozen entries have their saved values.

    Where an optimizer is in the middle of a step, or something else has moved frozen entries while a task is in
    training (a graph may be alive that needs the parameters as they are), a copy of the network answers.

    Args:
        net: the network.
        states: the tasks.
        compute: computes the answer by a masking, for its states of these tasks.

    Raises:
        InputError: another thread has unlearned one of the tasks since the call began.
        GuaranteeError: the answer is not a number, since a task in training has diverged.
    """
    if not torch.compiler.is_compiling():
        _keep_in_evaluation(net, states)  # a task in training may use norms of others
    if is_transformed() or not _relies_on_frozen(states):
        _require_in_place(net, states)
        return compute(net.masking, states)
    with net.turns.asking():
        _require_present(net, states)
        count = net.protection.hooks.count
        if net.protection.prepare_answer(states):
            answer = compute(net.masking, states)
            if net.protection.hooks.count == count and not net.protection.has_moved(states):
                _require_finite(net, answer)
                return answer
        answer = _ask_copy(net, states, compute)
        _require_finite(net, answer)
        return answer


def _relies_on_frozen(states: Sequence[TaskState]) -> bool:
    return any(state.consolidated for state in states)


def _require_in_place(net: MaskedNetwork[StateT], states: Sequence[StateT]) -> None:
    """Check that frozen entries have their saved values where torch transforms or captures the computation.

    Raises:
        GuaranteeError: they have not; inside of a transform, too, where layers or buffers were replaced.
    """
    if not _relies_on_frozen(states):
        return
    if torch._C._are_functorch_transforms_active():
        net.protection.require_same_parts(states)
    with at_hand():
        net.protection.require_in_place(states)


def _require_present(net: MaskedNetwork[StateT], states: Sequence[StateT]) -> None:
    """Check that the tasks are there; another thread's turn may have come after they were looked up.

    Raises:
        InputError: one of them is not.
    """
    present = {id(state) for state in net.tasks}
    for state in states:
        if id(state) not in present:
            raise InputError(
                f"task {state.name!r} was unlearned by another thread while it was asked; ask for it no more"
            )


def _keep_in_evaluation(net: MaskedNetwork[StateT], states: Sequence[StateT]) -> None:
    net.masking.stay_in_evaluation(states)


def _ask_copy(
    net: MaskedNetwork[StateT],
    states: Sequence[StateT],
    compute: Callable[[Masking[StateT], Sequence[StateT]], AnswerT],
) -> AnswerT:
    """Compute an answer with a copy of the network, in which frozen entries have their saved values."""
    values = net.protection.frozen_values()
    with torch.no_grad():
        copy = cast(Any, twin(cast(nn.Module, net), values, {}))
    index = {id(state): number for number, state in enumerate(net.tasks)}
    return compute(copy.masking, [copy.tasks[index[id(state)]] for state in states])


def _require_finite(net: MaskedNetwork[StateT], answer: object) -> None:
    """Check that a task in training which has diverged leaves no mark: zero times infinity is not a number."""
    if net.tasks.in_training is not None:
        logits = answer.logits if isinstance(answer, Inferred) else answer
        if any(bool(part.detach().isnan().any()) for part in tensors_in(logits)):
            net.protection.require_finite()


def is_transformed() -> bool:
    """Return whether torch traces or compiles the computation, or runs it with other parameters."""
    return torch.compiler.is_compiling() or bool(
        torch._C._get_tracing_state() or torch._C._are_functorch_transforms_active()
    )


start_compilers_inside(ask, features_of, logits_of, logits_of_mixed, joined)
keep_compilers_out(
    _keep_in_evaluation,
    _relies_on_frozen,
    _require_present,
    _ask_copy,
    _require_finite,
    _require_in_place,
    is_transformed,
)
