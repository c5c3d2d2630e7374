"""Options that several commands share, how they print, and messages of the library in the words of the command line.

In this package modules of hatrack that need torch are imported by the functions that call them: torch takes seconds to
import, for which help and faults of a command line need not wait.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from hatrack.cli.names import EXPERIMENTS, METHODS
from hatrack.errors import InputError
from hatrack.storage.atomic import require_place, write_atomically
from hatrack.support.names import unknown_name

if TYPE_CHECKING:
    import torch

    from hatrack.experiments import Experiment

__all__ = [
    "DEFAULTS",
    "WHOLE",
    "Data",
    "Device",
    "ExperimentName",
    "InterruptedRun",
    "Learning",
    "MethodName",
    "NetworkName",
    "Output",
    "Quiet",
    "Settings",
    "check_threads",
    "make_console",
    "read_overrides",
    "require_output",
    "say",
    "take_device",
    "tell",
    "warn",
    "with_options",
    "write_file",
    "write_output",
]


def _whole_number(kind: Any, tokens: Sequence[cyclopts.Token]) -> int:
    return int(tokens[0].value)  # cyclopts itself would round 1.5


def _require_method_name(kind: Any, name: str) -> None:
    """Refuse the name of no method, before torch is imported; a class of one's own is imported later.

    Raises:
        ValueError: there is no such method.
    """
    if ":" not in name and name not in METHODS:
        said = str(unknown_name("method", name, METHODS))
        raise ValueError(f"{said[0].upper()}{said[1:]}")


WHOLE = Parameter(converter=_whole_number)
NetworkName = Literal["mlp", "alexnet", "resnet18", "vit"]  # for completion; any other name may follow
Quiet = Annotated[bool, Parameter(name="--quiet", negative="", help="Print nothing but errors.")]
Data = Annotated[Path | None, Parameter(help="Folder in which data sets are looked for first (or set HATRACK_DATA).")]
Settings = Annotated[tuple[str, ...], Parameter(name="--set", negative="", consume_multiple=False)]
Output = Annotated[Path | None, Parameter(name=["--out", "-o"])]
Device = Literal["auto", "cpu", "cuda"]
if TYPE_CHECKING:
    ExperimentName = str | None
    MethodName = str
else:
    # The names are for completion; a class of one's own may stand there, too.
    MethodName = Annotated[Literal[METHODS] | str, Parameter(validator=_require_method_name)]
    ExperimentName = Annotated[
        Literal[EXPERIMENTS] | str | None,
        Parameter(
            help="What to learn; `hatrack list experiments` explains them. Or a file of your own: `tasks.toml`, a "
            "table, an `.npz` or a `.zip` of pictures."
        ),
    ]


class InterruptedRun(KeyboardInterrupt):
    """Ctrl-C while something was going on whose finished tasks are on disk."""


@Parameter(name="*")
@dataclass(frozen=True)
class Learning:
    """Options of all commands that make runs of an experiment: what is learned, and how.

    Parameters
    ----------
    tasks
        Folders or `.zip` files of pictures and `.npz` files to learn one after the other, in place of an experiment.
    epochs
        Largest number of epochs per task; short for `--set epochs=N`.
    limit
        At most so many training samples per task, balanced over its classes; short for `--set limit=N`.
    network
        The backbone, if not the experiment's own; short for `--set network=NAME`. `mymodule:build` takes a function of
        your own, which gets the shape of a sample and returns a network that maps a batch to features.
    device
        Where to train; `auto` takes a GPU if there is one.
    """

    tasks: Annotated[tuple[Path, ...], Parameter(negative="", consume_multiple=True)] = ()
    epochs: Annotated[int | None, WHOLE] = None
    limit: Annotated[int | None, WHOLE] = None
    network: NetworkName | str | None = None
    data: Data = None
    device: Device = "auto"
    quiet: Quiet = False

    def experiment(self, name: str | None) -> Experiment:
        """Return what is to be learned.

        Args:
            name: name of an experiment, or a file of one's own; None for files and folders of tasks.

        Raises:
            InputError: there is no such thing, or two are given.
        """
        from hatrack.experiments import describe
        from hatrack.streams.own.formats import TABLE_SUFFIXES

        if (name is None) == (not self.tasks):
            raise InputError("give one thing to learn: an experiment, a tasks.toml, or --tasks with folders and files")
        if name is not None and name.lower().endswith((".toml", ".npz", ".zip", *TABLE_SUFFIXES)):
            return describe("", (Path(name),))
        return describe(name or "", self.tasks)

    def overrides(self, settings: Iterable[str], **short: Any) -> dict[str, Any]:
        """Return settings, those included that have an option of their own.

        Args:
            settings: as ``key=value``.
            **short: further settings by key; None where the option was not given.

        Raises:
            InputError: one has another form, or is given twice.
        """
        overrides = read_overrides(settings)
        given = {"epochs": self.epochs, "limit": self.limit, **short, "network": self.network}
        short = {key: value for key, value in given.items() if value is not None}
        for key in short:
            if key in overrides:
                raise InputError(f"--{key} and --set {key}=... are the same setting; give one of them")
        return {**overrides, **short}


DEFAULTS = Learning()
"""Options of a command line that has none of them."""


def read_overrides(settings: Iterable[str], option: str = "--set") -> dict[str, Any]:
    """Read settings of the form ``key=value``.

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


