"""Options that say where many runs are carried out, and the executor that they make."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from cyclopts import Parameter

from hatrack.cli.options import WHOLE, Device, check_threads, read_overrides, take_device
from hatrack.errors import InputError
from hatrack.experiments import DaskExecutor, Executor, LocalExecutor, SlurmExecutor

__all__ = ["LOCAL", "Engine"]


@Parameter(name="*")
@dataclass(frozen=True)
class Engine:
    """Place where runs are carried out.

    Parameters
    ----------
    workers
        How many runs at a time; by default one per processor. With `slurm` the limit of a job array; a Dask
        cluster decides by itself.
    threads
        CPU threads of every run. With more runs than processors, 1 is fastest by far.
    executor
        `local` takes processes of this machine; `dask` and `slurm` take others, which must see the same folders.
    scheduler
        With `dask`: address of the scheduler, such as `tcp://host:8786`.
    dry_run
        Say what would be run, and run nothing.
    slurm
        With `slurm`: an option of the jobs by submitit's names, `key=value`, as often as needed:
        `--slurm slurm_partition=long --slurm timeout_min=600`.
    """

    workers: Annotated[int | None, WHOLE] = None
    threads: Annotated[int, WHOLE] = 1
    executor: Literal["local", "dask", "slurm"] = "local"
    scheduler: str | None = None
    slurm: Annotated[tuple[str, ...], Parameter(name="--slurm", negative="", consume_multiple=False)] = ()
    dry_run: Annotated[bool, Parameter(negative="")] = False

    def build(self, folder: Path) -> Executor:
        """The executor of these options.

        Raises:
            InputError: options that do not fit each other.
        """
        check_threads(self.threads)
        if (self.scheduler is not None) != (self.executor == "dask"):
            raise InputError("--executor dask and --scheduler tcp://HOST:PORT go together")
        if self.slurm and self.executor != "slurm":
            raise InputError("--slurm is for --executor slurm")
        match self.executor:
            case "local":
                return LocalExecutor(self.at_a_time)
            case "dask":
                if self.workers is not None:
                    raise InputError("with --executor dask the cluster has workers of its own; leave out --workers")
                return DaskExecutor(self.scheduler or "")
            case "slurm":
                options = {key: _number_or_text(value) for key, value in read_overrides(self.slurm, "--slurm").items()}
                return SlurmExecutor(folder / "slurm", self.workers, options)

    def take_device(self, choice: Device) -> torch.device:
        """The device of the runs; whether other machines have a GPU cannot be seen from here.

        Raises:
            InputError: a GPU of this machine was asked for and there is none.
        """
        return torch.device("cuda") if choice == "cuda" and self.executor != "local" else take_device(choice)

    @property
    def at_a_time(self) -> int:
        """Return the number of runs that go on at a time, as far as it is known."""
        if self.workers is None:
            return max(1, _processors() // self.threads) if self.executor == "local" else 1
        return self.workers


LOCAL = Engine()
"""As many processes of this machine as it has processors."""


def _processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _number_or_text(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
