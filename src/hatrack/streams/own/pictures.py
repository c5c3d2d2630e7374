"""Tasks of pictures in a folder or an archive: read as they are seen, with a record of what was and what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from hatrack.data.file_trees import FileTree, file_tree, last_name
from hatrack.data.picture_files import Conversion, read_picture, refuse_dark
from hatrack.data.picture_folders import PICTURE_LIMITS, picture_classes, picture_parts, warn_of_passed_over
from hatrack.data.trees import tree_digest
from hatrack.errors import UnfitDataError
from hatrack.streams.files_read import FilesRead
from hatrack.streams.own.samples import OwnSamples, ReadSamples, fitted
from hatrack.streams.own.spelling import refuse_alike
from hatrack.streams.own.targets import ClassTexts

__all__ = ["ARCHIVE", "has_test_pictures", "picture_digest", "read_pictures"]

ARCHIVE = ".zip"
"""Suffix of the archives of pictures that can be a task, in small letters."""


def has_test_pictures(path: Path) -> bool:
    """Return whether a folder or archive says which of its pictures are for testing.

    Raises:
        DataError: it cannot be read, or says it twice.
    """
    return picture_parts(file_tree(path, PICTURE_LIMITS)).test is not None


def picture_digest(path: Path) -> str:
    """Return the SHA-256 of all pictures that are read of a folder or archive: of their paths and contents.

    Raises:
        DataError: as :func:`read_pictures`, but for what is wrong within picture files.
    """
    tree = file_tree(path, PICTURE_LIMITS)
    return tree_digest(tree.files(picture_classes(tree).paths))


def read_pictures(path: Path, resize: tuple[int, int] | None, channels: int | None) -> ReadSamples:
    """Read the pictures of a folder or archive, all of one size and one number of channels.

    Args:
        path: the folder or archive.
        resize: height and width that they get; None leaves them.
        channels: 1 or 3, what they are turned into; None leaves them.

    Returns:
        The samples. Where the folder does not say which are for testing, there are no test samples.

    Raises:
        DataError: there are no pictures, or one cannot be read rightly; it is named.
    """
    tree = file_tree(path, PICTURE_LIMITS)
    found = picture_classes(tree)
    warn_of_passed_over(found, tree)
    done: Counter[Conversion] = Counter()
    parts = [
        _read_part(tree, folder, classes, resize, channels, done)
        for folder, classes in zip(found.parts.all, found.pictures, strict=True)
    ]
    passed_over = {reason.value: len(paths) for reason, paths in found.passed_over.items()}
    conversions = {each.value: done[each] for each in Conversion if done[each]}
    files = FilesRead(len(found.paths), passed_over, conversions)
    notes: tuple[str, ...] = ()
    if found.parts.tests_on_validation:
        assert found.parts.test is not None
        notes = (f"{tree.place(found.parts.test)} holds the test samples, since no folder is named test",)
    return ReadSamples(parts[0], parts[1] if len(parts) > 1 else None, files, notes)


def _read_part(
    tree: FileTree,
    folder: str,
    classes: Mapping[str, tuple[str, ...]],
    resize: tuple[int, int] | None,
    channels: int | None,
    done: Counter[Conversion],
) -> OwnSamples:
    """Read the pictures of a part, and count what was done to them."""
    origin = tree.place(folder)
    prefix = f"{folder}/" if folder else ""
    refuse_alike(list(classes), lambda row: tree.place(prefix + list(classes)[row]))
    paths = tuple(path for files in classes.values() for path in files)
    images: list[torch.Tensor] = []
    brightest = None
    for path, content in tree.contents(paths):
        picture = read_picture(content, tree.place(path), channels)
        images.append(fitted(picture.pixels[None], resize, None))
        done.update(picture.conversions)
        brightest = max((each for each in (picture.brightest, brightest) if each is not None), default=None)
        if images[-1].shape != images[0].shape:
            channel_count, height, width = images[-1].shape[1:]
            others, high, wide = images[0].shape[1:]
            raise UnfitDataError(
                f"{tree.place(path)} has {channel_count} channels of {height} x {width} pixels, "
                f"{tree.place(paths[0])} {others} of {high} x {wide}; "
                "say what all shall have by resize = [height, width] and channels = 1 or 3 in a tasks.toml"
            )
    refuse_dark(brightest, origin)
    labels = tuple(last_name(path.rpartition("/")[0]) for path in paths)
    return OwnSamples(torch.cat(images), ClassTexts(labels), origin, paths)
