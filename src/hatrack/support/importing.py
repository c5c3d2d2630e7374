"""Import of a person's own functions and classes, by ``module:name``, and the failures of their code in one line."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path, PureWindowsPath
from typing import Any

import torch

from hatrack.errors import InputError
from hatrack.support.names import unknown_name

__all__ = ["failure_of", "imported"]


def imported(what: str, name: str, example: str, kind: str = "function", base: type | None = None) -> Any:
    """Import a function or class of a person's own, from what is installed or from the working directory.

    The working directory stays the last place that modules are looked for in: the code may import more when it runs.

    Args:
        what: noun for what it is to be, such as ``network``, for messages.
        name: ``module:name``.
        example: a name of this form whose module is ``mymodule``, for messages.
        kind: noun for what the module has of that name, for messages.
        base: class whose subclasses messages name; None for all that can be called.

    Raises:
        InputError: the name has the form of a path, or the module cannot be imported, or has nothing of that name that
            can be called.
    """
    module_name, _, attribute = name.partition(":")
    place = "mymodule.py is in the working directory or installed"
    if module_name.startswith(".") or "/" in module_name or "\\" in module_name:
        stem = PureWindowsPath(module_name).name.removesuffix(".py")
        form = (
            f"{stem}:{attribute} from the folder of {stem}.py" if stem.isidentifier() else f"{example}, where {place}"
        )
        raise InputError(f"{what} {name}: {module_name} is a path, not the name of a module; write {form}")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, SyntaxError) as error:
        raise InputError(
            f"{what} {name}: {module_name or 'the module'} cannot be imported ({error}); write {example}, where {place}"
        ) from error
    except (Exception, SystemExit) as error:  # what the module does when it is imported
        raise InputError(f"{what} {name}: {module_name} cannot be imported: {failure_of(error)}") from error
    finally:
        sys.path.remove(here)
    if here not in sys.path:
        sys.path.append(here)  # last, where it hides nothing that others import later
    found = getattr(module, attribute, None)
    if not callable(found):
        things = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("_")}
        known = [key for key, value in things.items() if base is None or _is_below(value, base)]
        raise unknown_name(f"{kind} in {module_name}", attribute, known)
    return found


def _is_below(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value is not base


def failure_of(error: BaseException) -> str:
    """Return an exception's type and message, and the line of somebody else's code that it comes from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_theirs(frame.filename)]
    where = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {said}' if said else ''}{where}"


def _is_theirs(filename: str) -> bool:
    """Return whether a file is neither of torch nor of hatrack."""
    ours = (Path(torch.__file__).parent, Path(__file__).parents[1])
    return not any(Path(filename).is_relative_to(place) for place in ours)
