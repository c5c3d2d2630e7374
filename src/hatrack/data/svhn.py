"""SVHN: house numbers on photographs of streets, 32 x 32 colour, 73,257 for training and 26,032 for testing.

Source: Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu, A. Y. Ng, "Reading digits in natural images with unsupervised
feature learning", NIPS workshop on deep learning, 2011; the cropped digits ("format 2") without the extra ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hatrack.data.arrays import ImageArrays
from hatrack.data.dataset import DatasetSpec, FileVariant
from hatrack.data.files import DataFile
from hatrack.data.matlab import read_mat
from hatrack.data.sources import PublishedFiles
from hatrack.errors import DataError

__all__ = ["SVHN", "decode_svhn"]

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
