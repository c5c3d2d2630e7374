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

from hatrack.data.dataset import CommonForm, DatasetSpec, FileVariant, Fitting, ImageArrays, ImageDataset
from hatrack.data.files import DataFile, read_content
from hatrack.data.sources import PackagedFiles, PublishedFiles
from hatrack.errors import DataError, InputError

__all__ = [
    "FASHION_MNIST",
    "FASHION_MNIST_SUBSET",
    "MNIST",
    "TEST_PER_CLASS",
    "TRAIN_PER_CLASS",
    "build_subset",
    "decode_idx",
    "decode_mnist",
    "encode_idx",
    "encode_subset",
    "load_subset",
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


_CLOTHES = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"


def mnist_files(train_images: str, train_labels: str, test_images: str, test_labels: str) -> tuple[DataFile, ...]:
    """Return the four files of a data set in MNIST's layout, given the SHA-256 of the content of each."""
    return (
        DataFile(TRAIN_IMAGES, train_images, suffix=".gz"),
        DataFile(TRAIN_LABELS, train_labels, suffix=".gz"),
        DataFile(TEST_IMAGES, test_images, suffix=".gz"),
        DataFile(TEST_LABELS, test_labels, suffix=".gz"),
    )


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


MNIST = DatasetSpec(
    name="mnist",
    description="handwritten digits, 28 x 28 grey, 60,000 + 10,000",
    licence="CC BY-SA 3.0 (Y. LeCun and C. Cortes)",
    class_names=tuple(str(digit) for digit in range(10)),
    mean=(0.1307,),
    std=(0.3081,),
    common_form=CommonForm(Fitting.PAD, mean=(0.1,), std=(0.2752,)),
    variants=(
        FileVariant(
            name="idx files",
            source=PublishedFiles(
                files=mnist_files(
                    train_images="ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                    train_labels="65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                    test_images="0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                    test_labels="ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
                ),
                folders=("mnist", "MNIST/raw"),
                mirrors=(
                    "https://ossci-datasets.s3.amazonaws.com/mnist/",
                    "https://storage.googleapis.com/cvdf-datasets/mnist/",
                ),
            ),
            decode=decode_mnist,
        ),
    ),
)

FASHION_MNIST = DatasetSpec(
    name="fashion-mnist",
    description="articles of clothing, 28 x 28 grey, 60,000 + 10,000",
    licence="MIT (Zalando SE)",
    class_names=tuple(_CLOTHES.split(", ")),
    mean=(0.2860,),
    std=(0.3530,),
    common_form=CommonForm(Fitting.PAD, mean=(0.2190,), std=(0.3318,)),
    variants=(
        FileVariant(
            name="idx files",
            source=PublishedFiles(
                files=mnist_files(
                    train_images="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                    train_labels="bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                    test_images="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                    test_labels="0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
                ),
                folders=("fashion-mnist", "FashionMNIST/raw"),
                mirrors=(
                    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
                ),
                system_folders=(Path("/usr/share/datasets/fashion-mnist"),),
                system_advice="apt-get install dataset-fashion-mnist (Debian, Ubuntu)",
            ),
            decode=decode_mnist,
        ),
    ),
)


TRAIN_PER_CLASS = 300
TEST_PER_CLASS = 100

FASHION_MNIST_SUBSET = DatasetSpec(
    name="fashion-mnist-subset",
    description="the first 300 + 100 images of every class of Fashion-MNIST, shipped with hatrack",
    licence=FASHION_MNIST.licence,
    class_names=FASHION_MNIST.class_names,
    # The full set's constants, so that the subset is prepared exactly as the full set is.
    mean=FASHION_MNIST.mean,
    std=FASHION_MNIST.std,
    common_form=FASHION_MNIST.common_form,
    variants=(
        FileVariant(
            name="idx files",
            source=PackagedFiles(
                folder="subset",
                files=mnist_files(
                    train_images="ee31c1e1edb79ee04ce6a320d9e6e856628d3ea2b7aaa437891f46fdbdec9f93",
                    train_labels="a7901365666c760d2e5bd01b5bdc91c00e64ca459c33d7a48aed2aaee7486060",
                    test_images="7cee33c3c6414b1b86c25e665a6c4f41584269de3b7cc9768b1d351922845eef",
                    test_labels="3128d790775889812b73c4f13923559c8b9e281d112c6ea7862acf60a206a909",
                ),
            ),
            decode=decode_mnist,
        ),
    ),
)


def load_subset() -> ImageDataset:
    """Load the shipped subset of Fashion-MNIST: 3,000 training and 1,000 test images, balanced over 10 classes.

    Raises:
        DataError: the installation is damaged.
    """
    return FASHION_MNIST_SUBSET.load()


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
