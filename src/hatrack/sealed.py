"""Files of JSON that tell whether they are whole: what they hold, and last a checksum over it.

The checksum is of the values, not of the text, so that a file that was formatted anew is still whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatrack.atomic import write_atomically
from hatrack.errors import CheckpointError, NewerFileError

__all__ = ["CHECKSUM", "read_sealed", "sealed", "write_sealed"]

CHECKSUM = "sha256"
"""The key of the checksum: SHA-256 of all else as compact JSON with sorted keys, in hexadecimal."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its checksum last.

    Args:
        content: JSON values by key, without a checksum; all keys in it are texts.

    Raises:
        ValueError: a number is infinite or not a number, which JSON does not have.
    """
    return {**content, CHECKSUM: _checksum(content)}


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file atomically.

    Args:
        path: the file.
        content: JSON values by key, without a checksum.

    Raises:
        CheckpointError: it cannot be written; what was there before is still there.
    """
    text = _formatted(sealed(content)) + "\n"
    try:
        # What UTF-8 cannot say, a part of a file's name that is none, becomes an escape of JSON's.
        write_atomically(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written ({error.strerror or error}); nothing was changed"
        ) from error


def read_sealed(path: Path, newest: int | None = None, what: str = "file") -> dict[str, Any]:
    """Read a file and check that it is whole.

    Args:
        path: the file.
        newest: the highest ``schema`` that is understood; None for files without one.
        what: what it is, for messages.

    Returns:
        What it holds, without the checksum.

    Raises:
        CheckpointError: it cannot be read, is damaged, or holds no JSON by key.
        NewerFileError: it is whole, and from a newer version.
    """
    try:
        content = json.loads(path.read_bytes().decode())
        if not isinstance(content, dict) or (newest is not None and type(content.get("schema")) is not int):
            raise ValueError("it holds no JSON by key")
        recorded = content.pop(CHECKSUM, None)
        checksum = _checksum(content)
    except OSError as error:
        raise CheckpointError(f"{path} could not be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged, or not a {what} of hatrack ({' '.join(str(error).split())})"
        ) from error
    if recorded != checksum:
        raise CheckpointError(f"{path} is damaged: its checksum does not match; use an earlier copy")
    if newest is not None and content["schema"] > newest:
        raise NewerFileError(f"{path} has schema {content['schema']}, this hatrack reads up to {newest}; upgrade it")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _formatted(value: Any, indent: str = "") -> str:
    """JSON for people: a key a line, and a row of a matrix a line, which is much less to write than a number a line."""
    deeper = indent + "  "
    if isinstance(value, Mapping) and value:
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {_formatted(part, deeper)}" for key, part in value.items()]
        return f"{{\n{deeper}" + f",\n{deeper}".join(parts) + f"\n{indent}}}"
    if isinstance(value, (list, tuple)) and any(isinstance(part, (Mapping, list, tuple)) for part in value):
        return f"[\n{deeper}" + f",\n{deeper}".join(_formatted(part, deeper) for part in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)
