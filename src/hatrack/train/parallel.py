"""Runs on several processes, which share every batch and make the same steps.

Start them with torch's own launcher, ``torchrun --nproc-per-node 2 -m hatrack run …``.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from hatrack.errors import InputError, TrainingError

__all__ = ["ALONE", "Ranks", "joined"]


@dataclass(frozen=True)
class Ranks:
    """Processes of a run, of which this is one.

    Attributes:
        rank: number of this process, from 0; only the first writes files.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def share(self, rows: Tensor) -> tuple[Tensor, float]:
        """Select this process's part of a batch.

        Args:
            rows: the rows of the whole batch, ``(B,)``.

        Returns:
            Its rows, and the weight of its mean loss in that of the batch; the weights of all processes add up to 1.
            All processes work on a batch that is too small to be shared.
        """
        if len(rows) < self.size:
            return rows, 1.0 / self.size
        own = rows[self.rank :: self.size]
        return own, len(own) / len(rows)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, to the same bits in each."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, summed in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def share_buffers(self, modules: Sequence[nn.Module]) -> None:
        """Give all processes the first one's buffers: their batch norms have seen other samples."""
        if self.size == 1:
            return
        for module in modules:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def require_same(self, parameters: Sequence[nn.Parameter], task: str) -> None:
        """Check that all processes have the same parameters.

        Raises:
            TrainingError: they differ, as with a method that decides on steps by its own share of a batch.
        """
        if self.size == 1 or not parameters:
            return
        sums = torch.stack([parameter.detach().double().sum() for parameter in parameters])
        if not _same_everywhere(sums):
            raise TrainingError(
                f"in task {task!r} the processes have come to different weights: the method cannot share batches; "
                "run it with a single process"
            )

    def require_same_data(self, origins: Sequence[str], device: torch.device) -> None:
        """Check that all processes have found the same data, which may lie on several machines.

        Args:
            origins: lines about the data that this process has found.
            device: device of the run, on which processes exchange numbers.

        Raises:
            InputError: they differ.
        """
        if self.size == 1:
            return
        digest = hashlib.sha256("\n".join(origins).encode()).digest()
        numbers = torch.tensor([*digest], dtype=torch.int64, device=device)
        if not _same_everywhere(numbers):
            raise InputError(
                f"the processes of this run have found different data ({'; '.join(origins)} in process {self.rank}); "
                "give all of them the same (`data_dir`)"
            )

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.size > 1:
            distributed.barrier()


def _same_everywhere(numbers: Tensor) -> bool:
    """Return whether all processes give the same numbers: whether their largest are their smallest."""
    both = torch.stack([numbers, -numbers])
    distributed.all_reduce(both, op=distributed.ReduceOp.MAX)
    return torch.equal(both[0], -both[1])


ALONE = Ranks()
"""Run in a single process."""


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, if it did, while this lasts.

    Args:
        device: device to train on; on GPUs every process of a machine takes one of its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # The first optimizer imports it, and modules of it take the group that exists then as a default argument. Such a
    # group outlives its end, and a thread of it that still lets go of a tensor when the interpreter stops aborts us.
    importlib.import_module("torch._dynamo")
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
