"""Byte-exact miniatures of the formats of CIFAR, written out opcode by opcode and record by record."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from hatrack.data.cifar import CIFAR10_FORMAT, CIFAR100_FORMAT
from hatrack.data.dataset import ImageArrays

TEN = replace(CIFAR10_FORMAT, train_rows=4, test_rows=10)
HUNDRED = replace(CIFAR100_FORMAT, train_rows=200, test_rows=100)


def arrays_of(layout: object) -> ImageArrays:
    """Random images, balanced over the classes in random order."""
    assert isinstance(layout, type(TEN))
    generator = torch.Generator().manual_seed(1)
    classes = len(layout.class_names)
    train, test = layout.train_rows * len(layout.train), layout.test_rows

    def images(count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)

    def labels(count: int) -> torch.Tensor:
        return torch.randperm(count, generator=generator) % classes

    return ImageArrays(images(train), labels(train), images(test), labels(test))


# --- pickles, as Python 2's cPickle wrote them with protocol 2


def text(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode()


def number(value: int) -> bytes:
    return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)


def array(values: torch.Tensor) -> bytes:
    """A numpy array of bytes with two axes."""
    rows, columns = values.shape
    content = values.numpy().tobytes()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\x09U\x01bq\x0a\x87q\x0bRq\x0c"
        + (
            b"(K\x01"
            + number(rows)
            + number(columns)
            + b"\x86q\x0dcnumpy\ndtype\nq\x0eU\x02u1q\x0fK\x00K\x01\x87q\x10R"
        )
        + b"q\x11(K\x03U\x01|q\x12NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x13b\x89"
        + (b"T" + struct.pack("<I", len(content)) + content + b"q\x14tq\x15b")
    )


def texts(values: Sequence[str]) -> bytes:
    return b"]q\x17(" + b"".join(text(value) for value in values) + b"e"


def numbers(values: Sequence[int]) -> bytes:
    return b"]q\x05(" + b"".join(number(value) for value in values) + b"e"


def dictionary(entries: Mapping[str, bytes]) -> bytes:
    return b"\x80\x02}q\x01(" + b"".join(text(key) + value for key, value in entries.items()) + b"u."


def python_files(layout: object, arrays: ImageArrays) -> dict[str, bytes]:
    """The files of the version for Python."""
    assert isinstance(layout, type(TEN))
    files = {}
    for index, name in enumerate(layout.train):
        rows = slice(index * layout.train_rows, (index + 1) * layout.train_rows)
        files[name] = _batch(layout, arrays.x_train[rows], arrays.y_train[rows])
    files[layout.test] = _batch(layout, arrays.x_test, arrays.y_test)
    files[layout.meta] = dictionary({"num_vis": number(3072), layout.names_key: texts(layout.class_names)})
    return files


def _batch(layout: object, images: torch.Tensor, labels: torch.Tensor) -> bytes:
    assert isinstance(layout, type(TEN))
    entries = {
        "batch_label": text("training batch 1 of 5"),
        layout.labels_key: numbers(labels.tolist()),
        "data": array(images.flatten(1)),
        "filenames": texts([f"image_s_{row:06}.png" for row in range(len(images))]),
    }
    return dictionary(entries)


# --- the binary version


def binary_files(layout: object, arrays: ImageArrays) -> dict[str, bytes]:
    """The files of the binary version; the superclass of CIFAR-100 is a made-up one."""
    assert isinstance(layout, type(TEN))

    def records(images: torch.Tensor, labels: torch.Tensor) -> bytes:
        coarse = [b"\x13"] * (layout.label_bytes - 1)
        rows = zip(images, labels.tolist(), strict=True)
        return b"".join(b"".join((*coarse, bytes([label]), image.numpy().tobytes())) for image, label in rows)

    files = {}
    for index, name in enumerate(layout.train):
        rows = slice(index * layout.train_rows, (index + 1) * layout.train_rows)
        files[f"{name}.bin"] = records(arrays.x_train[rows], arrays.y_train[rows])
    files[f"{layout.test}.bin"] = records(arrays.x_test, arrays.y_test)
    files[layout.binary_names] = ("\n".join(layout.class_names) + "\n\n").encode()
    return files


# --- archives and trees


def tar_gz(files: Mapping[str, bytes], folder: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        top = tarfile.TarInfo(folder)
        top.type = tarfile.DIRTYPE
        archive.addfile(top)
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), 1, mtime=0)


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def picture(image: torch.Tensor, kind: str = "PNG") -> bytes:
    """A picture file of an image ``(3, H, W)``, or ``(1, H, W)`` for a grey one."""
    buffer = io.BytesIO()
    pixels = image.permute(1, 2, 0).squeeze(-1).contiguous().numpy()
    Image.fromarray(pixels).save(buffer, kind, quality=95)
    return buffer.getvalue()


def put(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
