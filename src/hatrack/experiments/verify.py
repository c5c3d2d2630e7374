"""Verifying a run: load its network, test it again, and compare with what the run says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hatrack.data import DownloadMonitor
from hatrack.errors import CheckpointError
from hatrack.experiments.folder import LOGITS, LOGITS_FORMAT, RESULT
from hatrack.experiments.recorded import load_recorded, recorded_run
from hatrack.experiments.results import RunResult
from hatrack.experiments.running import last_logits, score_row
from hatrack.storage.checkpoint import read_checkpoint
from hatrack.streams import Task
from hatrack.support.environment import describe_environment
from hatrack.train import Score, score

__all__ = ["TOLERANCE", "TaskVerdict", "Verification", "verify"]

TOLERANCE = 1e-5
"""Tolerance of logits, relative and absolute, where the environment is not the one that made them."""


@dataclass(frozen=True)
class TaskVerdict:
    """Comparison of a task's test with what is recorded.

    Attributes:
        task: its name.
        accuracy: accuracy now.
        recorded: accuracy in the result.
        agrees: whether logits (and with them accuracy) are as recorded: to the bit in the same environment, else within
            the tolerance.
        constant: whether the recorded hashes of this task are the same in every row.
    """

    task: str
    accuracy: float
    recorded: float
    agrees: bool
    constant: bool


@dataclass(frozen=True)
class Verification:
    """Result of verifying a run.

    Attributes:
        result: the run's record.
        verdicts: one per task learned.
        bitwise: whether hashes were compared, or logits within :data:`TOLERANCE`.
        differences: what differs between the environment and data of the run and these; empty if ``bitwise``.
    """

    result: RunResult
    verdicts: tuple[TaskVerdict, ...]
    bitwise: bool
    differences: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Return whether every task came out as recorded."""
        return all(verdict.agrees for verdict in self.verdicts)


def verify(folder: Path, data: Path | None = None, monitor: DownloadMonitor | None = None) -> Verification:
    """Derive the last row of a run again from its saved network.

    The number of threads is set to the recorded one for this process, since the last bits depend on it.

    Args:
        folder: the run's folder.
        data: folder to look for data in first.
        monitor: told how the download of a data set goes on.

    Raises:
        InputError: the folder holds no run, or one in which no task was learned.
        CheckpointError: a file is damaged.
        DataError: the data is missing.
    """
    recorded, request = recorded_run(folder, data)
    prepared = load_recorded(folder, recorded, request, monitor)
    logits = last_logits(prepared, len(recorded.scores))
    now = describe_environment(request.device)
    differences = tuple(key for key in now if now[key] != recorded.environment.get(key))
    origins = prepared.stream.origins
    if recorded.forgotten:  # of whose data nothing is recorded any more
        origins = tuple(line for line in origins if line in recorded.data)
    if recorded.data != origins:
        differences += ("data",)
    row = score_row(prepared, logits)
    saved = {} if not differences else read_checkpoint(folder / LOGITS, LOGITS_FORMAT).tensors
    verdicts = []
    for index, (task, now_scored) in enumerate(zip(recorded.tasks[: len(row)], row, strict=True)):
        before = recorded.scores[-1][index]
        if differences:
            theirs = _recorded_logits(folder, saved, task.name, before, prepared.stream[index])
            agrees = torch.allclose(logits[task.name], theirs, rtol=TOLERANCE, atol=TOLERANCE)
        else:
            agrees = now_scored.logits_sha256 == before.logits_sha256 and now_scored.accuracy == before.accuracy
        hashes = {scores[index].logits_sha256 for scores in recorded.scores[index:]}
        verdicts.append(TaskVerdict(task.name, now_scored.accuracy, before.accuracy, agrees, len(hashes) == 1))
    return Verification(recorded, tuple(verdicts), not differences, differences)


def _recorded_logits(folder: Path, saved: Mapping[str, Tensor], name: str, recorded: Score, task: Task) -> Tensor:
    """The logits that a run kept, after checking that they are those whose hash it recorded."""
    logits = saved.get(name)
    if logits is None or score(logits, task.test.labels).logits_sha256 != recorded.logits_sha256:
        raise CheckpointError(f"{folder / LOGITS} does not belong to {folder / RESULT}: its logits have another hash")
    return logits
