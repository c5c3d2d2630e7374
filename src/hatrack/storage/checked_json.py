"""Checked JSON: files that hold values by key and, last, a checksum over them.

The checksum is of the values, not of the text, so that a file that was formatted anew is still whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatrack.errors import CheckpointError, NewerFileError
from hatrack.storage.atomic import save

__all__ = ["CHECKSUM", "read_checked_json", "with_checksum", "write_checked_json"]

CHECKSUM = "sha256"
"""Key of the checksum: SHA-256 of all else as compact JSON with sorted keys, in hexadecimal."""


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return content with its checksum added as the last key.

    Args:
        content: JSON values by key, without a checksum; all keys in it are texts.

    Raises:
        ValueError: a number is infinite or not a number, which JSON does not have.
    """
    return {**content, CHECKSUM: _checksum(content)}


def write_checked_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write checked JSON atomically.

    Args:
        path: the file.
        content: JSON values by key, without a checksum.

    Raises:
        CheckpointError: the file cannot be written; its former content is still there.
    """
    text = _formatted(with_checksum(content)) + "\n"
    # Lone surrogates, from file names that are not UTF-8, become escapes of JSON.
    save(path, text.encode(errors="backslashreplace"))


def read_checked_json(path: Path, newest: int | None = None, what: str = "file") -> dict[str, Any]:
    """Read checked JSON and compare its checksum.

    Args:
        path: the file.
        newest: the highest ``schema`` that is understood; None for files without one.
        what: kind of file, a noun for messages.

    Returns:
        JSON values by key, without the checksum.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or holds no JSON by key.
        NewerFileError: the file is whole, and from a newer version.
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
    """Format JSON for people: one line per key and per row of a matrix, which is much shorter than one per number."""
    deeper = indent + "  "
    if isinstance(value, Mapping) and value:
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {_formatted(part, deeper)}" for key, part in value.items()]
        return f"{{\n{deeper}" + f",\n{deeper}".join(parts) + f"\n{indent}}}"
    if isinstance(value, (list, tuple)) and any(isinstance(part, (Mapping, list, tuple)) for part in value):
        return f"[\n{deeper}" + f",\n{deeper}".join(_formatted(part, deeper) for part in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)
