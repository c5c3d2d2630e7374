"""Pictures and their classes among the files of a folder or an archive, and what becomes of all others."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hatrack.data import from_pictures
from hatrack.data.arrays import identical_images
from hatrack.data.file_trees import FileTree, file_tree
from hatrack.data.picture_folders import (
    PICTURE_LIMITS,
    PassedOver,
    PictureParts,
    picture_classes,
    picture_parts,
    warn_of_passed_over,
)
from hatrack.data.trees import tree_digest
from hatrack.errors import DataError
from support.marks import examples
from support.miniatures import put, tar_gz, zipped
from support.picture_kinds import saved

PICTURE = saved(Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)))
Opened = Callable[[Mapping[str, bytes]], FileTree]


@pytest.fixture(params=["folder", "zip", "tar.gz"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Put files into a folder or an archive, and open it; the archive has them in the folder ``set``."""

    def make(files: Mapping[str, bytes]) -> FileTree:
        if request.param == "folder":
            return file_tree(put(tmp_path / "set", files), PICTURE_LIMITS)
        path = tmp_path / f"set.{request.param}"
        wrapped = {f"set/{name}": content for name, content in files.items()}
        path.write_bytes(zipped(wrapped) if request.param == "zip" else tar_gz(files, "set"))
        return file_tree(path, PICTURE_LIMITS)

    return make


def pictures(*paths: str) -> dict[str, bytes]:
    return dict.fromkeys(paths, PICTURE)


def within(tree: FileTree, paths: tuple[str, ...]) -> list[str]:
    """Paths below the folder in which archives wrap the set."""
    return [path.removeprefix("set/") for path in paths]


def test_classes_and_pictures_are_in_the_order_of_their_names(opened: Opened) -> None:
    tree = opened(pictures("b/2.png", "b/10.JPG", "a b/1.tif", "B/1.webp", "a/x.jfif", "a/y.bmp", "a/z.gif", "a/w.pnm"))
    found = picture_classes(tree)
    assert [list(part) for part in found.pictures] == [["B", "a", "a b", "b"]]
    assert within(tree, found.pictures[0]["b"]) == ["b/10.JPG", "b/2.png"]
    assert within(tree, found.pictures[0]["a"]) == ["a/w.pnm", "a/x.jfif", "a/y.bmp", "a/z.gif"]
    assert found.passed_over == {}


PARTED = {
    "small": ("train", "test", False),
    "large": ("Train", "Test", False),
    "capitals": ("TRAIN", "TEST", False),
    "words": ("training", "testing", False),
    "val": ("train", "val", True),
    "valid": ("Train", "Valid", True),
    "validation": ("training", "validation", True),
}


@pytest.mark.parametrize("parts", PARTED.values(), ids=PARTED)
def test_parts_by_any_usual_name(parts: tuple[str, str, bool], opened: Opened) -> None:
    train, test, stands_in = parts
    tree = opened(pictures(f"{train}/a/1.png", f"{train}/b/1.png", f"{test}/a/2.png"))
    found = picture_classes(tree)
    assert [list(part) for part in found.pictures] == [["a", "b"], ["a"]]
    assert within(tree, found.paths) == [f"{train}/a/1.png", f"{train}/b/1.png", f"{test}/a/2.png"]
    assert found.parts.tests_on_validation is stands_in


def test_two_folders_for_one_part_are_refused(opened: Opened) -> None:
    tree = opened(pictures("train/a/1.png", "training/a/1.png", "test/a/1.png"))
    with pytest.raises(DataError, match="holds train and training, which are for the same part"):
        picture_parts(tree)


def test_a_set_alone_in_a_folder_is_found_there(tmp_path: Path) -> None:
    files = pictures("one/two/train/a/1.png", "one/two/test/a/1.png") | {"one/README.md": b"", "__MACOSX/one/._x": b""}
    found = picture_classes(file_tree(put(tmp_path, files), PICTURE_LIMITS))
    assert found.parts == PictureParts("one/two", "one/two/train", "one/two/test")
    assert found.passed_over == {PassedOver.HIDDEN: ("__MACOSX/one/._x",), PassedOver.KIND: ("one/README.md",)}
    (tmp_path / "round").mkdir()
    (tmp_path / "round" / "again").symlink_to(tmp_path / "round", target_is_directory=True)
    with pytest.raises(DataError):
        picture_classes(file_tree(tmp_path / "round", PICTURE_LIMITS))


CLUTTER = [
    ".ipynb_checkpoints/1-checkpoint.png",
    "__MACOSX/set/a/._1.png",
    "a/._1.png",
    "a/.DS_Store",
    "a/Thumbs.db",
    "b/desktop.ini",
    "b/.ipynb_checkpoints/2-checkpoint.png",
    "b/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg",
    ".git/objects/1.png",
]


