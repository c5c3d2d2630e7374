"""MNIST and Fashion-MNIST: 28 x 28 grey images of 10 classes, 60,000 for training and 10,000 for testing.

Sources: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition",
Proc. IEEE 86(11), 1998; H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking
machine learning algorithms", arXiv:1708.07747, 2017. Both are published as the same four idx file names, so their
files are told apart by their hashes alone.

An idx file is a four-byte magic (two zeros, the type of the values, the number of axes), one big-endian 32-bit
size per axis, and then the values with the last axis running fastest. The description is on the MNIST page of
Y. LeCun, C. Cortes and C. Burges. Only unsigned bytes (type 0x08) are read, since nothing here uses another type.

A small real part of Fashion-MNIST is shipped with the package, so that a demonstration needs no files. The shipped
files are what these lines write, given the full data set; a test holds them to it::

    subset = build_subset(load_dataset("fashion-mnist"), TRAIN_PER_CLASS, TEST_PER_CLASS)
    for name, content in encode_subset(subset).items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, 9, mtime=0))

Their licence notice is in ``subset/NOTICE``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path

import torch

from hatrack.data.dataset import ImageArrays, ImageDataset
from hatrack.data.files import read_content
from hatrack.errors import DataError, InputError

__all__ = [
    "TEST_PER_CLASS",
    "TRAIN_PER_CLASS",
    "build_subset",
    "decode_idx",
    "decode_mnist",
    "encode_idx",
    "encode_subset",
    "read_idx",
]

MAGIC_BYTES = 4
UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> torch.Tensor:
    """Read an idx file, plain or gzip (told by its content, not by its name).

    Returns:
        A uint8 tensor of the shape that the file declares, values 0 to 255.

    Raises:
        DataError: the file cannot be read, is damaged, or is not idx of unsigned bytes.
    """
    return decode_idx(read_content(path), str(path))


def decode_idx(content: bytes, origin: str) -> torch.Tensor:
    """Decode the content of an idx file.

    Args:
        content: the bytes, already decompressed.
        origin: their path or address, for the error message.

    Returns:
        A uint8 tensor of the shape that the file declares.

    Raises:
        DataError: the magic, the type or the number of bytes is wrong.
    """
    if len(content) < MAGIC_BYTES or content[:2] != b"\0\0":
        raise DataError(f"{origin}: not an idx file (it does not begin with the idx magic)")
    kind, axes = content[2], content[3]
    if kind != UNSIGNED_BYTE:
        raise DataError(f"{origin}: idx values of type 0x{kind:02x} are not supported, only unsigned bytes (0x08)")
    if axes == 0:
        raise DataError(f"{origin}: not a usable idx file (it declares no axis)")
    header = MAGIC_BYTES + 4 * axes
    if len(content) < header:
        raise DataError(f"{origin}: cut short within the idx header ({len(content)} of {header} bytes)")
    shape = struct.unpack(f">{axes}I", content[MAGIC_BYTES:header])
    declared, present = math.prod(shape), len(content) - header
    if declared != present:
        sizes = " x ".join(map(str, shape))
        raise DataError(f"{origin}: declares {sizes} = {declared} values but holds {present}; fetch the file again")
    if declared == 0:  # torch.frombuffer refuses an empty buffer
        try:
            return torch.empty(shape, dtype=torch.uint8)
        except RuntimeError as error:  # no value at all, on axes too long for any array
            sizes = " x ".join(map(str, shape))
            raise DataError(f"{origin}: declares {sizes} values, which cannot be; fetch the file again") from error
    # A bytearray, because a tensor over read-only bytes would be a tensor that must never be written to.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(shape)


def encode_idx(values: torch.Tensor) -> bytes:
    """Return the content of the idx file that holds ``values``; :func:`decode_idx` is its inverse.

    Args:
        values: uint8 tensor of 1 to 255 axes.

    Raises:
        InputError: another dtype or number of axes.
    """
    if values.dtype != torch.uint8 or not 1 <= values.dim() <= 255:
        raise InputError(f"an idx file holds uint8 values on 1 to 255 axes, not {values.dtype} on {values.dim()}")
    header = struct.pack(f">BBBB{values.dim()}I", 0, 0, UNSIGNED_BYTE, values.dim(), *values.shape)
    return header + values.cpu().contiguous().numpy().tobytes()


TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"


def decode_mnist(contents: Mapping[str, bytes]) -> ImageArrays:
    """Decode the four idx files of a data set in MNIST's layout.

    Args:
        contents: decompressed content of each file by its plain name.

    Returns:
        Images uint8 ``(N, 1, H, W)`` and labels int64 ``(N,)``.

    Raises:
        DataError: a file is not idx or has another number of axes than it should.
    """
    arrays = {name: decode_idx(content, name) for name, content in contents.items()}
    for name, axes in ((TRAIN_IMAGES, 3), (TRAIN_LABELS, 1), (TEST_IMAGES, 3), (TEST_LABELS, 1)):
        if arrays[name].dim() != axes:
            raise DataError(f"{name}: has {arrays[name].dim()} axes instead of {axes}; fetch the file again")
    return ImageArrays(
        x_train=arrays[TRAIN_IMAGES].unsqueeze(1),
        y_train=arrays[TRAIN_LABELS].long(),
        x_test=arrays[TEST_IMAGES].unsqueeze(1),
        y_test=arrays[TEST_LABELS].long(),
    )


TRAIN_PER_CLASS = 300
TEST_PER_CLASS = 100


def build_subset(dataset: ImageDataset, per_class_train: int, per_class_test: int) -> ImageDataset:
    """Return the first images of every class, in the original order.

    Args:
        dataset: the full data set.
        per_class_train: number of training images of each class to keep, at least 1.
        per_class_test: number of test images of each class to keep, at least 1.

    Raises:
        InputError: a class has fewer images than asked for.
    """
    train = _first_rows(dataset.y_train, len(dataset.class_names), per_class_train)
    test = _first_rows(dataset.y_test, len(dataset.class_names), per_class_test)
    return ImageDataset(
        name=f"{dataset.name}-subset",
        x_train=dataset.x_train[train],
        y_train=dataset.y_train[train],
        x_test=dataset.x_test[test],
        y_test=dataset.y_test[test],
        class_names=dataset.class_names,
        mean=dataset.mean,
        std=dataset.std,
        origin=dataset.origin,
        common_form=dataset.common_form,
    )


def encode_subset(subset: ImageDataset) -> dict[str, bytes]:
    """Return a grey data set as the content of MNIST's four idx files, by plain name.

    Args:
        subset: a data set with one channel and at most 256 classes.

    Raises:
        InputError: the data set has more than one channel or too many classes for a byte.
    """
    if subset.x_train.shape[1] != 1 or len(subset.class_names) > 256:
        raise InputError(f"{subset.name}: MNIST's files hold grey images of at most 256 classes")
    return {
        TRAIN_IMAGES: encode_idx(subset.x_train.squeeze(1)),
        TRAIN_LABELS: encode_idx(subset.y_train.byte()),
        TEST_IMAGES: encode_idx(subset.x_test.squeeze(1)),
        TEST_LABELS: encode_idx(subset.y_test.byte()),
    }


def _first_rows(labels: torch.Tensor, num_classes: int, per_class: int) -> torch.Tensor:
    """Return the rows of the first ``per_class`` examples of every class, ascending."""
    rows = [(labels == label).nonzero().flatten()[:per_class] for label in range(num_classes)]
    if per_class < 1 or any(len(found) < per_class for found in rows):
        raise InputError(f"cannot take {per_class} images of every class; the smallest has {min(map(len, rows))}")
    return torch.cat(rows).sort().values
