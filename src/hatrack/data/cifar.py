"""CIFAR-10 and CIFAR-100: 32 x 32 colour images of 10 and of 100 classes, 50,000 for training and 10,000 for testing.

Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", University of Toronto, 2009. Both are
published as pickles for Python and as a binary version, each in one archive; many tools keep the unpacked folders. The
pixels and labels of all of these are the same. Trees of picture files are read too.

A pickle holds a dictionary with ``data``, bytes ``(N, 3072)``, each row an image's red, green and blue values, row by
row, and a list of labels. The binary version holds one record per image: its label, in one byte, or in two of which
the second counts (CIFAR-100 puts the superclass first), and then the same 3072 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hatrack.data.archives import read_tar_gz
from hatrack.data.catalogue import CATALOGUE
from hatrack.data.dataset import ImageArrays
from hatrack.data.pickles import load_pickle
from hatrack.errors import DataError

__all__ = ["CIFAR10_FORMAT", "CIFAR100_FORMAT", "CifarFormat"]

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
ARCHIVE_LIMIT = 1 << 28
"""Largest size of an archive, unpacked: the real ones have 190 million bytes."""


@dataclass(frozen=True)
class CifarFormat:
    """Layout of one of the two sets; its methods are decoders.

    Attributes:
        class_names: the names of the classes, which the files must repeat.
        python_folder: the folder in the archive for Python.
        binary_folder: the folder in the archive of the binary version.
        train: names of the training files; those of the binary version end in ``.bin``.
        test: name of the test file, likewise.
        meta: name of the pickle with the names of the classes.
        labels_key: key of the labels in a pickle.
        names_key: key of the names of the classes in ``meta``.
        binary_names: name of the binary version's text file with the names of the classes, one a line.
        label_bytes: bytes before the pixels in a record of the binary version; the last one is the label.
        train_rows: images in each training file.
        test_rows: images in the test file.
    """

    class_names: tuple[str, ...]
    python_folder: str
    binary_folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels_key: str
    names_key: str
    binary_names: str
    label_bytes: int
    train_rows: int
    test_rows: int

    def decode_python_archive(self, contents: Mapping[str, bytes]) -> ImageArrays:
        """Decode the archive for Python, the only entry of ``contents``. See :meth:`decode_python`."""
        return self.decode_python(self._unpacked(contents, self.python_folder, (*self.train, self.test, self.meta)))

    def decode_binary_archive(self, contents: Mapping[str, bytes]) -> ImageArrays:
        """Decode the archive of the binary version, the only entry of ``contents``. See :meth:`decode_binary`."""
        names = (*(f"{name}.bin" for name in (*self.train, self.test)), self.binary_names)
        return self.decode_binary(self._unpacked(contents, self.binary_folder, names))

    def decode_python(self, contents: Mapping[str, bytes]) -> ImageArrays:
        """Decode the files for Python.

        Args:
            contents: content of each file by its name.

        Returns:
            Images uint8 ``(N, 3, 32, 32)`` and labels int64 ``(N,)``.

        Raises:
            DataError: a file is no such pickle, or its images, labels or names of classes are not what they should be.
        """
        names = load_pickle(contents[self.meta], self.meta).get(self.names_key)
        self._require_names([_text(name) for name in names] if isinstance(names, list) else [], self.meta)
        parts = {name: self._read_pickle(contents[name], name) for name in (*self.train, self.test)}
        return self._arrays(parts, [*self.train], self.test)

    def decode_binary(self, contents: Mapping[str, bytes]) -> ImageArrays:
        """Decode the files of the binary version.

        Args:
            contents: content of each file by its name; the one with the names of the classes may be left out.

        Returns:
            As :meth:`decode_python`.

        Raises:
            DataError: a file has another size than it should, or its labels or names of classes are wrong.
        """
        if self.binary_names in contents:
            lines = contents[self.binary_names].decode("latin-1").split("\n")
            self._require_names([line.strip() for line in lines if line.strip()], self.binary_names)
        train = [f"{name}.bin" for name in self.train]
        test = f"{self.test}.bin"
        parts = {name: self._read_records(contents[name], name) for name in (*train, test)}
        return self._arrays(parts, train, test)

    def _unpacked(self, contents: Mapping[str, bytes], folder: str, names: Sequence[str]) -> dict[str, bytes]:
        ((archive, payload),) = contents.items()
        within = {f"{folder}/{name}": name for name in names}
        members = read_tar_gz(payload, within.keys(), limit=ARCHIVE_LIMIT, origin=archive)
        return {within[path]: content for path, content in members.items()}

    def _rows(self, name: str) -> int:
        return self.test_rows if name.removesuffix(".bin") == self.test else self.train_rows

    def _read_pickle(self, content: bytes, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        entry = load_pickle(content, name)
        rows, labels = entry.get("data"), entry.get(self.labels_key)
        wanted = (self._rows(name), PIXELS)
        if not isinstance(rows, torch.Tensor) or tuple(rows.shape) != wanted:
            found = f"of shape {tuple(rows.shape)}" if isinstance(rows, torch.Tensor) else "missing"
            raise DataError(f"{name}: its images are {found}, not of shape {wanted}; fetch the file again")
        if not isinstance(labels, list) or len(labels) != len(rows) or not all(type(one) is int for one in labels):
            raise DataError(f"{name}: does not hold {len(rows)} whole numbers as {self.labels_key}; fetch it again")
        if not all(0 <= label < len(self.class_names) for label in labels):
            raise _out_of_range(name, len(self.class_names))
        return rows, torch.tensor(labels)

    def _read_records(self, content: bytes, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.label_bytes + PIXELS
        wanted = self._rows(name) * size
        if len(content) != wanted:
            raise DataError(f"{name}: has {len(content)} bytes, not {wanted}; fetch the file again")
        records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, size)
        labels = records[:, self.label_bytes - 1].long()
        if int(labels.max()) >= len(self.class_names):
            raise _out_of_range(name, len(self.class_names))
        return records[:, self.label_bytes :], labels

    def _require_names(self, found: list[str], name: str) -> None:
        if tuple(found) != self.class_names:
            pairs = zip(found, self.class_names, strict=False)
            first = next(
                (f"{theirs!r} for {ours!r}" for theirs, ours in pairs if theirs != ours), f"{len(found)} names"
            )
            raise DataError(
                f"{name}: does not name the {len(self.class_names)} classes as it should ({first}); fetch it again"
            )

    def _arrays(
        self, parts: Mapping[str, tuple[torch.Tensor, torch.Tensor]], train: Sequence[str], test: str
    ) -> ImageArrays:
        x_train = torch.cat([parts[name][0] for name in train]).reshape(-1, *SHAPE)
        y_train = torch.cat([parts[name][1] for name in train])
        x_test, y_test = parts[test]
        for part, labels in (("training", y_train), ("test", y_test)):
            counts = labels.bincount(minlength=len(self.class_names))
            if counts.min() != counts.max():
                raise DataError(
                    f"{part} images: of one class there are {counts.min()}, of another {counts.max()}, which should be "
                    "the same; fetch the files again"
                )
        return ImageArrays(x_train, y_train, x_test.reshape(-1, *SHAPE).contiguous(), y_test)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _out_of_range(name: str, classes: int) -> DataError:
    return DataError(f"{name}: a label is outside of 0..{classes - 1}; fetch the file again")


CIFAR10_FORMAT = CifarFormat(
    class_names=tuple(CATALOGUE["cifar10"]["class_names"]),
    python_folder="cifar-10-batches-py",
    binary_folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    meta="batches.meta",
    labels_key="labels",
    names_key="label_names",
    binary_names="batches.meta.txt",
    label_bytes=1,
    train_rows=10_000,
    test_rows=10_000,
)

CIFAR100_FORMAT = CifarFormat(
    class_names=tuple(CATALOGUE["cifar100"]["class_names"]),
    python_folder="cifar-100-python",
    binary_folder="cifar-100-binary",
    train=("train",),
    test="test",
    meta="meta",
    labels_key="fine_labels",
    names_key="fine_label_names",
    binary_names="fine_label_names.txt",
    label_bytes=2,
    train_rows=50_000,
    test_rows=10_000,
)
