"""What several commands share: options, and how they print."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
import torch
from cyclopts import Parameter
from rich.console import Console

from hatrack.errors import InputError
from hatrack.experiments import EXPERIMENTS, find_experiment
from hatrack.experiments.own import own_experiment
from hatrack.support.environment import deterministic_cuda

__all__ = [
    "WHOLE",
    "Data",
    "Device",
    "ExperimentName",
    "InterruptedRun",
    "NetworkName",
    "Quiet",
    "Settings",
    "as_folder",
    "check_threads",
    "make_console",
    "read_overrides",
    "say",
    "take_device",
    "what_to_learn",
    "with_short_forms",
]


def _whole_number(kind: Any, tokens: Sequence[cyclopts.Token]) -> int:
    return int(tokens[0].value)  # cyclopts itself would round 1.5


WHOLE = Parameter(converter=_whole_number)
NetworkName = Literal["mlp", "alexnet", "resnet18", "vit"]  # for completion; any other name may follow
Quiet = Annotated[bool, Parameter(name="--quiet", negative="", help="Print nothing but errors.")]
Data = Annotated[Path | None, Parameter(help="Folder in which data sets are looked for first (or set HATRACK_DATA).")]
Settings = Annotated[tuple[str, ...], Parameter(name="--set", negative="", consume_multiple=False)]
Device = Literal["auto", "cpu", "cuda"]
if TYPE_CHECKING:
    ExperimentName = str
else:
    ExperimentName = Literal[tuple(EXPERIMENTS)]


class InterruptedRun(KeyboardInterrupt):
    """Ctrl-C while something was going on whose finished tasks are on disk."""


def as_folder(path: Path) -> Path:
    """A folder to write into, which need not exist yet.

    Raises:
        InputError: it is a file.
    """
    if path.is_file():
        raise InputError(f"{path} is a file; give a folder as --out")
    return path


def read_overrides(settings: Iterable[str], option: str = "--set") -> dict[str, Any]:
    """Settings of the form ``key=value``.

    Raises:
        InputError: one has another form, or comes twice.
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"{option} {setting} does not fit: write {option} key=value")
        if key in overrides:
            raise InputError(f"{option} {key} is given twice")
        overrides[key] = value
    return overrides


def with_short_forms(overrides: dict[str, Any], **short: Any) -> dict[str, Any]:
    """Settings, and those that have an option of their own.

    Raises:
        InputError: a setting is given in both ways.
    """
    for key, value in short.items():
        if value is not None and key in overrides:
            raise InputError(f"--{key} and --set {key}=... are the same setting; give one of them")
    return {**overrides, **{key: value for key, value in short.items() if value is not None}}


def check_threads(threads: int) -> int:
    """A number of threads that this machine can bear.

    Raises:
        InputError: it is below 1 or far too large.
    """
    if threads < 1:
        raise InputError(f"--threads must be at least 1, not {threads}")
    if threads > 4 * (os.cpu_count() or 1):
        raise InputError(f"--threads {threads} is too much for this machine, which has {os.cpu_count()} processors")
    return threads


def take_device(choice: Device) -> torch.device:
    """The device of an option.

    Raises:
        InputError: a GPU was asked for and there is none.
    """
    if choice == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here; use --device cpu")
    if choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return deterministic_cuda()


def make_console() -> Console:
    """Where commands print."""
    return Console(soft_wrap=not sys.stdout.isatty())


def say(console: Console, text: str) -> None:
    """Print what may hold a user's own words: as it is, neither markup nor coloured nor folded."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def what_to_learn(experiment: str | None, tasks: tuple[Path, ...]) -> tuple[str, tuple[Path, ...]]:
    """The experiment's name, and for one's own tasks what they are made of.

    Raises:
        InputError: there is no such thing, or two are given.
    """
    if (experiment is None) == (not tasks):
        raise InputError("give one thing to learn: an experiment, a tasks.toml, or --tasks with folders and files")
    if experiment is not None and not experiment.lower().endswith(".toml"):
        return find_experiment(experiment).name, ()
    sources = tasks if experiment is None else (Path(experiment),)
    return own_experiment(sources).name, sources
