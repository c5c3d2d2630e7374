"""File format of saved networks: named tensors and a JSON description, with a checksum over both.

A file is a safetensors file whose metadata holds one entry, ``hatrack``: JSON with ``version``, ``sha256`` and
``description``. Reading one never executes anything from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from hatrack.errors import CheckpointError, DamagedFileError, NewerFileError
from hatrack.storage.atomic import save

__all__ = [
    "VERSION",
    "Checkpoint",
    "check_backbone",
    "description_of_modules",
    "is_damaged",
    "part_of",
    "read_checkpoint",
    "write_checkpoint",
]

VERSION = 2
"""Version of the file format that this library writes, and the only one that it reads."""


@dataclass(frozen=True)
class Checkpoint:
    """Content of a file.

    Attributes:
        tensors: tensors by name.
        description: JSON values; ``format`` says what was saved.
    """

    tensors: Mapping[str, Tensor]
    description: Mapping[str, Any]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file.
        checkpoint: its content.

    Raises:
        CheckpointError: the file cannot be written; its former content is still there.
    """
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in checkpoint.tensors.items()}
    description = json.dumps(checkpoint.description, sort_keys=True)
    header = json.dumps({"version": VERSION, "sha256": _checksum(tensors, description), "description": description})
    save(path, safetensors.torch.save(tensors, metadata={"hatrack": header}))


def read_checkpoint(path: Path, *expected_formats: str) -> Checkpoint:
    """Read a checkpoint and compare its checksum.

    Args:
        path: the file.
        *expected_formats: the ``format`` that its description may have; none for any.

    Raises:
        DamagedFileError: the file is missing, damaged, not hatrack's, or of another format.
        NewerFileError: the file is from a newer version.
        CheckpointError: the file is from a version that is too old.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedFileError(f"{path} could not be read ({error.strerror or error})") from error
    try:
        tensors = safetensors.torch.load(content)
        header_length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + header_length]).get("__metadata__") or {}
    except (safetensors.SafetensorError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged, or not a file that hatrack saved ({error})") from error
    if "hatrack" not in metadata:
        raise DamagedFileError(f"{path} is a safetensors file, but hatrack did not save it")
    try:
        header = json.loads(metadata["hatrack"])
        version, checksum, text = header["version"], header["sha256"], header["description"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: its description cannot be read") from error
    if not isinstance(text, str):
        raise DamagedFileError(f"{path} is damaged: its description cannot be read")
    if not isinstance(version, int) or version > VERSION:
        kind = NewerFileError if isinstance(version, int) else DamagedFileError
        raise kind(f"{path} has version {version} of the format, this hatrack reads up to {VERSION}; upgrade it")
    if checksum != _checksum(tensors, text):
        raise DamagedFileError(f"{path} is damaged: its checksum does not match; use an earlier copy")
    if version < VERSION:
        raise CheckpointError(
            f"{path} has version {version} of the format, this hatrack reads version {VERSION}; save it again with an "
            "earlier one"
        )
    description = json.loads(text)
    if expected_formats and description.get("format") not in expected_formats:
        raise DamagedFileError(f"{path} holds a {description.get('format')}, not a {' or a '.join(expected_formats)}")
    return Checkpoint(tensors, description)


def is_damaged(path: Path) -> bool:
    """Return whether a file exists and is not as it was written."""
    try:
        read_checkpoint(path)
    except DamagedFileError:
        return path.exists()
    except CheckpointError:  # whole, and of another version
        return False
    return False


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def description_of_modules(backbone: nn.Module) -> list[list[str]]:
    """List names and types of a network's modules, to recognise the network that a file was made for."""
    return [[name, type(module).__name__] for name, module in backbone.named_modules()]


def check_backbone(path: Path, saved: list[list[str]], backbone: nn.Module) -> None:
    """Check that a network has the modules that a file was saved with.

    Args:
        path: the file.
        saved: names and types of the modules in the file.
        backbone: the network.

    Raises:
        CheckpointError: the network has others; the message gives the first difference.
    """
    present = description_of_modules(backbone)
    for index in range(max(len(saved), len(present))):
        theirs = saved[index] if index < len(saved) else None
        ours = present[index] if index < len(present) else None
        if theirs != ours:
            raise CheckpointError(
                f"{path} was saved with another backbone: it had {_say(theirs)} where this one has {_say(ours)}; "
                "build the backbone exactly as it was"
            )


def _say(module: list[str] | None) -> str:
    return "nothing" if module is None else f"{module[1]} {module[0]!r}".replace(" ''", " at its root")


def _checksum(tensors: Mapping[str, Tensor], description: str) -> str:
    summary = hashlib.sha256(description.encode(errors="surrogatepass"))  # a lone surrogate comes from damage alone
    for name in sorted(tensors):
        tensor = tensors[name]
        summary.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            summary.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return summary.hexdigest()
