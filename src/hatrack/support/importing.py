"""Import of a person's own functions and classes, by ``module:name``, and the failures of their code in one line."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from hatrack.errors import InputError
from hatrack.support.names import unknown_name

__all__ = ["failure_of", "imported"]


def imported(what: str, name: str, example: str, kind: str = "function") -> Any:
    """Import a function or class of a person's own, from what is installed or from the working directory.

    Args:
        what: noun for what it is to be, such as ``network``, for messages.
        name: ``module:name``.
        example: a name of this form whose module is ``mymodule``, for messages.
        kind: ``function`` or ``class``, for messages.

    Raises:
        InputError: the module cannot be imported, or has nothing of that name that can be called.
    """
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, SyntaxError) as error:
        raise InputError(
            f"{what} {name}: {module_name or 'the module'} cannot be imported ({error}); write {example}, where "
            "mymodule.py is in the working directory or installed"
        ) from error
    except (Exception, SystemExit) as error:  # what the module does when it is imported
        raise InputError(f"{what} {name}: {module_name} cannot be imported: {failure_of(error)}") from error
    finally:
        if added:
            sys.path.remove(here)
    found = getattr(module, attribute, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown_name(f"{kind} in {module_name}", attribute, known)
    return found


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
