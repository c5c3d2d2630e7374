"""Packed parts of data sets: files that hold some pictures of a data set and say of themselves that they are a part.

Published files are known by their hashes, so that a part of them is never taken for the whole. A packed part is a form
of its own, which is looked for after all whole ones. It is a checked file (:mod:`hatrack.storage.checkpoint`) with
strips of pictures (:mod:`hatrack.data.strips`); results record its origin.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hatrack.data.arrays import ImageArrays
from hatrack.data.files import require_unpacked
from hatrack.data.sources import data_roots
from hatrack.data.strips import Monitor, decode_strips, encode_strips, require_webp
from hatrack.errors import CheckpointError, DataError
from hatrack.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

__all__ = ["SUFFIX", "Identity", "PackedPart", "find_packed", "packed_files", "read_packed", "write_packed"]

SUFFIX = ".packed"
"""End of the name of a packed part; before it stands the name of the data set."""
FORMAT = "hatrack.PackedPart"
VERSION = 1
"""Version of what a packed part holds; later ones are refused."""
SAID_OF_DIGEST = 16
"""Digits of its digest that the origin of a packed part shows."""


class Identity(NamedTuple):
    """Data set by which a packed part is recognised as one of it.

    Attributes:
        name: name of the data set.
        class_names: the name of each class.
        mean: mean of each channel of the whole training part, after scaling to [0, 1].
        std: standard deviation of each channel, likewise.
    """

    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class PackedPart:
    """Some pictures of a data set, and what they are a part of.

    Attributes:
        identity: the data set.
        licence: terms under which it is published.
        source: origin of the whole data set, as results record it.
        train_counts: number of training pictures of every class of the whole.
        test_counts: number of test pictures of every class of the whole.
        arrays: the pictures that are here, and their labels.
    """

    identity: Identity
    licence: str
    source: str
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    arrays: ImageArrays

    @property
    def origin(self) -> str:
        """One line for results to record: numbers of pictures, of what they are a part, and their digest."""
        here = (len(self.arrays.y_train), len(self.arrays.y_test))
        kind = "whole" if here == (sum(self.train_counts), sum(self.test_counts)) else "part"
        digest = _digest(self.arrays)[:SAID_OF_DIGEST]
        return f"packed {kind}: {here[0]:,} + {here[1]:,} of {self.source} (SHA-256 {digest})"


def write_packed(path: Path, part: PackedPart, monitor: Monitor | None = None) -> None:
    """Write a packed part atomically. The same part gives the same bytes with the same libraries.

    Args:
        path: the file; its folder is made if need be.
        part: its content.
        monitor: told how many pictures have been written, of training and test together.

    Raises:
        InputError: its pictures are too large to be packed.
        DataError: Pillow writes no WebP.
        CheckpointError: the file cannot be written; its former content is still there.
    """
    require_webp()
    x_train, y_train, x_test, y_test = part.arrays
    behind = None if monitor is None else lambda done: monitor(len(x_train) + done)
    strips = {"train": encode_strips(x_train, monitor), "test": encode_strips(x_test, behind)}
    tensors = {"train.labels": y_train.int(), "test.labels": y_test.int()}
    for name, encoded in strips.items():
        tensors[f"{name}.strips"] = torch.frombuffer(bytearray(b"".join(encoded)) or bytearray(1), dtype=torch.uint8)
        tensors[f"{name}.sizes"] = torch.tensor([len(strip) for strip in encoded], dtype=torch.int64)
    description = {
        "format": FORMAT,
        "version": VERSION,
        **part.identity._asdict(),
        "licence": part.licence,
        "source": part.source,
        "train_counts": part.train_counts,
        "test_counts": part.test_counts,
        "shape": x_train.shape[1:],
        "sha256": _digest(part.arrays),
    }
    write_checkpoint(path, Checkpoint(tensors, description))


def read_packed(path: Path, expected: Identity) -> PackedPart:
    """Read a packed part.

    Args:
        path: the file.
        expected: the data set of which it must be a part.

    Raises:
        DataError: it is damaged, of a later version, no packed part, or one of another data set; or Pillow reads no
            WebP. The message says what to do.
    """
    require_webp()
    remedy = f"pack the whole data set again (hatrack data pack {expected.name})"
    try:
        kept = read_checkpoint(path, FORMAT)
    except CheckpointError as error:
        raise DataError(f"{error}; or {remedy}") from error
    about = kept.description
    if not isinstance(about.get("version"), int) or about["version"] > VERSION:
        raise DataError(
            f"{path} is a packed part of version {about.get('version')}, this hatrack reads up to {VERSION}; upgrade "
            f"it, or {remedy}"
        )
    try:
        part = _part(kept, str(path))
    except DataError as error:
        raise DataError(f"{error}; {remedy}") from error
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise DataError(f"{path}: is not as hatrack packs data sets ({error!r}); {remedy}") from error
    _require_same(part.identity, expected, path, remedy)
    return part


def packed_files(dataset: str, data_dir: Path | None) -> list[Path]:
    """Return the packed files of a data set that are there, sound or not, the preferred one first.

    They lie in a folder that a person named, or in one of the data set's name therein.

    Args:
        dataset: name of the data set.
        data_dir: folder to look in before ``$HATRACK_DATA``, or None.
    """
    paths = [root / below / f"{dataset}{SUFFIX}" for root in data_roots(data_dir) for below in ("", dataset)]
    # os.path says no where pathlib raises, in a folder that may not be entered
    return [path for path in dict.fromkeys(paths) if os.path.isfile(path)]  # noqa: PTH113


def find_packed(expected: Identity, data_dir: Path | None) -> tuple[Path, PackedPart]:
    """Return the first sound packed file of a data set, and its content.

    Args:
        expected: the data set.
        data_dir: folder to look in before ``$HATRACK_DATA``, or None.

    Raises:
        DataError: there is none; the message says what is wrong with those that are there.
    """
    faults = []
    for path in packed_files(expected.name, data_dir):
        try:
            return path, read_packed(path, expected)
        except DataError as error:
            faults.append(str(error))
    raise DataError("; ".join(faults) or f"{expected.name}{SUFFIX} not found; give its folder as `data_dir`")


def _require_same(there: Identity, expected: Identity, path: Path, remedy: str) -> None:
    """Refuse a packed part of another data set, or of one whose classes or constants were others."""
    if there.name != expected.name:
        raise DataError(
            f"{path} is packed from {there.name}, not from {expected.name}; call it {there.name}{SUFFIX}, or {remedy}"
        )
    if there.class_names != expected.class_names:
        pairs = zip(there.class_names, expected.class_names, strict=False)
        named = next((f": {one!r} there, {other!r} here" for one, other in pairs if one != other), "")
        counts = f"{len(there.class_names)} there, {len(expected.class_names)} here"
        raise DataError(f"{path} has other classes than {expected.name}{named or f': {counts}'}; {remedy}")
    if there != expected:
        raise DataError(f"{path} has another mean or standard deviation than {expected.name}; {remedy}")


def _part(kept: Checkpoint, origin: str) -> PackedPart:
    about = kept.description
    identity = Identity(
        str(about["name"]),
        _texts(about["class_names"]),
        tuple(map(float, about["mean"])),
        tuple(map(float, about["std"])),
    )
    channels, height, width = map(int, about["shape"])
    if min(channels, height, width) < 1:
        raise DataError(f"{origin}: its pictures have no pixels")
    halves = [_half(kept.tensors, name, (channels, height, width), origin) for name in ("train", "test")]
    arrays = ImageArrays(*halves[0], *halves[1])
    classes = len(identity.class_names)
    for labels in (arrays.y_train, arrays.y_test):
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise DataError(f"{origin}: a label is outside of 0..{classes - 1}")
    if _digest(arrays) != about["sha256"]:
        raise DataError(f"{origin}: its pictures are not those that were packed (the SHA-256 differs)")
    counts = [tuple(map(int, about[f"{half}_counts"])) for half in ("train", "test")]
    for labels, of_whole in zip((arrays.y_train, arrays.y_test), counts, strict=True):
        here = labels.bincount(minlength=classes).tolist()
        if len(here) != len(of_whole) or any(one > other for one, other in zip(here, of_whole, strict=True)):
            raise DataError(f"{origin}: holds more pictures of a class than it says that the whole has")
    if len(identity.mean) != channels or len(identity.std) != channels:
        raise DataError(f"{origin}: its mean and standard deviation are not of {channels} channels")
    return PackedPart(identity, str(about["licence"]), str(about["source"]), counts[0], counts[1], arrays)


def _half(
    tensors: Mapping[str, torch.Tensor], name: str, shape: tuple[int, int, int], origin: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pictures ``(N, C, H, W)`` and labels of the training or the test part."""
    labels, sizes, content = (tensors[f"{name}.{what}"] for what in ("labels", "sizes", "strips"))
    whole = content.numpy().tobytes()
    channels, height, width = shape
    require_unpacked(len(labels) * channels * height * width, len(whole), origin)
    ends = sizes.cumsum(0).tolist()
    strips = [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return decode_strips(strips, len(labels), shape, origin), labels.long()


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(map(str, values))


def _digest(arrays: ImageArrays) -> str:
    """Return the SHA-256 of pictures and labels, with their shapes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{tuple(array.shape)}\n".encode())
        digest.update(array.contiguous().numpy().data if array.numel() else b"")
    return digest.hexdigest()