def test_what_is_hidden_or_left_by_systems_is_neither_class_nor_picture(opened: Opened) -> None:
    tree = opened(pictures("a/1.png", "b/1.png") | dict.fromkeys(CLUTTER, b"?"))
    found = picture_classes(tree)
    assert [list(part) for part in found.pictures] == [["a", "b"]]
    assert within(tree, found.passed_over[PassedOver.HIDDEN]) == sorted(CLUTTER)
    assert list(found.passed_over) == [PassedOver.HIDDEN]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_passed_over(found, tree)


def test_everything_that_is_not_read_is_counted_and_what_looks_meant_is_said(opened: Opened) -> None:
    tree = opened(
        pictures("train/a/1.png", "train/b/1.png", "test/a/1.png", "val/a/1.png", "val/b/2.png", "train/loose.png")
        | {"train/b/notes.xml": b"", "train/b/phone.heic": b"", "LICENSE": b"", "extra/readme.txt": b"", "val/.x": b""}
    )
    found = picture_classes(tree)
    assert {reason: within(tree, paths) for reason, paths in found.passed_over.items()} == {
        PassedOver.HIDDEN: ["val/.x"],
        PassedOver.KIND: ["LICENSE", "train/b/notes.xml", "train/b/phone.heic"],
        PassedOver.LOOSE: ["train/loose.png"],
        PassedOver.BESIDE: ["extra/readme.txt", "val/a/1.png", "val/b/2.png"],
    }
    assert len(found.paths) == 3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_passed_over(found, tree)
    beside, loose, others = [str(each.message) for each in caught]
    assert "only train and test are read, not extra, val" in beside
    assert "train/loose.png: lies in no folder of a class and is not read, 1 file in all" in loose
    assert "train/b/notes.xml: is no picture of a kind that can be read and is left out, 2 files in all" in others


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        (pictures("a/1.png", "b/deep/1.png"), r"b/deep/1\.png: lies too deep to be read"),
        (pictures("a/1.png", "b/1.png", "b/deep/deeper/1.png"), r"b/deep/deeper/1\.png: lies too deep to be read"),
        (pictures("a/1.png") | {"b/1.heic": b""}, r"b: is the folder of a class and holds no pictures.*unlike 1\.heic"),
        (
            pictures("a/1.png") | {"b/.1.png": b""},
            r"b: is the folder of a class and holds no pictures that can be read;",
        ),
        (pictures("train/1.png", "test/1.png"), r"train: holds no pictures; they must lie"),
        ({"readme.txt": b""}, "holds no pictures"),
    ],
)
def test_what_would_be_lost_is_refused(files: Mapping[str, bytes], fault: str, opened: Opened) -> None:
    with pytest.raises(DataError, match=fault) as caught:
        picture_classes(opened(files))
    assert "\n" not in str(caught.value)


def test_pictures_without_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no pictures; they must lie in it as CLASS/\*\.png"):
        picture_classes(file_tree(put(tmp_path, pictures("1.png")), PICTURE_LIMITS))


def test_folder_and_archives_of_it_have_the_same_digest(tmp_path: Path) -> None:
    files = pictures("train/a/1.png", "test/a/ö.png") | {"train/a/.hidden": b""}
    put(tmp_path, files)
    (tmp_path / "set.zip").write_bytes(zipped(files))
    (tmp_path / "set.tar.gz").write_bytes(tar_gz(files, "."))
    trees = [file_tree(tmp_path / name, PICTURE_LIMITS) for name in ("", "set.zip", "set.tar.gz")]
    digests = {tree_digest(tree.files(picture_classes(tree).paths)) for tree in trees}
    assert digests == {tree_digest({name: content for name, content in files.items() if "hidden" not in name})}


