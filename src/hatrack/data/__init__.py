"""Data sets of labelled images: found on this machine or downloaded, verified, and held in memory as bytes."""

from __future__ import annotations

from hatrack.data.arrays import channel_statistics
from hatrack.data.dataset import CommonForm, DatasetSpec, FileVariant, Fitting, ImageDataset, PackedVariant, Variant
from hatrack.data.files import DownloadMonitor
from hatrack.data.mnist import build_subset, read_idx
from hatrack.data.own import from_dataset, from_huggingface, from_npz, from_pictures
from hatrack.data.packed import Identity, PackedPart, read_packed, write_packed
from hatrack.data.packing import first_in_turns, pack_dataset
from hatrack.data.pictures import PictureLayout
from hatrack.data.registry import DATASETS, load_dataset, load_subset
from hatrack.data.rgb32 import as_rgb32
from hatrack.data.trees import PictureTree, TreeLayout

__all__ = [
    "DATASETS",
    "CommonForm",
    "DatasetSpec",
    "DownloadMonitor",
    "FileVariant",
    "Fitting",
    "Identity",
    "ImageDataset",
    "PackedPart",
    "PackedVariant",
    "PictureLayout",
    "PictureTree",
    "TreeLayout",
    "Variant",
    "as_rgb32",
    "build_subset",
    "channel_statistics",
    "first_in_turns",
    "from_dataset",
    "from_huggingface",
    "from_npz",
    "from_pictures",
    "load_dataset",
    "load_subset",
    "pack_dataset",
    "read_idx",
    "read_packed",
    "write_packed",
]
