"""Pictures as arrays, and two plain layouts of trees of them.

``train/CLASS/*.png`` and ``test/CLASS/*.png``, or ``CLASS/*.png`` where there is no test part, which is divided here.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from hatrack.data.archives import Limits
from hatrack.data.arrays import ImageArrays, every_nth_of_each_class
from hatrack.data.file_trees import FileTree
from hatrack.data.picture_files import read_picture, refuse_dark
from hatrack.data.picture_folders import is_hidden
from hatrack.errors import DataError

__all__ = [
    "ClassFolders",
    "PictureForm",
    "PictureLayout",
    "decode_files",
    "decode_labelled",
    "decode_pictures",
    "decode_seen",
    "picture_names",
]

SUFFIXES = (".jpg", ".jpeg", ".png")
PICTURE_BYTES = 1 << 20
"""Largest size of a picture file; those of small images have a few kilobytes."""
TREE_BYTES = 1 << 30
"""Largest size of all picture files of a tree together, and of an archive of them."""
LARGEST_SIDE = 4096
"""Width and height, in pixels, beyond which a picture is not resized but refused."""


@dataclass(frozen=True)
class PictureForm:
    """Form that pictures get.

    Attributes:
        size: width and height.
        resize: whether pictures of other sizes are resized (bilinear, antialiased, whatever their proportions);
            otherwise they are refused.
        channels: 3, or 1 for grey.
        formats: the file formats that are read, as Pillow calls them.
    """

    size: tuple[int, int]
    resize: bool = False
    channels: int = 3
    formats: tuple[str, ...] = ("JPEG", "PNG")


@dataclass(frozen=True)
class PictureLayout:
    """Layout ``train/CLASS/*.png`` and ``test/CLASS/*.png`` of a tree. See :class:`~hatrack.data.TreeLayout`.

    Attributes:
        class_names: the folders in ``train`` and in ``test``; a picture's label is the position of its folder's name.
        train: number of pictures of each class in ``train``: one for all, or one for each.
        test: number of pictures of each class in ``test``, likewise.
        size: width and height of every picture.
    """

    class_names: tuple[str, ...]
    train: int | tuple[int, ...]
    test: int | tuple[int, ...]
    size: tuple[int, int]

    @property
    def patterns(self) -> tuple[str, ...]:
        """The files of all classes."""
        return ("train/*/*", "test/*/*")

    @property
    def markers(self) -> tuple[str, ...]:
        """The folders of the first class."""
        return (f"train/{self.class_names[0]}", f"test/{self.class_names[0]}")

    @property
    def advice(self) -> str:
        """Instruction for a person who lacks the tree."""
        return "pictures as train/CLASS/*.png and test/CLASS/*.png"

    @property
    def limits(self) -> Limits:
        """Limits of a tree that holds as many pictures as there must be."""
        return Limits(self.total, PICTURE_BYTES, TREE_BYTES)

    @property
    def total(self) -> int:
        """Number of all pictures."""
        return sum(self.wanted(part, label) for part in ("train", "test") for label in range(len(self.class_names)))

    def wanted(self, part: str, label: int) -> int:
        """Return the number of pictures of a class that must be in ``train`` or ``test``."""
        counts = self.train if part == "train" else self.test
        return counts if isinstance(counts, int) else counts[label]

    def choose(self, names: Sequence[str]) -> list[str]:
        """Return those that are pictures by their names."""
        return picture_names(names)

    def decode(self, contents: Mapping[str, bytes], origin: str) -> ImageArrays:
        """See :func:`decode_pictures`."""
        return decode_pictures(contents, self, origin)


def decode_pictures(contents: Mapping[str, bytes], layout: PictureLayout, origin: str) -> ImageArrays:
    """Decode a tree of pictures, in the order of their paths.

    Args:
        contents: content of each picture file by its path, ``train/CLASS/NAME`` or ``test/CLASS/NAME``.
        layout: the layout that it must have.
        origin: their path or address, for the error message.

    Returns:
        Images uint8 ``(N, 3, H, W)`` and labels int64 ``(N,)``.

    Raises:
        DataError: a class is unknown, the numbers are wrong, or a picture is damaged or of another size or kind.
    """
    labels = _labels(contents, layout, origin)
    train, test = ({path: labels[path] for path in contents if path.startswith(part)} for part in ("train/", "test/"))
    return decode_labelled(contents, train, test, PictureForm(layout.size), origin)


def decode_labelled(
    contents: Mapping[str, bytes], train: Mapping[str, int], test: Mapping[str, int], form: PictureForm, origin: str
) -> ImageArrays:
    """Decode the training and test pictures of a tree, in the order of their paths.

    Args:
        contents: content of each picture file by its path.
        train: label of each training picture by its path.
        test: label of each test picture by its path.
        form: size and channels that each gets.
        origin: path or address of the tree, for the error message.

    Raises:
        DataError: a picture is damaged, too large, or of another size or kind than it should be.
    """
    arrays = []
    for labels in (train, test):
        images = decode_files({path: contents[path] for path in sorted(labels)}, form, origin)
        arrays += [images, torch.tensor([labels[path] for path in sorted(labels)])]
    return ImageArrays(*arrays)


def picture_names(names: Sequence[str]) -> list[str]:
    """Return those names that are names of pictures, and not hidden or left by a system."""
    return [name for name in names if name.lower().endswith(SUFFIXES) and not is_hidden(name)]


def decode_seen(tree: FileTree, paths: Sequence[str], form: PictureForm) -> torch.Tensor:
    """Decode picture files of any kind as they are seen, and resize those of other sizes.

    Args:
        tree: holds the files.
        paths: paths of the pictures in it; at least one.
        form: size and channels that each gets.

    Returns:
        Images uint8 ``(N, C, H, W)``.

    Raises:
        DataError: a picture cannot be read rightly; see :func:`~hatrack.data.picture_files.read_picture`.
    """
    images = []
    brightest = None
    for path, content in tree.contents(paths):
        picture = read_picture(content, tree.place(path), form.channels, largest_side=LARGEST_SIDE)
        brightest = max((each for each in (picture.brightest, brightest) if each is not None), default=None)
        plain = Image.fromarray(picture.pixels.permute(1, 2, 0).squeeze(2).contiguous().numpy())
        images.append(torch.from_numpy(np.array(_resized(plain, form))))
    refuse_dark(brightest, tree.origin)
    width, height = form.size
    rows = torch.stack(images).reshape(len(images), height, width, form.channels)
    return rows.permute(0, 3, 1, 2).contiguous()


def decode_files(contents: Mapping[str, bytes], form: PictureForm, origin: str) -> torch.Tensor:
    """Decode picture files in their order.

    Args:
        contents: content of each file by its path; at least one.
        form: size and channels that each gets.
        origin: their path or address, for the error message.

    Returns:
        Images uint8 ``(N, C, H, W)``.

    Raises:
        DataError: a picture is damaged, too large, or of another size or kind than it should be.
    """
    width, height = form.size
    pixels = bytearray()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for path, content in contents.items():
            pixels += _pixels(content, form, f"{origin}: {path}")
    rows = torch.frombuffer(pixels, dtype=torch.uint8).reshape(len(contents), height, width, form.channels)
    return rows.permute(0, 3, 1, 2).contiguous()


def _labels(contents: Mapping[str, bytes], layout: PictureLayout, origin: str) -> dict[str, int]:
    """Return the label of every path, after checking that every class has as many pictures as it should."""
    label_of = {name: label for label, name in enumerate(layout.class_names)}
    counts = {(part, name): 0 for part in ("train", "test") for name in layout.class_names}
    labels = {}
    for path in contents:
        part, name = path.split("/")[:2]
        if (part, name) not in counts:
            raise DataError(f"{origin}: {path} is of class {name!r}; known are {', '.join(layout.class_names)}")
        counts[part, name] += 1
        labels[path] = label_of[name]
    for (part, name), count in counts.items():
        wanted = layout.wanted(part, label_of[name])
        if count != wanted:
            raise DataError(f"{origin}: {part}/{name} holds {count} pictures instead of {wanted}; fetch it again")
    return labels


def _pixels(content: bytes, form: PictureForm, origin: str) -> bytes:
    """Return the pixels of one picture, row by row, a byte for each channel."""
    try:
        with Image.open(io.BytesIO(content), formats=form.formats) as picture:
            wide, high = picture.size  # known from the header: a huge picture is never decoded
            if not form.resize and picture.size != form.size:
                raise DataError(f"{origin}: is {wide} x {high} pixels, not {form.size[0]} x {form.size[1]}")
            if max(wide, high) > LARGEST_SIDE:
                raise DataError(f"{origin}: is {wide} x {high} pixels, more than {LARGEST_SIDE} on a side")
            if picture.mode not in ("RGB", "L"):
                raise DataError(f"{origin}: is a picture of kind {picture.mode}, not RGB or grey")
            plain = ImageOps.exif_transpose(picture).convert("RGB" if form.channels == 3 else "L")
            if not form.resize and plain.size != form.size:
                raise DataError(f"{origin}: is {high} x {wide} pixels once it is turned as its EXIF data say")
            return bytes(_resized(plain, form).tobytes())
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        kinds = " or ".join(form.formats)
        raise DataError(f"{origin}: not a whole {kinds} picture ({error})") from error


def _resized(picture: Image.Image, form: PictureForm) -> Image.Image:
    return picture if picture.size == form.size else picture.resize(form.size, Image.Resampling.BILINEAR)


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
