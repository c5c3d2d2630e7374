"""Answers of a network: logits of tasks, computed with the saved values of all frozen entries.

The functions that compute take a masking, not a network: that of the network itself, or of a copy with saved values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.masks.task_list import StateT
from hatrack.masks.tasks import TaskState
from hatrack.models.masking import Masking
from hatrack.recognition import Inferred
from hatrack.state.twins import twin
from hatrack.support.compilers import keep_compilers_out, start_compilers_inside

if TYPE_CHECKING:
    from hatrack.models.base import MaskedNetwork

__all__ = ["ask", "fixed_logits", "is_transformed", "joined", "logits_of", "logits_of_mixed"]

AnswerT = TypeVar("AnswerT")


# ------------------------------------------------------------------------------------------------------------ computing


def logits_of(masking: Masking[StateT], x: Tensor, state: StateT) -> Tensor:
    """Return a task's logits of a batch, ``(N, classes)``.

    Args:
        masking: the masks.
        x: the batch, ``(N, ...)``.
        state: the task.

    Raises:
        InputError: the batch does not have the shape that the backbone expects.
    """
    try:
        features = masking.features(x, state)
    except (RuntimeError, ValueError, IndexError) as error:
        if x.shape[1:] == masking.example_shape[1:]:
            raise
        raise _misshapen(masking, x) from error
    if features.dim() != 2 or len(features) != len(x):
        raise _misshapen(masking, x)
    return state.classify(features)


def logits_of_mixed(masking: Masking[StateT], x: Tensor, states: Sequence[StateT], task_of: Tensor) -> Tensor:
    """Return logits of samples of several tasks, ``(N, most classes)``, filled with −inf.

    Args:
        masking: the masks.
        x: the batch, ``(N, ...)``.
        states: the tasks.
        task_of: for every sample the index of its task, int64 ``(N,)``.
    """
    features = masking.features_mixed(x, states, task_of)
    return joined(x, states, task_of, features, partial(logits_of, masking))


def fixed_logits(masking: Masking[StateT], state: StateT, samples: int | None = None) -> Tensor:
    """Return a task's logits of a fixed batch, in evaluation mode, with the weights as they are at this moment.

    Args:
        masking: the masks.
        state: the task.
        samples: number of samples; as many as the example input had if left out.
    """
    zeros = masking.example(samples)
    with torch.no_grad(), masking.evaluating():
        try:
            drawn = torch.randn(zeros.shape, generator=torch.Generator().manual_seed(0)).to(zeros)
            return logits_of(masking, drawn if zeros.is_floating_point() else zeros, state)
        except (RuntimeError, ValueError, IndexError):  # such as real numbers that stand for categories
            return logits_of(masking, zeros, state)


def _misshapen(masking: Masking[StateT], x: Tensor) -> InputError:
    expected = ", ".join(map(str, masking.example_shape[1:]))
    return InputError(f"the input has shape {tuple(x.shape)}, the network expects (N, {expected})")


def joined(
    x: Tensor,
    states: Sequence[StateT],
    task_of: Tensor,
    features: Tensor | None,
    one_by_one: Callable[[Tensor, StateT], Tensor],
) -> Tensor:
    """Return logits of samples of several tasks, ``(N, most classes)``, filled with −inf.

    Args:
        x: the batch, ``(N, ...)``.
        states: the tasks.
        task_of: for every sample the index of its task, int64 ``(N,)``.
        features: features from one pass, ``(N, F)``; None to ask for each task's samples.
        one_by_one: computes a task's logits of its samples.
    """
    if not states:
        return x.new_zeros(0, 0)
    widest = max(state.num_classes for state in states)
    logits: Tensor | None = None
    for number, state in enumerate(states):
        rows = (task_of == number).nonzero().flatten()
        part = one_by_one(x[rows], state) if features is None else state.classify(features[rows])
        if logits is None:
            logits = part.new_full((len(x), widest), float("-inf"))
        logits = logits.index_copy(0, rows, F.pad(part, (0, widest - state.num_classes), value=float("-inf")))
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
        GuaranteeError: the answer is not a number, since a task in training has diverged.
    """
    if is_transformed() or not _relies_on_frozen(states):
        return compute(net.masking, states)
    count = net.protection.hooks.count
    if net.protection.prepare_answer(states):
        answer = compute(net.masking, states)
        if net.protection.hooks.count == count:
            _require_finite(net, answer)
            return answer
    answer = _ask_copy(net, states, compute)
    _require_finite(net, answer)
    return answer


def _relies_on_frozen(states: Sequence[TaskState]) -> bool:
    return any(state.consolidated for state in states)


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
        if isinstance(logits, Tensor) and bool(logits.detach().isnan().any()):
            net.protection.require_finite()


def is_transformed() -> bool:
    """Return whether torch traces or compiles the computation, or runs it with other parameters."""
    return torch.compiler.is_compiling() or bool(
        torch._C._get_tracing_state() or torch._C._are_functorch_transforms_active()
    )


start_compilers_inside(ask, logits_of, logits_of_mixed, joined)
keep_compilers_out(_relies_on_frozen, _ask_copy, _require_finite, is_transformed)
