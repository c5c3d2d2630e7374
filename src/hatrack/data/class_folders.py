"""Trees of pictures that are published without a test part: ``CLASS/*.png``, divided here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hatrack.data.archives import Limits
from hatrack.data.arrays import ImageArrays, every_nth_of_each_class
from hatrack.data.pictures import PictureForm, decode_files, picture_names
from hatrack.errors import DataError

__all__ = ["ClassFolders"]


@dataclass(frozen=True)
class ClassFolders:
    """A layout: a folder of pictures for each class. See :class:`~hatrack.data.TreeLayout`.

    Attributes:
        classes: the folders, in the order of the labels; or a number: the folders that hold most pictures, in
            alphabetical order.
        counts: number of pictures in each folder, or empty where that is not known.
        form: size and channels that pictures get.
        test_every: every so many-th picture of a class, in the order of their paths, is for testing.
        total: largest number of pictures.
        file_bytes: largest size of a picture file.
        total_bytes: largest size of all pictures, and of an archive of them.
        empty: paths of files that are empty as published, and are passed over.
        below: folders between the top of the tree and those of the classes, of which any may be there: ``*/faces``.
    """

    classes: tuple[str, ...] | int
    form: PictureForm
    test_every: int
    total: int
    counts: tuple[int, ...] = ()
    file_bytes: int = 1 << 20
    total_bytes: int = 1 << 30
    empty: tuple[str, ...] = ()
    below: tuple[str, ...] = ("",)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The files of all folders."""
        return tuple(f"{above}/*/*".lstrip("/") for above in self.below)

    @property
    def markers(self) -> tuple[str, ...]:
        """The folders of the classes, if their names are known."""
        return () if isinstance(self.classes, int) else self.classes

    @property
    def advice(self) -> str:
        """Instruction for a person who lacks the tree."""
        return "pictures as CLASS/*.png"

    @property
    def limits(self) -> Limits:
        """Bounds on the files that are read."""
        return Limits(self.total, self.file_bytes, self.total_bytes)

    def choose(self, names: Sequence[str]) -> list[str]:
        """Return the pictures of the classes."""
        pictures = picture_names(names)
        chosen = set(self._folders(pictures))
        return [name for name in pictures if _folder(name) in chosen]

    def decode(self, contents: Mapping[str, bytes], origin: str) -> ImageArrays:
        """Decode the pictures, class by class, in the order of their paths.

        Raises:
            DataError: there are too few classes or pictures, or a picture is damaged.
        """
        folders = self._folders(list(contents))
        if isinstance(self.classes, int) and len(folders) < self.classes:
            raise DataError(f"{origin}: holds pictures of {len(folders)} classes instead of {self.classes}")
        label_of = {folder: label for label, folder in enumerate(folders)}
        paths = [path for path in sorted(contents) if contents[path] or path not in self.empty]
        found = Counter(_folder(path) for path in paths)
        for folder, label in label_of.items():
            wanted = self.counts[label] if self.counts else max(found[folder], self.test_every)
            if found[folder] != wanted:
                least = "" if self.counts else "at least "
                raise DataError(f"{origin}: {folder} holds {found[folder]} pictures instead of {least}{wanted}")
        images = decode_files({path: contents[path] for path in paths}, self.form, origin)
        labels = torch.tensor([label_of[_folder(path)] for path in paths])
        return every_nth_of_each_class(images, labels, self.test_every)

    def _folders(self, pictures: Sequence[str]) -> list[str]:
        """Return the folders of the classes, in the order of the labels."""
        if not isinstance(self.classes, int):
            return list(self.classes)
        found = Counter(_folder(name) for name in pictures)
        largest = sorted(found, key=lambda folder: (-found[folder], folder))[: self.classes]
        return sorted(largest)


def _folder(path: str) -> str:
    return path.split("/")[-2]