def check_threads(threads: int) -> int:
    """Return a number of threads that this machine can bear.

    Raises:
        InputError: it is below 1 or far too large.
    """
    if threads < 1:
        raise InputError(f"--threads must be at least 1, not {threads}")
    if threads > 4 * (os.cpu_count() or 1):
        raise InputError(f"--threads {threads} is too much for this machine, which has {os.cpu_count()} processors")
    return threads


def take_device(choice: Device) -> torch.device:
    """Return the device of an option.

    Raises:
        InputError: a GPU was asked for and there is none.
    """
    import torch

    from hatrack.support.environment import deterministic_cuda

    if choice == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here; use --device cpu")
    if choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return deterministic_cuda()


def make_console() -> Console:
    """Return where commands print."""
    return Console(soft_wrap=not sys.stdout.isatty())


def say(console: Console, text: str) -> None:
    """Print what may hold a user's own words: as it is, neither markup nor coloured nor folded."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def tell(kind: str, style: str, message: str) -> None:
    """Print a line beside the output, such as an error; no markup, since a message may quote what a user typed."""
    Console(stderr=True).print(Text.assemble((kind, style), " ", message), soft_wrap=True)


def warn(messages: Iterable[str]) -> None:
    """Print a warning for each of some messages of the library, beside the output."""
    for message in messages:
        tell("warning:", "bold yellow", with_options(message))


def require_output(path: Path) -> None:
    """Check that a file can be written, before it is known what into it.

    Raises:
        InputError: the file is a folder, or would be inside of a file.
    """
    try:
        require_place(path)
    except InputError as error:
        raise InputError(f"{error} as --out") from error


def write_file(path: Path, text: str) -> None:
    """Write a file; its folder is made if need be.

    Raises:
        InputError: the file is a folder, or would be inside of a file.
    """
    require_output(path)
    write_atomically(path, text.encode())


def write_output(path: Path | None, text: str) -> None:
    """Write a file and say so, or print where none is named.

    Raises:
        InputError: the file is a folder, or would be inside of a file.
    """
    if path is None:
        sys.stdout.write(text)
    else:
        write_file(path, text)
        say(make_console(), f"wrote {path}")


_WORDS = {
    "compare": "hatrack compare --out DIR",
    "data_dir": "--data DIR",
    "tables.accuracy": "hatrack report FOLDER --format markdown --table accuracy",
    **{name: f"--{name}" for name in ("grid", "methods", "out", "seeds", "task", "tasks", "workers")},
}
"""Options and commands by the argument or function that a message names in backticks."""


@functools.cache
def _settings() -> frozenset[str]:
    """Return the names of all settings."""
    from hatrack.experiments.settings import NetworkSettings, StreamSettings
    from hatrack.methods import METHODS
    from hatrack.train import TrainingSettings

    parts = (StreamSettings, NetworkSettings, TrainingSettings, *(kind.settings_type for kind in METHODS.values()))
    return frozenset(field.name for part in parts for field in fields(part))


_NAME = re.compile(r"`(\w+\.)?(\w+)(?:=([^`]*))?`")
_FORGET = re.compile(r"`forget_in_run(\(.*\))`")


def with_options(message: str) -> str:
    """Replace arguments and settings, which the library names in backticks, by the options that give them.

    >>> with_options("choose another folder (`out`)")
    'choose another folder (--out)'
    >>> with_options("lower the learning rate (`lr`)")
    'lower the learning rate (--set lr=...)'
    """
    return _NAME.sub(_option, _FORGET.sub(_forget_command, message))


def _option(found: re.Match[str]) -> str:
    method, name, value = found.groups()
    if name in _settings():
        return f"--set {method or ''}{name}={value or '...'}"
    word = _WORDS.get(f"{method or ''}{name}")
    if word is None:
        return found[0]
    return word if value is None else f"{word} {value}"


def _forget_command(found: re.Match[str]) -> str:
    folder, task = ast.literal_eval(found[1])
    return shlex.join(["hatrack", "forget", folder, "--task", task])
