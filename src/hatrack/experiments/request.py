"""Requests: an experiment, a method and a seed to run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hatrack.experiments.effects import cautions, keys_in_file
from hatrack.experiments.experiment import Experiment, describe
from hatrack.support.environment import describe_environment
from hatrack.train.parallel import ALONE, Ranks

__all__ = ["RunRequest", "as_text", "environment_of"]


@dataclass(frozen=True)
class RunRequest:
    """Experiment, method and seed to run, with everything that changes them.

    Attributes:
        experiment: name of the experiment; of one's own tasks, what they are called.
        method: name of the method.
        seed: the seed, 0 or more.
        out: folder of the run; None keeps nothing.
        data: folder to look for data in first.
        overrides: settings that differ from the experiment's, by key.
        device: where to train.
        sources: for one's own tasks, a ``tasks.toml``, or the files and folders of the tasks; empty for presets.
        ranks: the processes that share this run, of which this is one.
        description: the experiment, where somebody has described it already; None describes it when it is needed.
    """

    experiment: str
    method: str
    seed: int = 0
    out: Path | None = None
    data: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sources: tuple[Path, ...] = ()
    ranks: Ranks = ALONE
    description: Experiment | None = field(default=None, compare=False, repr=False)

    def described(self) -> Experiment:
        """The experiment.

        Raises:
            InputError: there is none, or the sources cannot be used.
        """
        return self.description or describe(self.experiment, self.sources)

    def cautions(self) -> tuple[str, ...]:
        """Sentences about settings of the request, or of one's own file, that have no effect, or are unusual.

        Raises:
            InputError: an unknown name or setting, or the sources cannot be used.
        """
        subject = self.described()
        config = subject.config(self.method).overridden(self.overrides)
        return cautions(self.method, config, (*self.overrides, *keys_in_file(subject, self.method)))

    def command(self) -> str:
        """A command line that makes this run."""
        files = [str(path.absolute()) for path in self.sources]
        what = files if len(files) == 1 and files[0].endswith(".toml") else ["--tasks", *files]
        many = ["torchrun", "--nproc-per-node", str(self.ranks.size), "-m"] if self.ranks.size > 1 else []
        words = [*many, "hatrack", "run", *(what if files else [self.experiment])]
        words += ["--method", self.method, "--seed", str(self.seed)]
        words += ["--threads", str(torch.get_num_threads()), "--device", self.device.type]
        for key, value in self.overrides.items():
            words += ["--set", f"{key}={as_text(value)}"]
        return shlex.join(words)


def as_text(value: object) -> str:
    """Return a setting's value as a text that is read as the same value."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def environment_of(request: RunRequest) -> dict[str, Any]:
    """Return a description of the machine as JSON values: all that the last bits of a run may depend on."""
    shared = {"processes": request.ranks.size} if request.ranks.size > 1 else {}
    return {**describe_environment(request.device), **shared}
