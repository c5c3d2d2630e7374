"""Silhouettes of ten kinds of animal, 28 x 28 grey, 7,775 for training and 1,941 for testing, in an npz file."""

from __future__ import annotations

from collections.abc import Mapping

from hatrack.data.arrays import ImageArrays
from hatrack.data.dataset import DatasetSpec, FileVariant
from hatrack.data.files import DataFile
from hatrack.data.npz import decode_npz
from hatrack.data.sources import PublishedFiles

__all__ = ["ANIMALS"]

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
