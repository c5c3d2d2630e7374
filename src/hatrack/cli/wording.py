"""Messages of the library in the words of the command line."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import fields

from hatrack.experiments.settings import NetworkSettings, StreamSettings
from hatrack.methods import METHODS
from hatrack.train import TrainingSettings

__all__ = ["with_options"]

_WORDS = {
    "compare": "hatrack compare --out DIR",
    "data_dir": "--data DIR",
    **{name: f"--{name}" for name in ("grid", "methods", "out", "seeds", "task", "tasks", "workers")},
}
"""Options and commands by the argument or function that a message names in backticks."""

_PARTS = (StreamSettings, NetworkSettings, TrainingSettings, *(method.settings_type for method in METHODS.values()))
_SETTINGS = {field.name for part in _PARTS for field in fields(part)}

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
    if name in _SETTINGS:
        return f"--set {method or ''}{name}={value or '...'}"
    if method is not None or name not in _WORDS:
        return found[0]
    return _WORDS[name] if value is None else f"{_WORDS[name]} {value}"


def _forget_command(found: re.Match[str]) -> str:
    folder, task = ast.literal_eval(found[1])
    return shlex.join(["hatrack", "forget", folder, "--task", task])