def test_pictures_behind_links_are_read_and_count_for_the_digest(tmp_path: Path) -> None:
    put(tmp_path / "else", pictures("a/1.png", "a/2.png") | {"a/notes.txt": b"", "3.png": PICTURE})
    put(tmp_path / "set", pictures("b/1.png"))
    (tmp_path / "set" / "a").symlink_to(tmp_path / "else" / "a", target_is_directory=True)
    (tmp_path / "set" / "b" / "3.png").symlink_to(tmp_path / "else" / "3.png")
    tree = file_tree(tmp_path / "set", PICTURE_LIMITS)

    def digest() -> str:
        return tree_digest(tree.files(picture_classes(tree).paths))

    found, before = picture_classes(tree), digest()
    assert found.paths == ("a/1.png", "a/2.png", "b/1.png", "b/3.png")
    assert found.passed_over == {PassedOver.KIND: ("a/notes.txt",)}
    seen = {before}
    for changed in ("a/2.png", "3.png"):
        (tmp_path / "else" / changed).write_bytes(PICTURE + b"changed")
        assert digest() not in seen
        seen.add(digest())
    (tmp_path / "else" / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png: cannot be read"):
        digest()
    with pytest.raises(DataError, match=r"3\.png: cannot be read"):
        list(tree.contents(picture_classes(tree).paths))


@pytest.mark.skipif(os.name != "posix", reason="names of files are texts there")
def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    put(tmp_path / "set", pictures("a/1.png", "b/1.png"))
    root = os.fsencode(tmp_path / "set")
    try:
        Path(os.fsdecode(root + b"/b/\xe4.png")).write_bytes(PICTURE)
    except OSError:
        pytest.skip("the disk has no such names")
    tree = file_tree(tmp_path / "set", PICTURE_LIMITS)
    found = picture_classes(tree)
    assert len(list(tree.contents(found.paths))) == 3
    before = tree_digest(tree.files(found.paths))
    Path(os.fsdecode(root + b"/b/\xe4.png")).rename(os.fsdecode(root + b"/b/\xe5.png"))
    assert tree_digest(tree.files(picture_classes(tree).paths)) != before
    Path(os.fsdecode(root + b"/b")).rename(os.fsdecode(root + b"/\xe4"))
    with pytest.raises(DataError, match=r"set/\\udce4: is the folder of a class, and its name is no UTF-8") as caught:
        picture_classes(tree)
    str(caught.value).encode()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    put(tmp_path, pictures("a/1.png"))
    os.mkfifo(tmp_path / "a" / "2.png")
    tree = file_tree(tmp_path, PICTURE_LIMITS)
    with pytest.raises(DataError, match=r"2\.png: is no plain file"):
        list(tree.contents(picture_classes(tree).paths))


@pytest.mark.parametrize("says_so", [False, True])
def test_names_in_zips_are_utf_8_even_where_they_do_not_say_so(says_so: bool, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("mäuse/1.png", "Übung/1.png"):
            archive.writestr(name, PICTURE)
    content = buffer.getvalue()
    if not says_so:  # as many programs write them
        content = content.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x08", b"PK\x01\x02\x14\x03\x14\x00\x00\x00")
        content = content.replace(b"PK\x03\x04\x14\x00\x00\x08", b"PK\x03\x04\x14\x00\x00\x00")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert "mäuse/1.png" not in archive.namelist()
    (tmp_path / "set.zip").write_bytes(content)
    tree = file_tree(tmp_path / "set.zip", PICTURE_LIMITS)
    found = picture_classes(tree)
    assert list(found.pictures[0]) == ["mäuse", "Übung"]
    assert dict(tree.contents(found.paths)) == pictures("mäuse/1.png", "Übung/1.png")


# --- as a data set


def test_from_pictures_reads_every_kind_and_says_what_it_does_not(opened: Opened) -> None:
    grey = Image.fromarray(np.full((4, 5), 40000, np.uint16))
    clear = Image.new("RGBA", (5, 4))
    clear.putpixel((0, 0), (0, 0, 0, 255))
    kinds = {"b.tif": saved(grey, "TIFF"), "c.gif": saved(Image.new("L", (5, 4), 9), "GIF"), "d.png": saved(clear)}
    files = {f"Train/x/{name}": content for name, content in kinds.items()} | pictures("Train/y/1.png")
    files["Val/y/1.png"] = saved(Image.new("L", (5, 4), 3))
    origin = opened(files | pictures("Train/loose.png", "Train/x/.ipynb_checkpoints/1.png")).origin
    with pytest.warns(UserWarning, match=r"loose\.png: lies in no folder of a class"):
        dataset = from_pictures("mine", origin, size=(5, 4), channels=1)
    assert dataset.class_names == ("x", "y")
    assert dataset.y_train.tolist() == [0, 0, 0, 1]
    white = torch.full((4, 5), 255)
    white[0, 0] = 0
    assert dataset.x_train[:3, 0].tolist() == [[[156] * 5] * 4, [[9] * 5] * 4, white.tolist()]


def test_from_pictures_says_which_test_pictures_are_training_pictures(opened: Opened) -> None:
    origin = opened(pictures("train/a/1.png", "train/b/1.png", "test/a/1.png")).origin
    with pytest.warns(UserWarning, match=r"1 of 1 test pictures are identical with .*such as \S*test/a"):
        from_pictures("mine", origin, size=(5, 4))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 5))
@settings(max_examples=examples(25), deadline=None)
def test_identical_images_by_comparing_all_with_all(train: int, test: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(0, 2, (count, 1, 2, 1), generator=generator).byte() for count in (train, test))
    expected = []
    for row, image in enumerate(y):
        twins = [other for other, candidate in enumerate(x) if torch.equal(image, candidate)]
        expected += [(row, twins[0])] if twins else []
    assert identical_images(x, y) == expected


def test_limits_of_folders_and_archives(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = opened(pictures("train/a/1.png", "train/b/1.png", "test/a/1.png")).origin
    for changes, fault in (({"file_bytes": 50}, "more than the 50"), ({"files": 2}, "holds more than 2")):
        smaller = type(PICTURE_LIMITS)(**{**vars(PICTURE_LIMITS), **changes})
        monkeypatch.setattr("hatrack.data.own.PICTURE_LIMITS", smaller)
        with pytest.raises(DataError, match=fault):
            from_pictures("mine", origin, size=(5, 4))
