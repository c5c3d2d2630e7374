"""The data sets that can be asked for by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from hatrack.data.animals import ANIMALS
from hatrack.data.cifar import CIFAR10, CIFAR100
from hatrack.data.dataset import DatasetSpec, ImageDataset
from hatrack.data.download import DownloadMonitor
from hatrack.data.facescrub import FACESCRUB
from hatrack.data.mnist import FASHION_MNIST, MNIST
from hatrack.data.notmnist import NOTMNIST
from hatrack.data.subset import FASHION_MNIST_SUBSET
from hatrack.data.svhn import SVHN
from hatrack.data.traffic_signs import TRAFFIC_SIGNS
from hatrack.support.names import look_up

__all__ = ["DATASETS", "load_dataset"]

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
