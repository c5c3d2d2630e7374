"""Pictures in folders that are their classes: which files of a tree are read, as what, and which are passed over."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hatrack.data.archives import Limits
from hatrack.data.file_trees import FileTree, last_name
from hatrack.data.picture_files import SUFFIXES
from hatrack.errors import DataError

__all__ = [
    "PICTURE_LIMITS",
    "PassedOver",
    "PictureClasses",
    "PictureParts",
    "is_hidden",
    "picture_classes",
    "picture_parts",
    "warn_of_passed_over",
]

PICTURE_LIMITS = Limits(files=1 << 20, file_bytes=1 << 25, bytes=1 << 32)
"""Bounds on an archive of pictures of one's own."""
LAYOUT = "CLASS/*.png (or .jpg, .tif and others)"
TRAINING = frozenset({"train", "training"})
TEST = frozenset({"test", "testing"})
VALIDATION = frozenset({"val", "valid", "validation"})
"""Names of the folders of the parts of a set, in small letters."""
CLUTTER = frozenset({"__macosx", "@eadir", "$recycle.bin", "thumbs.db", "ehthumbs.db", "desktop.ini"})
"""Names that systems leave in folders and archives, in small letters; some look like pictures."""
WRAPPERS = 4
"""Most folders, each alone in the one above, in which a set is looked for; links could lead round in circles."""


class PassedOver(enum.Enum):
    """Reason why a file was not read, in words that go behind a number of files."""

    HIDDEN = "hidden or left by the system"
    KIND = "of other kinds"
    LOOSE = "in no folder of a class"
    BESIDE = "beside training and test"


@dataclass(frozen=True)
class PictureParts:
    """Folders of a tree in which the classes of its training and test pictures lie.

    Attributes:
        top: path of the folder that holds them, or the classes: the tree's top, or a folder that is alone in it.
        train: path of the training pictures; ``top`` where the tree does not say which are for testing.
        test: path of the test pictures; None where there is none.
    """

    top: str
    train: str
    test: str | None

    @property
    def all(self) -> tuple[str, ...]:
        """Paths of the parts there are, training first."""
        return (self.train,) if self.test is None else (self.train, self.test)

    @property
    def tests_on_validation(self) -> bool:
        """Return whether a folder for validation stands for one of test pictures."""
        return self.test is not None and last_name(self.test).lower() in VALIDATION


