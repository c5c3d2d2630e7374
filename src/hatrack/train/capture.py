"""Steps of a training that a GPU repeats by itself: captured as a CUDA graph, with no Python between its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from hatrack.errors import TrainingError

__all__ = ["Capture", "CapturedSteps", "Step", "as_cuda_graph"]

WARM_UP = 3
"""Steps that are made as usual before any is captured: libraries choose their kernels, optimizers make their states.

Later epochs begin with one such step, which looks at what was written between epochs to what earlier tasks rely on.
"""


class Step(Protocol):
    """One step of a training."""

    def __call__(self, rows: Tensor, progress: float | Tensor, /) -> None:
        """Make it.

        Args:
            rows: places of the batch among the training samples, int64 ``(B,)``, on their device.
            progress: position within the epoch, 0 to 1: a number, or a 0-dimensional tensor on that device.
        """


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
    except RuntimeError as error:
        raise TrainingError(
            f"steps of this network cannot be captured as a CUDA graph ({str(error).splitlines()[0]}); train it "
            "without (`captured=false`)"
        ) from error
    return graph.replay


class CapturedSteps:
    """Steps of a training of which the most are replays of one that was captured.

    Each epoch captures anew, so that what differs between epochs (the learning rate, a strength, settled masks) is
    right; within one, only the rows of a batch and the progress may differ. Batches of another size are made as usual,
    and so are the first steps of every epoch.

    Args:
        size: samples of the batches to capture.
        device: device of the training.
        capture: how to capture.
    """

    def __init__(self, size: int, device: torch.device, capture: Capture = as_cuda_graph) -> None:
        self._rows = torch.zeros(size, dtype=torch.int64, device=device)
        self._progress = torch.zeros((), dtype=torch.float64, device=device)
        self._capture = capture
        self._warm_up = WARM_UP

    def of_epoch(self, step: Step) -> Step:
        """Return a step for the batches of one epoch that does what a given one does."""
        replay: Callable[[], None] | None = None
        left, self._warm_up = self._warm_up, 1

        def captured(rows: Tensor, progress: float | Tensor, /) -> None:
            nonlocal replay, left
            if len(rows) != len(self._rows):
                step(rows, progress)
                return
            self._rows.copy_(rows)
            self._progress.fill_(progress)
            if left:
                left -= 1
                self._apart(lambda: step(self._rows, self._progress))
                return
            if replay is None:
                replay = self._capture(lambda: step(self._rows, self._progress))
            replay()

        return captured

    def _apart(self, work: Callable[[], None]) -> None:
        """Do work on a stream of its own, as capturing does: autograd remembers on which one a gradient was added."""
        if self._rows.device.type != "cuda":
            work()
            return
        stream = torch.cuda.Stream(self._rows.device)  # type: ignore[no-untyped-call]
        present = torch.cuda.current_stream(self._rows.device)
        stream.wait_stream(present)
        with torch.cuda.stream(stream):
            work()
        present.wait_stream(stream)
