"""Folders of pictures of one's own: every kind is read as it is seen, or it is said what is not."""

from __future__ import annotations

import os
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hatrack.data.archives import Limits
from hatrack.data.file_trees import file_tree
from hatrack.errors import DataError, InputError
from hatrack.streams import FilesRead, OwnTask, StreamOptions, Task, own_stream
from hatrack.streams.own.files import digest_of
from hatrack.streams.own.samples import fitted
from support.own_sources import PICTURES, RANDOM, archive, built, from_toml, pictures


def test_folder_with_training_and_test_pictures(tmp_path: Path) -> None:
    pictures(tmp_path / "set" / "train", {"b": 4, "a": 6}, (6, 5, 3))
    pictures(tmp_path / "set" / "test", {"a": 2, "b": 3}, (6, 5, 3))
    task = built(tmp_path / "set")
    assert (task.name, task.classes, task.input_shape) == ("set", ("a", "b"), (3, 6, 5))
    assert task.train.labels.bincount().tolist() == [6, 4]
    assert task.test.labels.bincount().tolist() == [2, 3]
    x, _ = task.train.load()
    torch.testing.assert_close(x.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    first = np.array(Image.open(tmp_path / "set" / "train" / "a" / "0.png")).transpose(2, 0, 1)
    assert torch.equal(task.train.source[0], torch.from_numpy(first.copy()))


def test_folder_divided_by_the_seed(tmp_path: Path) -> None:
    pictures(tmp_path / "set", {"a": 20, "b": 10})
    text = '[[task]]\npath = "set"\ntest_share = 0.3\n'
    task = from_toml(tmp_path, text)
    assert task.input_shape == (1, 6, 5), "grey pictures have one channel"
    assert task.test.labels.bincount().tolist() == [6, 3]
    assert torch.equal(task.test.source, from_toml(tmp_path, text).test.source)
    assert not torch.equal(task.test.source, from_toml(tmp_path, text, seed=1).test.source)
    train = {image.numpy().tobytes() for image in task.train.source}
    assert not train & {image.numpy().tobytes() for image in task.test.source}
    assert len(task.train) + len(task.test) == 30


def test_pictures_are_never_resized_silently(tmp_path: Path) -> None:
    pictures(tmp_path / "set", {"a": 5, "b": 5})
    pictures(tmp_path / "set", {"c": 5}, (8, 5))
    with pytest.raises(DataError, match=r"1 channels of 8 x 5 pixels.*resize = \[height, width\]"):
        from_toml(tmp_path, '[[task]]\npath = "set"\ntest_share = 0.3\n')
    task = from_toml(tmp_path, '[[task]]\npath = "set"\ntest_share = 0.3\nresize = [4, 3]\nchannels = 3\n')
    assert task.input_shape == (3, 4, 3)


def test_tasks_of_different_sizes_need_a_choice(tmp_path: Path) -> None:
    grey = RANDOM.integers(0, 256, (30, 6, 5), dtype=np.uint8)
    archive(tmp_path / "grey.npz", x_train=grey, x_test=grey[:9])
    pictures(tmp_path / "colour", {"a": 5, "b": 5}, (8, 8, 3))
    text = '[[task]]\npath = "grey.npz"\n[[task]]\npath = "colour"\ntest_share = 0.5\n'
    with pytest.raises(
        InputError, match=r"samples of colour are \(3, 8, 8\), those of grey \(1, 6, 5\).*choose resize"
    ):
        from_toml(tmp_path, text)
    stream = own_stream([tmp_path / "tasks.toml"])
    (tmp_path / "tasks.toml").write_text(f"resize = [8, 8]\nchannels = 1\n{text}")
    stream = own_stream([tmp_path / "tasks.toml"])
    assert stream.build(StreamOptions(0)).input_shape == (1, 8, 8)


def test_other_kinds_of_pictures_need_a_choice_too(tmp_path: Path) -> None:
    pictures(tmp_path / "set", {"a": 5, "b": 5}, (4, 4, 4))  # with transparency
    with pytest.raises(DataError, match="of kind RGBA; say channels = 1 or 3"):
        from_toml(tmp_path, '[[task]]\npath = "set"\ntest_share = 0.5\n')
    task = from_toml(tmp_path, PICTURES)
    assert task.input_shape == (3, 4, 4)
    found = every(task).tolist()
    for path in (tmp_path / "set").glob("*/*"):
        with Image.open(path) as picture:
            seen = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        assert np.array(seen)[..., :3].transpose(2, 0, 1).tolist() in found
    assert task.files == FilesRead(10, {}, {"with transparent parts put on white": 10})


def every(task: Task) -> torch.Tensor:
    """All pictures of a task, as bytes."""
    return torch.cat([task.train.source, task.test.source])


def saved(folder: Path, picture: Image.Image, name: str = "0.png", **how: Any) -> Path:
    """Folder of two classes that hold the same picture twice."""
    for path in (folder / each / f"{number}{name}" for each in "ab" for number in range(2)):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, **how)
    return folder


