"""The data sets that can be asked for by name: the table ``datasets.toml``, and the decoders and layouts that it names.

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
from typing import Any

import torch

from hatrack.data.arrays import ImageArrays, every_nth_of_each_class
from hatrack.data.catalogue import CATALOGUE
from hatrack.data.cifar import CIFAR10_FORMAT, CIFAR100_FORMAT
from hatrack.data.dataset import CommonForm, DatasetSpec, Decoder, FileVariant, Fitting, ImageDataset, Variant
from hatrack.data.files import DataFile, DownloadMonitor
from hatrack.data.matlab import read_mat
from hatrack.data.mnist import TEST_IMAGES, TEST_LABELS, decode_idx, decode_mnist
from hatrack.data.npz import decode_npz
from hatrack.data.pictures import ClassFolders, PictureForm, PictureLayout
from hatrack.data.sources import FileSource, PackagedFiles, PublishedFiles
from hatrack.data.traffic_signs import TEST_COUNTS, TRAIN_COUNTS, SignLayout, decode_archives
from hatrack.data.trees import PictureTree, TreeLayout, unpack_tree
from hatrack.errors import DataError
from hatrack.support.names import look_up

__all__ = [
    "DATASETS",
    "DECODERS",
    "LAYOUTS",
    "NOTMNIST_SMALL",
    "SVHN_TEST",
    "SVHN_TRAIN",
    "decode_notmnist_sample",
    "decode_svhn",
    "load_dataset",
    "load_subset",
]

SVHN_TRAIN, SVHN_TEST = "train_32x32.mat", "test_32x32.mat"
SVHN_LIMIT = 1 << 28
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
    return ImageArrays(*_svhn_part(contents[SVHN_TRAIN], SVHN_TRAIN), *_svhn_part(contents[SVHN_TEST], SVHN_TEST))


def _svhn_part(content: bytes, origin: str) -> tuple[torch.Tensor, torch.Tensor]:
    arrays = read_mat(content, ("X", "y"), limit=SVHN_LIMIT, origin=origin)
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


NOTMNIST_LETTERS = tuple("ABCDEFGHIJ")
NOTMNIST_COUNTS = (1872, 1873, 1873, 1873, 1873, 1872, 1872, 1872, 1872, 1872)

NOTMNIST_SMALL = ClassFolders(
    classes=NOTMNIST_LETTERS,
    form=PictureForm((28, 28), channels=1),
    test_every=10,
    total=sum(NOTMNIST_COUNTS) + 2,
    counts=NOTMNIST_COUNTS,
    empty=("A/RGVtb2NyYXRpY2FCb2xkT2xkc3R5bGUgQm9sZC50dGY=.png", "F/Q3Jvc3NvdmVyIEJvbGRPYmxpcXVlLnR0Zg==.png"),
)


def decode_notmnist_sample(contents: Mapping[str, bytes]) -> ImageArrays:
    """Decode the one pair of idx files of the sample; of each letter, every fifth image is for testing.

    Args:
        contents: decompressed content of both files by plain name.

    Raises:
        DataError: a file is not idx, has another number of axes than it should, or holds other labels.
    """
    images, labels = (decode_idx(contents[name], name) for name in (TEST_IMAGES, TEST_LABELS))
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        raise DataError(f"{TEST_IMAGES}: {tuple(images.shape)} images and {tuple(labels.shape)} labels do not fit")
    if len(labels) == 0 or int(labels.max()) >= len(NOTMNIST_LETTERS):
        raise DataError(f"{TEST_LABELS}: a label is outside of 0..{len(NOTMNIST_LETTERS) - 1}; fetch the file again")
    return every_nth_of_each_class(images.unsqueeze(1), labels.long(), 5)


def _decode_notmnist_small(contents: Mapping[str, bytes]) -> ImageArrays:
    ((name, payload),) = contents.items()
    return NOTMNIST_SMALL.decode(unpack_tree(payload, NOTMNIST_SMALL, top="notMNIST_small", origin=name), name)


def _decode_animals(contents: Mapping[str, bytes]) -> ImageArrays:
    ((name, content),) = contents.items()
    return decode_npz(content, name, classes=len(CATALOGUE["animals"]["class_names"]))


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        "mnist": decode_mnist,
        "notmnist-small": _decode_notmnist_small,
        "notmnist-sample": decode_notmnist_sample,
        "cifar10-python-archive": CIFAR10_FORMAT.decode_python_archive,
        "cifar10-python": CIFAR10_FORMAT.decode_python,
        "cifar10-binary-archive": CIFAR10_FORMAT.decode_binary_archive,
        "cifar10-binary": CIFAR10_FORMAT.decode_binary,
        "cifar100-python-archive": CIFAR100_FORMAT.decode_python_archive,
        "cifar100-python": CIFAR100_FORMAT.decode_python,
        "cifar100-binary-archive": CIFAR100_FORMAT.decode_binary_archive,
        "cifar100-binary": CIFAR100_FORMAT.decode_binary,
        "svhn": decode_svhn,
        "traffic-signs": decode_archives,
        "animals": _decode_animals,
    }
)
"""Every decoder of files by the name that ``datasets.toml`` gives it."""

LAYOUTS: Mapping[str, TreeLayout] = MappingProxyType(
    {
        "notmnist": NOTMNIST_SMALL,
        "cifar10": PictureLayout(CIFAR10_FORMAT.class_names, train=5000, test=1000, size=(32, 32)),
        "cifar100": PictureLayout(CIFAR100_FORMAT.class_names, train=500, test=100, size=(32, 32)),
        "traffic-signs": SignLayout(),
        "traffic-signs-pictures": PictureLayout(
            tuple(f"{label:02}" for label in range(len(TRAIN_COUNTS))), TRAIN_COUNTS, TEST_COUNTS, (32, 32)
        ),
        "traffic-signs-competition": SignLayout(train_folder="GTSRB/Training", train=26_640),
        "facescrub": ClassFolders(
            classes=100,
            form=PictureForm((32, 32), resize=True),
            test_every=10,
            total=60_000,
            file_bytes=1 << 23,
            total_bytes=1 << 31,
            below=("", "*/faces", "*"),
        ),
    }
)
"""Every layout of a tree of pictures by the name that ``datasets.toml`` gives it."""


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


def _variant(row: Mapping[str, Any]) -> Variant:
    """Make a form of a row: a tree of pictures if it has a layout, else a few files."""
    values = _tuples(row)
    if "layout" in values:
        return PictureTree(**{"archives": (), **values, "layout": LAYOUTS[values["layout"]]})
    own = {key: values.pop(key) for key in ("name", "origin", "keep") if key in values}
    decode, files = DECODERS[values.pop("decode")], tuple(DataFile(**file) for file in values.pop("files"))
    source: FileSource
    if "packaged" in values:
        source = PackagedFiles(files, values.pop("packaged"), **values)
    else:
        system = tuple(map(Path, values.pop("system_folders", ())))
        source = PublishedFiles(files, **{"mirrors": (), **values}, system_folders=system)
    return FileVariant(source=source, decode=decode, **own)


def _spec(
    name: str, *, class_names: Any, variants: Any, common_form: Any = MappingProxyType({}), **row: Any
) -> DatasetSpec:
    """Make the specification of a row; a number of class names stands for numbered ones."""
    if isinstance(class_names, int):
        class_names = [f"person {number:03}" for number in range(class_names)]
    form = _tuples({**common_form, "fitting": Fitting(common_form.get("fitting", "resize"))})
    forms = tuple(_variant(each) for each in variants)
    return DatasetSpec(
        name, class_names=tuple(class_names), variants=forms, common_form=CommonForm(**form), **_tuples(row)
    )


DATASETS: Mapping[str, DatasetSpec] = MappingProxyType({name: _spec(name, **row) for name, row in CATALOGUE.items()})
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


def load_subset() -> ImageDataset:
    """Load the shipped subset of Fashion-MNIST: 3,000 training and 1,000 test images, balanced over 10 classes.

    Raises:
        DataError: the installation is damaged.
    """
    return DATASETS["fashion-mnist-subset"].load()