@dataclass(frozen=True)
class PictureClasses:
    """Pictures of a tree by part and class.

    Attributes:
        parts: the folders of the parts.
        pictures: for each part, the paths of the pictures of every class, both in the order of their names.
        passed_over: paths of all files that are not read, by the reason, in their order.
    """

    parts: PictureParts
    pictures: tuple[Mapping[str, tuple[str, ...]], ...]
    passed_over: Mapping[PassedOver, tuple[str, ...]]

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all pictures that are read, part by part and class by class."""
        return tuple(path for part in self.pictures for paths in part.values() for path in paths)


def is_hidden(path: str) -> bool:
    """Return whether a file or a folder above it is hidden by its name, or such as systems leave behind."""
    return any(name.startswith(".") or name.lower() in CLUTTER for name in path.split("/"))


def picture_parts(tree: FileTree) -> PictureParts:
    """Find the folders of training and test pictures: ``train`` and ``test``, in any case, or ``val`` for the latter.

    Raises:
        DataError: a folder cannot be read, or there are two for one part; they are named.
    """
    top = _unwrapped(tree)
    folders = _visible(tree.entries(top)[0])
    train, test, valid = (
        [path for path in folders if last_name(path).lower() in names] for names in (TRAINING, TEST, VALIDATION)
    )
    tests = test or valid
    if not train or not tests:
        return PictureParts(top, top, None)
    for several in (train, tests):
        if len(several) > 1:
            names = " and ".join(map(last_name, several))
            raise DataError(f"{tree.place(top)}: holds {names}, which are for the same part; leave one of them there")
    return PictureParts(top, train[0], tests[0])


def picture_classes(tree: FileTree) -> PictureClasses:
    """Find the pictures of every class: those in ``CLASS/*``, or in such folders within those of the parts.

    What begins with a dot, or is such as systems leave behind, is neither a class nor a picture.

    Raises:
        DataError: there are no pictures, a class has none, or its name is no UTF-8, or some lie deeper; it is named.
    """
    parts = picture_parts(tree)
    listed = [_classes(tree, part) for part in parts.all]
    pictures = tuple(
        {last_name(folder): tuple(filter(_is_picture, files)) for folder, files in part.items()} for part in listed
    )
    read = {path for part in pictures for paths in part.values() for path in paths}
    folders = {folder for part in listed for folder in part}
    # Folders of classes may be links, which are not followed in looking at all files.
    there = {*tree.below(""), *(file for part in listed for files in part.values() for file in files)}
    passed: dict[PassedOver, list[str]] = {}
    for path in sorted(there - read):
        passed.setdefault(_reason(path, parts, folders), []).append(path)
    return PictureClasses(parts, pictures, {reason: tuple(passed[reason]) for reason in PassedOver if reason in passed})


def warn_of_passed_over(found: PictureClasses, tree: FileTree) -> None:
    """Warn, in one line each, of files that are not read and look as if they were meant to be."""
    beside, loose, others = (
        found.passed_over.get(reason, ()) for reason in (PassedOver.BESIDE, PassedOver.LOOSE, PassedOver.KIND)
    )
    if beside:
        depth = found.parts.top.count("/") + 1 if found.parts.top else 0
        names = ", ".join(dict.fromkeys(path.split("/")[depth] for path in beside))
        read = " and ".join(map(last_name, found.parts.all))
        _warn(f"{tree.place(found.parts.top)}: only {read} are read, not {names}; see validation for held-out samples")
    if loose:
        _warn(f"{tree.place(loose[0])}: lies in no folder of a class and is not read, {_count(loose)} in all")
    folders = {path.rpartition("/")[0] for path in found.paths}
    rest = [path for path in others if path.rpartition("/")[0] in folders]
    if rest:
        _warn(f"{tree.place(rest[0])}: is no picture of a kind that can be read and is left out, {_count(rest)} in all")


def _unwrapped(tree: FileTree) -> str:
    """Return the folder that holds the classes or parts: the top, or one that is alone in it, as archives have it."""
    top = ""
    for _ in range(WRAPPERS):
        folders, files = map(_visible, tree.entries(top))
        if len(folders) != 1 or any(map(_is_picture, files)):
            break
        within, pictures = map(_visible, tree.entries(folders[0]))
        if not within or any(map(_is_picture, pictures)):
            break
        top = folders[0]
    return top


def _classes(tree: FileTree, part: str) -> dict[str, list[str]]:
    """Return the files in the folders of the classes, hidden ones included, after checking that there are pictures."""
    classes: dict[str, list[str]] = {}
    for folder in _visible(tree.entries(part)[0]):
        try:
            last_name(folder).encode()
        except UnicodeEncodeError as error:
            place = tree.place(folder).encode(errors="backslashreplace").decode()
            raise DataError(f"{place}: is the folder of a class, and its name is no UTF-8; rename it") from error
        within, files = tree.entries(folder)
        deeper = sorted(path for each in _visible(within) for path in _all_below(tree, each) if _is_picture(path))
        if deeper:
            raise DataError(
                f"{tree.place(deeper[0])}: lies too deep to be read; pictures must lie in {tree.place(part)} as "
                f"{LAYOUT}, or, where training and test samples are apart, in folders named train and test as "
                "train/CLASS/*.png and test/CLASS/*.png"
            )
        if not any(map(_is_picture, files)):
            others = next((f", unlike {last_name(path)}" for path in _visible(files)), "")
            raise DataError(
                f"{tree.place(folder)}: is the folder of a class and holds no pictures that can be read{others}; put "
                "some there, such as .png or .jpg, or remove it"
            )
        classes[folder] = files
    if not classes:
        raise DataError(f"{tree.place(part)}: holds no pictures; they must lie in it as {LAYOUT}")
    return classes


def _all_below(tree: FileTree, folder: str) -> Iterable[str]:
    """Return all files in a folder, which may be a link and must be one that can be read."""
    tree.entries(folder)
    return tree.below(folder)


def _reason(path: str, parts: PictureParts, folders: set[str]) -> PassedOver:
    """Return why a file that is not read is passed over."""
    if is_hidden(path):
        return PassedOver.HIDDEN
    above = path.rpartition("/")[0]
    if above in {parts.top, *parts.all}:
        return PassedOver.LOOSE if _is_picture(path) else PassedOver.KIND
    in_a_class = not folders.isdisjoint(_around(path))
    return PassedOver.KIND if in_a_class or above in _around(parts.top) else PassedOver.BESIDE


def _around(path: str) -> set[str]:
    """Return the folders that a file or folder lies in, the top of the tree among them."""
    names = path.split("/")
    return {"/".join(names[:depth]) for depth in range(len(names))}


def _visible(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if not is_hidden(path)]


def _is_picture(path: str) -> bool:
    suffix = path.rpartition(".")[2].lower()
    return f".{suffix}" in SUFFIXES and not is_hidden(path)


def _count(files: tuple[str, ...] | list[str]) -> str:
    return f"{len(files)} file{'s' if len(files) > 1 else ''}"


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