@pytest.mark.parametrize("name", [".png", ".tif", ".pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_as_eight_bits_are(name: str, channels: int, tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257], [20000, 40000, 65406, 65535]], dtype=np.uint16)
    saved(tmp_path / "set", Image.fromarray(values), name)
    with pytest.raises(DataError, match=r"of kind I.*say channels = 1 or 3"):
        from_toml(tmp_path, PICTURES.replace("channels = 3", ""))
    bytes_ = every(from_toml(tmp_path, PICTURES.replace("= 3", f"= {channels}")))
    assert bytes_.shape[1:] == (channels, 2, 4)
    assert bytes_[0, -1].flatten().tolist() == [0, 0, 1, 1, 78, 156, 254, 255]


def test_few_of_sixteen_bits_would_be_lost_and_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "set", Image.fromarray(RANDOM.integers(0, 4096, (4, 4), dtype=np.uint16)))
    with pytest.raises(DataError, match=r"set: its pictures of 16 bits have values up to \d+ of 65535.*scale them"):
        from_toml(tmp_path, PICTURES)


def test_numbers_of_thirty_two_bits_have_no_largest(tmp_path: Path) -> None:
    saved(tmp_path / "set", Image.fromarray(np.ones((4, 4), dtype=np.float32)), ".tif")
    with pytest.raises(DataError, match=r"numbers of 32 bits.*\.npz"):
        from_toml(tmp_path, PICTURES)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_read_as_they_are_seen(orientation: int, tmp_path: Path) -> None:
    picture = Image.fromarray(RANDOM.integers(0, 256, (4, 6), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    saved(tmp_path / "set", picture, exif=exif)
    with Image.open(tmp_path / "set" / "a" / "00.png") as stored:
        seen = np.array(ImageOps.exif_transpose(stored))
    assert seen.shape == ((4, 6) if orientation < 5 else (6, 4))
    assert every(from_toml(tmp_path, PICTURES.replace("channels = 3", "")))[0, 0].tolist() == seen.tolist()


@pytest.mark.parametrize("suffix", ["tif", "TIFF", "gif", "webp", "ppm", "bmp", "jp2", "tga", "JPG", "jfif"])
def test_every_kind_of_picture_file_is_read(suffix: str, tmp_path: Path) -> None:
    pictures(tmp_path / "set", {"a": 3, "b": 3}, (6, 5, 3))
    before = digest_of(OwnTask("set", tmp_path / "set", test_share=0.5))
    pictures(tmp_path / "set", {"c": 4}, (6, 5, 3), suffix)
    task = from_toml(tmp_path, PICTURES)
    assert task.classes == ("a", "b", "c")
    assert len(every(task)) == 10
    assert digest_of(OwnTask("set", tmp_path / "set", test_share=0.5)) != before


def test_of_several_pictures_in_a_file_the_first_of_a_moving_one_is_taken_and_pages_are_refused(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", {"a": 3, "b": 3}, (6, 5, 3))
    pages = [Image.fromarray(np.full((6, 5, 3), value, dtype=np.uint8)) for value in (7, 70, 200)]
    moving: list[tuple[str, dict[str, Any]]] = [("1.gif", {}), ("2.webp", {"lossless": True}), ("3.png", {})]
    for count, (name, how) in enumerate(moving, start=1):
        pages[0].save(folder / "b" / name, save_all=True, append_images=pages[1:], **how)
        task = from_toml(tmp_path, PICTURES)
        assert (every(task) == 7).flatten(1).all(1).sum() == count
        assert task.files == FilesRead(6 + count, {}, {"of which the first of several pictures is taken": count})
    pages[0].save(folder / "b" / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"pages\.tif: holds 3 pictures; save those"):
        from_toml(tmp_path, PICTURES)


def test_no_empty_class_of_an_archive_is_left_out_silently(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for part in ("train", "test"):
        pictures(folder / part, {"a": 3, "b": 2})
    assert built(Path(shutil.make_archive(str(tmp_path / "whole"), "zip", folder))).num_classes == 2
    (folder / "train" / "c").mkdir()
    lacking = str(tmp_path / "lacking")
    with pytest.raises(DataError, match=r"zip: train/c: is the folder of a class and holds no pictures.*remove it"):
        built(Path(shutil.make_archive(lacking, "zip", folder)))
    tree = file_tree(Path(shutil.make_archive(lacking, "gztar", folder)), Limits(100, 1 << 20, 1 << 20))
    assert tree.entries("train")[0] == ["train/a", "train/b", "train/c"]


def test_no_class_and_no_deeper_folder_is_left_out_silently(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", {"a": 4, "b": 4})
    (folder / "c").mkdir()
    with pytest.raises(DataError, match=r"c: is the folder of a class and holds no pictures.*remove it"):
        from_toml(tmp_path, PICTURES)
    (folder / "c" / "0.heic").write_bytes(b"?")
    with pytest.raises(DataError, match=r"c: is the folder of a class.* unlike 0\.heic"):
        from_toml(tmp_path, PICTURES)
    pictures(folder, {"c/deep/deeper": 4})
    with pytest.raises(
        DataError, match=r"deeper.0\.png: lies too deep.*as CLASS/\*\.png.*folders named train and test"
    ):
        from_toml(tmp_path, PICTURES)
    with pytest.raises(DataError, match="lies too deep"):
        digest_of(OwnTask("set", folder, test_share=0.5))


def test_what_is_hidden_is_neither_class_nor_picture(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", {"a": 4, "b": 4, ".ipynb_checkpoints": 4, "b/.thumbnails": 4})
    (folder / "a" / "._0.png").write_bytes(b"what macOS leaves")
    (folder / "a" / "Thumbs.db").write_bytes(b"what Windows leaves")
    task = from_toml(tmp_path, PICTURES)
    assert (task.classes, len(every(task))) == (("a", "b"), 8)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for part in ("train", "test", "val"):
        pictures(folder / part, {"a": 3, "b": 3})
    with pytest.warns(UserWarning, match=r"set: only train and test are read, not val"):
        assert len(every(built(folder))) == 12
    pictures(tmp_path / "other", {"a": 4, "b": 4})
    (tmp_path / "other" / "a" / "notes.xml").write_text("<box/>")
    Image.new("L", (5, 6)).save(tmp_path / "other" / "overview.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(every(from_toml(tmp_path, PICTURES.replace("set", "other")))) == 8
    first, second = [str(each.message) for each in caught]
    assert "overview.png: lies in no folder of a class" in first
    assert "notes.xml: is no picture" in second


def test_pictures_behind_links_count_for_the_digest(tmp_path: Path) -> None:
    pictures(tmp_path / "elsewhere", {"a": 3})
    folder = pictures(tmp_path / "set", {"b": 3})
    (folder / "a").symlink_to(tmp_path / "elsewhere" / "a", target_is_directory=True)
    before = digest_of(OwnTask("set", folder, test_share=0.5))
    Image.new("L", (5, 6)).save(tmp_path / "elsewhere" / "a" / "0.png")
    assert digest_of(OwnTask("set", folder, test_share=0.5)) != before


def test_val_stands_for_test_and_says_so(tmp_path: Path) -> None:
    for part in ("Train", "Val"):
        pictures(tmp_path / "set" / part, {"a": 3, "b": 2})
    stream = own_stream([tmp_path / "set"]).build(StreamOptions(0))
    assert (len(stream[0].train), len(stream[0].test)) == (5, 5)
    (note,) = stream.notes
    assert note == f"task set: {tmp_path / 'set' / 'Val'} holds the test samples, since no folder is named test"


def test_a_zip_is_the_folder_that_it_unpacks_to(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for part in ("train", "test"):
        pictures(folder / part, {"a": 3, "b": 2})
    (folder / "train" / "a" / "notes.txt").write_text("seen")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(folder))
        archive.writestr("__MACOSX/train/a/._0.png", b"?")
    with pytest.warns(UserWarning, match=r"notes\.txt: is no picture"):
        loose, packed = built(folder), built(tmp_path / "packed.zip")
    assert packed.name == "packed"
    for mine, theirs in ((loose.train, packed.train), (loose.test, packed.test)):
        assert torch.equal(mine.source, theirs.source)
        assert torch.equal(mine.labels, theirs.labels)
    assert loose.files == FilesRead(10, {"of other kinds": 1})
    assert packed.files == FilesRead(10, {"hidden or left by the system": 1, "of other kinds": 1})
    assert digest_of(OwnTask("set", folder)) == digest_of(OwnTask("set", tmp_path / "packed.zip"))
    assert own_stream([tmp_path / "packed.zip"]).origins()[0].startswith("packed: pictures, SHA-256 ")
    with pytest.raises(InputError, match="test samples of its own; leave out test_share"):
        OwnTask("set", tmp_path / "packed.zip", test_share=0.5)
    (tmp_path / "packed.zip").write_bytes((tmp_path / "packed.zip").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"packed\.zip: the zip archive is damaged"):
        own_stream([tmp_path / "packed.zip"])


def test_files_are_counted_with_what_became_of_them(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", {"a": 3, "b": 3, ".ipynb_checkpoints": 2})
    turned = Image.Exif()
    turned[0x0112] = 3
    Image.fromarray(RANDOM.integers(0, 256, (6, 5), dtype=np.uint8)).save(folder / "a" / "turned.jpg", exif=turned)
    Image.fromarray(np.full((6, 5), 40000, np.uint16)).save(folder / "b" / "deep.png")
    Image.new("LA", (5, 6), (255, 0)).save(folder / "b" / "clear.png")
    task = from_toml(tmp_path, PICTURES)
    assert task.files == FilesRead(
        9,
        {"hidden or left by the system": 2},
        {
            "turned as their EXIF data say": 1,
            "with transparent parts put on white": 1,
            "scaled from 16 bits to 8": 1,
        },
    )


def test_identical_pictures_in_training_and_test_are_said(tmp_path: Path) -> None:
    for part in ("train", "test"):
        pictures(tmp_path / "set" / part, {"a": 3, "b": 3})
    assert own_stream([tmp_path / "set"]).build(StreamOptions(0)).notes == ()
    for source, copy in (("train/b/1.png", "test/a/0.bmp"), ("train/a/0.png", "test/b/1.png")):
        with Image.open(tmp_path / "set" / source) as picture:
            picture.save(tmp_path / "set" / copy)
    (note,) = own_stream([tmp_path / "set"]).build(StreamOptions(0)).notes
    assert note == (
        "task set: 2 of 7 test pictures are identical with training pictures (such as test/a/0.bmp and train/b/1.png), "
        "so that tests on them are no tests"
    )
    grey = RANDOM.integers(0, 256, (30, 6, 5), dtype=np.uint8)
    archive(tmp_path / "grey.npz", x_train=grey, x_test=grey[21:])
    (note,) = own_stream([tmp_path / "grey.npz"]).build(StreamOptions(0)).notes
    assert note.startswith("task grey: 9 of 9 test pictures are identical with training pictures (such as x_test[0] ")
    assert "and x_train[21])" in note


def test_file_names_need_not_be_utf_8(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", {"a": 3, "b": 3})
    try:
        (folder / "a" / "0.png").rename(os.fsdecode(os.fsencode(folder / "a") + b"/\xff.png"))
    except OSError:
        pytest.skip("the disk has no such names")
    assert len(every(from_toml(tmp_path, PICTURES))) == 6
    assert len(digest_of(OwnTask("set", folder, test_share=0.5))) == 64


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", {"a": 5, "b": 5})
    whole = (folder / "b" / "3.png").read_bytes()
    (folder / "b" / "3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"3\.png: not a whole picture"):
        from_toml(tmp_path, '[[task]]\npath = "set"\ntest_share = 0.5\n')


def test_channels_by_hand() -> None:
    colour = torch.tensor([[[[255]], [[0]], [[100]]]], dtype=torch.uint8)
    assert fitted(colour, None, 1).item() == round(0.299 * 255 + 0.114 * 100)
    assert fitted(torch.tensor([[[[7]]]], dtype=torch.uint8), None, 3).flatten().tolist() == [7, 7, 7]
    even = torch.tensor([[[[0, 0, 100, 100], [0, 0, 100, 100]]]], dtype=torch.uint8)
    halved = fitted(even, (1, 2), None)
    assert halved.shape == (1, 1, 1, 2)
    assert int(halved[0, 0, 0, 0]) + int(halved[0, 0, 0, 1]) == 100, "antialiased: the mean stays"
