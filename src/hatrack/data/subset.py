"""A small real part of Fashion-MNIST that is shipped with the package, so that a demonstration needs no files.

The shipped files are what these lines write, given the full data set; a test holds them to it::

    subset = build_subset(load_dataset("fashion-mnist"), TRAIN_PER_CLASS, TEST_PER_CLASS)
    for name, content in encode_subset(subset).items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, 9, mtime=0))

Their licence notice is in ``subset/NOTICE``.
"""

from __future__ import annotations

import torch

from hatrack.data.dataset import DatasetSpec, FileVariant, ImageDataset
from hatrack.data.idx import encode_idx
from hatrack.data.mnist import (
    FASHION_MNIST,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    decode_mnist,
    mnist_files,
)
from hatrack.data.sources import PackagedFiles
from hatrack.errors import InputError

__all__ = [
    "FASHION_MNIST_SUBSET",
    "TEST_PER_CLASS",
    "TRAIN_PER_CLASS",
    "build_subset",
    "encode_subset",
    "load_subset",
]

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
