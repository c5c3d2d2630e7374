"""Steps of a training that a GPU repeats by itself: captured as a CUDA graph, with no Python between its kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from hatrack.errors import InputError, TrainingError
from hatrack.functional import batch_progress
from hatrack.methods import Method
from hatrack.state.comparing import is_same_tensor
from hatrack.support.randomness import random_state, set_random_state
from hatrack.train.parallel import ALONE, Ranks

__all__ = [
    "Capture",
    "CapturedSteps",
    "StepByIndex",
    "TrainingStep",
    "as_cuda_graph",
    "one_by_one",
    "require_capturable",
    "require_cuda",
]

WARM_UP = 3
"""Steps that are made as usual before any is captured: libraries choose their kernels, optimizers make their states.

They are counted over epochs, and every epoch begins with one at least, which looks at what was written since the last
one to what earlier tasks rely on.
"""


class TrainingStep(Protocol):
    """One step of a training."""

    def __call__(self, rows: Tensor, progress: float | Tensor, /) -> None:
        """Make it.

        Args:
            rows: places of the batch among the training samples, int64 ``(B,)``, on their device.
            progress: position within the epoch, 0 to 1: a number, or a 0-dimensional tensor on that device.
        """


StepByIndex: TypeAlias = Callable[[int], None]
"""Makes the steps of one epoch, by the index of their batch; in order."""


def one_by_one(step: TrainingStep, order: Tensor, size: int) -> StepByIndex:
    """Return what makes every step of an epoch as it is.

    Args:
        step: makes a step.
        order: places of the epoch's samples, in the order in which they are learned from, int64 ``(N,)``.
        size: samples of a batch; the last one may have fewer.
    """
    batches = math.ceil(len(order) / size)
    return lambda index: step(order[index * size : (index + 1) * size], batch_progress(index, batches))


Capture: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes what is to be captured, without doing it, and returns what does it."""


def as_cuda_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Capture work of the present GPU as a CUDA graph, and return its replay.

    Tensors that it reads and writes stay where they are now; numbers that Python computes stay what they are now.
    Random numbers go on from the state that torch's generator has at each replay, as without a graph.

    Raises:
        TrainingError: the work waits for the device, moves memory that is not pinned, or does something else that a
            graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise TrainingError(
            f"steps of this network cannot be captured as a CUDA graph ({str(error).splitlines()[0]}); train it "
            "without (`captured=false`)"
        ) from error
    return graph.replay


def require_capturable(method: Method, ranks: Ranks = ALONE) -> None:
    """Check that a method's steps can be captured.

    Raises:
        InputError: they cannot, with its settings or on several processes.
    """
    why = None
    if not method.is_capturable:
        why = f"the steps of {method.name} with these settings differ within an epoch, and cannot be captured"
    elif ranks.size > 1:
        why = "steps that several processes share cannot be captured"
    if why is not None:
        raise InputError(f"{why}; train without (`captured=false`)")


def require_cuda(device: torch.device) -> None:
    """Check that steps can be captured as CUDA graphs on a device.

    Raises:
        InputError: it is no GPU.
    """
    if device.type != "cuda":
        raise InputError(
            f"steps are captured as CUDA graphs, and this run is on a {device.type} device; train without "
            "(`captured=false`), or on a GPU (`--device cuda`)"
        )


class CapturedSteps:
    """Steps of a training of which the most are replays of one that was captured.

    Each epoch captures anew, so that what differs between epochs (the learning rate, a strength, settled masks) is
    right; within one, only the rows of a batch and the progress may differ, and the device counts both itself. A batch
    of another size is made as usual.

    A step whose Python does something else each time, such as a layer that is dropped at random or a counter, cannot be
    replayed. The first replay of every epoch is compared with the step itself, made from the same state; what happens
    in few steps only may not be noticed.

    Args:
        size: samples of the batches to capture.
        capture: how to capture.
        state: returns all tensors that a step may write to; the same ones each time.
    """

    def __init__(
        self, size: int, capture: Capture = as_cuda_graph, state: Callable[[], Sequence[Tensor]] = tuple
    ) -> None:
        self._size, self._capture, self._state = size, capture, state
        self._to_warm_up = WARM_UP

    def of_epoch(self, step: TrainingStep, order: Tensor, sums: Sequence[Tensor] = ()) -> StepByIndex:
        """Return what makes the steps of one epoch, and raises a TrainingError where a replay does something else.

        Args:
            step: makes a step.
            order: places of the epoch's samples in their order, int64 ``(N,)``; see :func:`one_by_one`.
            sums: tensors of this epoch alone that the step writes to.
        """
        size, usual = self._size, one_by_one(step, order, self._size)
        begun = False
        last = math.ceil(len(order) / size) - 1
        places, number = (
            torch.arange(size, device=order.device),
            torch.zeros((), dtype=torch.int64, device=order.device),
        )
        replay: Callable[[], None] | None = None

        def next_one() -> None:
            # As batch_progress has it, in the same digits.
            progress = number.double() / last if last else torch.ones_like(number, dtype=torch.float64)
            step(order.index_select(0, places + number * size), progress)
            number.add_(1)

        def captured(index: int) -> None:
            nonlocal replay, begun
            if (index + 1) * size > len(order):
                usual(index)
            elif not begun or self._to_warm_up:
                begun, self._to_warm_up = True, max(self._to_warm_up - 1, 0)
                _apart(next_one, order.device)
            elif replay is None:
                replay = self._capture(next_one)
                self._compare(partial(_apart, next_one, order.device), replay, [number, *sums])
            else:
                replay()

        return captured

    def _compare(self, work: Callable[[], None], replay: Callable[[], None], own: Sequence[Tensor]) -> None:
        """Do some work, and do it again from the same state by its replay; both must come to the same.

        Raises:
            TrainingError: they do not.
        """
        written, device = [*self._state(), *own], own[0].device
        before, drawn = [tensor.detach().clone() for tensor in written], random_state(device)
        work()
        if [id(tensor) for tensor in written] != [id(tensor) for tensor in (*self._state(), *own)]:
            raise TrainingError(
                "a step puts another tensor in the place of a buffer or parameter, so that it cannot be captured; "
                "write into the one that is there (buffer.copy_(…)), or train without (`captured=false`)"
            )
        wanted = [tensor.detach().clone() for tensor in written]
        with torch.no_grad():
            for tensor, value in zip(written, before, strict=True):
                tensor.copy_(value)
        set_random_state(drawn, device)
        replay()
        if not all(map(_agree, written, wanted, before)):
            raise TrainingError(
                "a captured step does not do what the step itself does: the network's training pass, or a hook, "
                "depends on more than tensors, such as a counter or a choice at random in Python; train without "
                "(`captured=false`)"
            )


def _agree(found: Tensor, wanted: Tensor, before: Tensor) -> bool:
    """Return whether a replay and a step have written the same; but for rounding where kernels are not deterministic.

    What they have changed is compared: it may be small beside what was there.
    """
    exact = torch.are_deterministic_algorithms_enabled() or found.device.type == "cpu"
    if exact or not found.is_floating_point() or not found.numel() or not bool(wanted.isfinite().all()):
        return is_same_tensor(found.detach(), wanted)
    rounding = 1e-5 * wanted.norm()
    return bool((found - wanted).norm() <= 0.05 * (wanted - before).norm() + rounding)


def _apart(work: Callable[[], None], device: torch.device) -> None:
    """Do work on a stream of its own, as capturing does: autograd remembers on which one a gradient was added."""
    if device.type != "cuda":
        work()
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    present = torch.cuda.current_stream(device)
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        work()
    present.wait_stream(stream)
