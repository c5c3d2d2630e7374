"""What a run's folder says of how it was made."""

from __future__ import annotations

from pathlib import Path

import torch

from hatrack.environment import deterministic_cuda
from hatrack.errors import InputError
from hatrack.experiments.folder import RESULT
from hatrack.experiments.request import RunRequest
from hatrack.experiments.results import RunResult, read_result

__all__ = ["recorded_run"]


def recorded_run(folder: Path, data: Path | None = None, out: Path | None = None) -> tuple[RunResult, RunRequest]:
    """The record of a run, and what to ask for to get the same one again.

    The number of threads is set to the recorded one for this process, since the last bits depend on it.

    Args:
        folder: the run's folder.
        data: folder to look for data in first.
        out: the folder of the new run; None keeps nothing.

    Raises:
        InputError: the folder holds no run, or one in which no task was learned.
        CheckpointError: its record is damaged.
    """
    if not (folder / RESULT).exists():
        raise InputError(f"{folder} holds no {RESULT}; give the folder of a run, such as runs/EXPERIMENT-METHOD-seed0")
    recorded = read_result(folder / RESULT)
    if not recorded.scores:
        raise InputError(f"in {folder} no task has been learned yet; run this first: {recorded.command}")
    torch.set_num_threads(int(recorded.environment.get("threads", torch.get_num_threads())))
    on_cuda = recorded.environment.get("device") != "cpu" and torch.cuda.is_available()
    device = deterministic_cuda() if on_cuda else torch.device("cpu")
    sources = tuple(map(Path, recorded.sources))
    config = recorded.config
    return recorded, RunRequest(recorded.experiment, recorded.method, recorded.seed, out, data, config, device, sources)
