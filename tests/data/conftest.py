from __future__ import annotations

import os
from pathlib import Path

import pytest

from hatrack.data import ImageDataset, load_dataset

SYSTEM_FASHION = Path("/usr/share/datasets/fashion-mnist")
ROOTS = [Path(root) for root in (os.environ.get("HATRACK_DATA"), Path(__file__).parents[3] / "shared" / "data") if root]


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the data folder, the download cache or the proxy of the person who runs it."""
    monkeypatch.delenv("HATRACK_DATA", raising=False)
    monkeypatch.delenv("HATRACK_OFFLINE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="session")
def cifar10_jpeg() -> Path:
    """The folder that holds the JPEG re-encoding of CIFAR-10."""
    for root in ROOTS:
        if (root / "cifar10-jpeg.zip").is_file():
            return root
    pytest.skip("CIFAR-10 is not on this machine")


@pytest.fixture(scope="session")
def mnist() -> ImageDataset:
    for root in ROOTS:
        if (root / "mnist").is_dir():
            return load_dataset("mnist", root, download=False)
    pytest.skip("MNIST is not on this machine")


@pytest.fixture(scope="session")
def fashion() -> ImageDataset:
    for root in ROOTS:
        if (root / "fashion-mnist").is_dir():
            return load_dataset("fashion-mnist", root, download=False)
    if SYSTEM_FASHION.is_dir():
        return load_dataset("fashion-mnist", download=False)
    pytest.skip("Fashion-MNIST is not on this machine")


@pytest.fixture(scope="session")
def notmnist() -> ImageDataset:
    for root in ROOTS:
        if (root / "notmnist-10k").is_dir():
            return load_dataset("notmnist", root, download=False)
    pytest.skip("NotMNIST is not on this machine")


@pytest.fixture(scope="session")
def gtsrb_jpeg() -> Path:
    """The folder that holds GTSRB as pictures of 32 x 32."""
    for root in ROOTS:
        if (root / "gtsrb-32x32.zip").is_file():
            return root
    pytest.skip("GTSRB is not on this machine")


@pytest.fixture(scope="session")
def animals() -> ImageDataset:
    for root in ROOTS:
        if (root / "animal-silhouettes.npz").is_file():
            return load_dataset("animals", root, download=False)
    pytest.skip("the silhouettes of animals are not on this machine")
