"""The data sets that can be asked for by name, and those of them that need few lines.

SVHN: Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu, A. Y. Ng, "Reading digits in natural images with unsupervised
feature learning", NIPS workshop on deep learning, 2011; the cropped digits ("format 2") without the extra ones.

NotMNIST: Y. Bulatov, "notMNIST dataset", 2011. The HAT paper uses the smaller, hand-cleaned of the two published sets
(notMNIST_small: 18,724 pictures and two empty files), which has no test part; a tenth is set aside here, as there. A
sample of 10,000 letters as idx files is divided 80/20. The larger, uncleaned set is not read.

FaceScrub: H.-W. Ng, S. Winkler, "A data-driven approach to cleaning large face datasets", ICIP 2014. It is published as
a list of addresses, so everybody's set is another one, and there is no published hash: any folder of cut-out faces, one
folder for each person, is read, and results record its digest. A tenth is set aside for testing, as in the HAT paper
(20,600 and 2,289 there).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from hatrack.data.arrays import ImageArrays, every_nth_of_each_class
from hatrack.data.cifar import CIFAR10, CIFAR100
from hatrack.data.dataset import CommonForm, DatasetSpec, FileVariant, Fitting, ImageDataset
from hatrack.data.files import DataFile, DownloadMonitor
from hatrack.data.matlab import read_mat
from hatrack.data.mnist import FASHION_MNIST, FASHION_MNIST_SUBSET, MNIST, TEST_IMAGES, TEST_LABELS, decode_idx
from hatrack.data.npz import decode_npz
from hatrack.data.pictures import ClassFolders, PictureForm
from hatrack.data.sources import PublishedFiles
from hatrack.data.traffic_signs import TRAFFIC_SIGNS
from hatrack.data.trees import PictureTree, unpack_tree
from hatrack.errors import DataError
from hatrack.support.names import look_up

__all__ = ["DATASETS", "FACESCRUB", "NOTMNIST", "SMALL", "SVHN", "decode_sample", "decode_svhn", "load_dataset"]

TRAIN, TEST = "train_32x32.mat", "test_32x32.mat"
ARRAY_LIMIT = 1 << 28
"""Largest size of an array: the larger of the real ones has 225 million bytes."""


def decode_svhn(contents: Mapping[str, bytes]) -> ImageArrays:
    """Decode the two files, ``X`` with axes (row, column, channel, image), ``y`` with labels 1 to 10, 10 being digit 0.

    Args:
        contents: content of each file by its name.

    Returns:
        Images uint8 ``(N, 3, 32, 32)`` and labels int64 ``(N,)``, a label being its digit.

    Raises:
        DataError: a file is no such MAT-file, or its images or labels are not what they should be.
    """
    return ImageArrays(*_decode_part(contents[TRAIN], TRAIN), *_decode_part(contents[TEST], TEST))


def _decode_part(content: bytes, origin: str) -> tuple[torch.Tensor, torch.Tensor]:
    arrays = read_mat(content, ("X", "y"), limit=ARRAY_LIMIT, origin=origin)
    images, labels = arrays["X"], arrays["y"].flatten()
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1:] != (3, 32, 32):
        shape = tuple(reversed(images.shape))
        raise DataError(f"{origin}: its images are {images.dtype} {shape}, not bytes (32, 32, 3, N); fetch it again")
    if len(labels) != len(images):
        raise DataError(f"{origin}: holds {len(labels)} labels of {len(images)} images; fetch it again")
    # Loaders that have mapped 10 to 0 already would be mapped twice: hence 0 is refused, not let through.
    if not bool(((labels >= 1) & (labels <= 10) & (labels == labels.long())).all()):
        raise DataError(f"{origin}: a label is outside of 1..10; fetch the file as it is published")
    return images.transpose(2, 3).contiguous(), labels.long() % 10


SVHN = DatasetSpec(
    name="svhn",
    description="house numbers on photographs, 32 x 32 colour, 73,257 + 26,032, 10 digits",
    licence="for non-commercial use; cite Y. Netzer et al., 2011",
    class_names=tuple(str(digit) for digit in range(10)),
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.198, 0.201, 0.197),
    variants=(
        FileVariant(
            name="mat files",
            source=PublishedFiles(
                files=(
                    DataFile(TRAIN, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8", archive=True),
                    DataFile(TEST, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b", archive=True),
                ),
                folders=("svhn", "SVHN"),
                mirrors=("http://ufldl.stanford.edu/housenumbers/",),
                wanted=f"{TRAIN} and {TEST}",
            ),
            decode=decode_svhn,
            keep=1,
        ),
    ),
)


LETTERS = tuple("ABCDEFGHIJ")
SMALL_COUNTS = (1872, 1873, 1873, 1873, 1873, 1872, 1872, 1872, 1872, 1872)
TOP = "notMNIST_small"

SMALL = ClassFolders(
    classes=LETTERS,
    form=PictureForm((28, 28), channels=1),
    test_every=10,
    total=sum(SMALL_COUNTS) + 2,
    counts=SMALL_COUNTS,
    empty=("A/RGVtb2NyYXRpY2FCb2xkT2xkc3R5bGUgQm9sZC50dGY=.png", "F/Q3Jvc3NvdmVyIEJvbGRPYmxpcXVlLnR0Zg==.png"),
)


def decode_sample(contents: Mapping[str, bytes]) -> ImageArrays:
    """Decode the one pair of idx files of the sample; of each letter, every fifth image is for testing.

    Args:
        contents: decompressed content of both files by plain name.

    Raises:
        DataError: a file is not idx, has another number of axes than it should, or holds other labels.
    """
    images, labels = (decode_idx(contents[name], name) for name in (TEST_IMAGES, TEST_LABELS))
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        raise DataError(f"{TEST_IMAGES}: {tuple(images.shape)} images and {tuple(labels.shape)} labels do not fit")
    if len(labels) == 0 or int(labels.max()) >= len(LETTERS):
        raise DataError(f"{TEST_LABELS}: a label is outside of 0..{len(LETTERS) - 1}; fetch the file again")
    return every_nth_of_each_class(images.unsqueeze(1), labels.long(), 5)


def _decode_small(contents: Mapping[str, bytes]) -> ImageArrays:
    ((name, payload),) = contents.items()
    return SMALL.decode(unpack_tree(payload, SMALL, top=TOP, origin=name), name)


NOTMNIST = DatasetSpec(
    name="notmnist",
    description="letters A to J in many typefaces, 28 x 28 grey, 16,854 + 1,870 (or a sample: 8,000 + 2,000)",
    licence="none stated; cite Y. Bulatov, 2011",
    class_names=LETTERS,
    mean=(0.4254,),
    std=(0.4501,),
    common_form=CommonForm(Fitting.RESIZE),
    variants=(
        FileVariant(
            name="notMNIST_small",
            source=PublishedFiles(
                files=(DataFile("notMNIST_small.tar.gz", md5="c9890a473a9769fda4bdf314aaf500dd", archive=True),),
                folders=("notmnist", "notMNIST", "NotMNIST"),
                mirrors=(
                    "http://yaroslavvb.com/upload/notMNIST/",
                    "https://commondatastorage.googleapis.com/books1000/",
                ),
                wanted="notMNIST_small.tar.gz",
            ),
            decode=_decode_small,
            keep=1,
        ),
        PictureTree(
            name="pictures",
            archives=("notMNIST_small.zip",),
            folders=("notMNIST_small", "notmnist/notMNIST_small", "notmnist", "notMNIST/notMNIST_small"),
            layout=SMALL,
            top=TOP,
        ),
        FileVariant(
            name="sample of 10,000",
            source=PublishedFiles(
                files=(
                    DataFile(TEST_IMAGES, "8e7f38ae95cc8f48e0986175ffc9137e5007ebcf3d8fdf6656c904eb9dab198b", ".gz"),
                    DataFile(TEST_LABELS, "5f8e6012f2ce730700d8d05fca098bc47f71d25b890e4bec7ac5ebfd614a4001", ".gz"),
                ),
                folders=("notmnist-10k", "notmnist"),
                mirrors=(),
                wanted=f"the folder notmnist-10k with {TEST_IMAGES}.gz and {TEST_LABELS}.gz",
            ),
            decode=decode_sample,
            origin="a sample of 10,000, divided 80/20",
        ),
    ),
)


PEOPLE = 100

FACESCRUB = DatasetSpec(
    name="facescrub",
    description="faces of the 100 people of most pictures, resized to 32 x 32 colour, about 20,600 + 2,289",
    licence="the list is CC BY-NC-ND 4.0, the pictures are their owners'; cite H.-W. Ng and S. Winkler, 2014",
    # Who the 100 are depends on the pictures that could still be fetched: numbered in alphabetical order.
    class_names=tuple(f"person {number:03}" for number in range(PEOPLE)),
    mean=(0.5163, 0.5569, 0.4695),
    std=(0.2307, 0.2272, 0.2479),
    variants=(
        PictureTree(
            name="pictures",
            archives=("facescrub.zip", "facescrub.tar.gz"),
            folders=("facescrub", "FaceScrub"),
            layout=ClassFolders(
                classes=PEOPLE,
                form=PictureForm((32, 32), resize=True),
                test_every=10,
                total=60_000,
                file_bytes=1 << 23,
                total_bytes=1 << 31,
                below=("", "*/faces", "*"),
            ),
            top="facescrub",
        ),
    ),
)


FILE = "animal-silhouettes.npz"
CLASS_NAMES = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")


def _decode(contents: Mapping[str, bytes]) -> ImageArrays:
    return decode_npz(contents[FILE], FILE, classes=len(CLASS_NAMES))


ANIMALS = DatasetSpec(
    name="animals",
    description="silhouettes of animals, 28 x 28 grey, 7,775 + 1,941, 10 classes",
    licence="none stated",
    class_names=CLASS_NAMES,
    mean=(0.2739,),
    std=(0.4059,),
    variants=(
        FileVariant(
            name="npz file",
            source=PublishedFiles(
                files=(
                    DataFile(FILE, "a7abffa9fb9c82d738c6d31162c52bfb498e39a29f2a03b04e8abb6bdcaccbf2", archive=True),
                ),
                folders=("animals", "animal-silhouettes"),
                mirrors=(),
                wanted=FILE,
            ),
            decode=_decode,
        ),
    ),
)


DATASETS: Mapping[str, DatasetSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            MNIST,
            FASHION_MNIST,
            FASHION_MNIST_SUBSET,
            NOTMNIST,
            CIFAR10,
            CIFAR100,
            SVHN,
            TRAFFIC_SIGNS,
            FACESCRUB,
            ANIMALS,
        )
    }
)
"""Every known data set by name."""


def load_dataset(
    name: str,
    data_dir: Path | str | None = None,
    *,
    download: bool = True,
    monitor: DownloadMonitor | None = None,
) -> ImageDataset:
    """Load a data set by name.

    Its files are looked for in ``data_dir``, in ``$HATRACK_DATA``, in the system's folder where there is one, in
    the download cache, and then on the network. A file counts only if its content has the right hash. Of a data set
    that is published in several forms, the first form that is on this machine is taken; see ``ImageDataset.origin``.

    Args:
        name: one of :data:`DATASETS`.
        data_dir: folder to look in first; it must exist if given.
        download: whether files found nowhere may be fetched from the network, unless ``HATRACK_OFFLINE`` is set.
        monitor: told how downloads go on: the file's name, the bytes that are there, and how many there will be.

    Raises:
        InputError: there is no data set of that name.
        DataError: the files are missing or damaged; the message says how to get them.
    """
    spec = look_up("data set", name, DATASETS)
    return spec.load(None if data_dir is None else Path(data_dir), download=download, monitor=monitor)
