"""MNIST and Fashion-MNIST: 28 x 28 grey images of 10 classes, 60,000 for training and 10,000 for testing.

Sources: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition",
Proc. IEEE 86(11), 1998; H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking
machine learning algorithms", arXiv:1708.07747, 2017. Both are published as the same four idx file names, so their
files are told apart by their hashes alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hatrack.data.dataset import CommonForm, DatasetSpec, FileVariant, Fitting, ImageArrays
from hatrack.data.files import DataFile
from hatrack.data.idx import decode_idx
from hatrack.data.sources import PublishedFiles
from hatrack.errors import DataError

__all__ = ["FASHION_MNIST", "MNIST", "decode_mnist", "mnist_files"]

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
