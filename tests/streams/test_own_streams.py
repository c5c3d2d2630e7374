from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hatrack.errors import DataError, HatrackError, InputError
from hatrack.streams import OwnTask, StreamOptions, Task, own_stream
from hatrack.streams.own.files import digest_of
from hatrack.streams.own.labels import order_of
from hatrack.streams.own.samples import fitted
from hatrack.streams.own.tables import Table

RANDOM = np.random.default_rng(0)


def pictures(folder: Path, sizes: dict[str, int], shape: tuple[int, ...] = (6, 5), kind: str = "png") -> Path:
    for name, count in sizes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.{kind}")
    return folder


def archive(path: Path, **changes: Any) -> Path:
    arrays = {
        "x_train": RANDOM.normal(3, 2, (30, 4)),
        "y_train": np.arange(30) % 3,
        "x_test": RANDOM.normal(3, 2, (9, 4)),
        "y_test": np.arange(9) % 3,
    }
    np.savez(path, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
    return path


def built(*sources: Path, seed: int = 0, **options: Any) -> Task:
    return own_stream(sources).build(StreamOptions(seed, **options))[0]


def from_toml(folder: Path, text: str, seed: int = 0) -> Task:
    (folder / "tasks.toml").write_text(text)
    return built(folder / "tasks.toml", seed=seed)


# --- folders of pictures


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
    with pytest.raises(DataError, match=r"a.0\.png: has transparent parts.*alpha_composite"):
        from_toml(tmp_path, PICTURES)
    for path in (tmp_path / "set").glob("*/*"):
        with Image.open(path) as picture:
            seen = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        seen.save(path)
    task = from_toml(tmp_path, PICTURES)
    assert task.input_shape == (3, 4, 4)
    assert np.array(seen)[..., :3].transpose(2, 0, 1).tolist() in every(task).tolist()


PICTURES = '[[task]]\npath = "set"\ntest_share = 0.5\nchannels = 3\n'


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


def test_a_file_of_several_pictures_is_refused(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", {"a": 3, "b": 3}, (6, 5, 3))
    pages = [Image.fromarray(RANDOM.integers(0, 256, (6, 5, 3), dtype=np.uint8)) for _ in range(3)]
    for name in ("pages.tif", "moving.gif", "moving.webp"):
        pages[0].save(folder / "b" / name, save_all=True, append_images=pages[1:])
        with pytest.raises(DataError, match=rf"{name}: holds 3 pictures; save those"):
            from_toml(tmp_path, PICTURES)
        (folder / "b" / name).unlink()


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


# --- npz files


def test_archive_of_numbers_is_standardised_feature_by_feature(tmp_path: Path) -> None:
    constant = np.concatenate([RANDOM.normal(50, 9, (30, 2)), np.full((30, 1), 0.1)], axis=1)
    y_train, y_test = np.arange(30) % 3 * 5 - 5, np.array([-5, 0, 5] * 3)
    path = archive(tmp_path / "a.npz", x_train=constant, y_train=y_train, x_test=np.ones((9, 3)), y_test=y_test)
    task = built(path)
    x, y = task.train.load()
    torch.testing.assert_close(x[:, :2].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x[:, :2].std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)
    assert x[:, 2].abs().max() < 1e-6, "what does not vary is shifted to 0, not divided by nothing"
    assert torch.allclose(task.test.load()[0][:, 2], torch.tensor(0.9))
    assert task.classes == ("-5", "0", "5"), "numbers in their order"
    assert y[:3].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("shape", "loaded"),
    [((8, 9), (1, 8, 9)), ((3, 8, 9), (3, 8, 9)), ((8, 9, 3), (3, 8, 9)), ((1, 8, 9), (1, 8, 9)), ((7,), (7,))],
)
def test_shapes_of_arrays(shape: tuple[int, ...], loaded: tuple[int, ...], tmp_path: Path) -> None:
    x = RANDOM.integers(0, 256, (39, *shape), dtype=np.uint8)
    assert built(archive(tmp_path / "a.npz", x_train=x[:30], x_test=x[30:])).input_shape == loaded


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"x_test": None}, r"holds no x_test\.npy; it must hold x_train\.npy, y_train"),
        ({"x_train": np.full((30, 4), np.nan)}, "x_train holds NaN, infinite"),
        ({"x_train": np.full((30, 4), 1e300)}, "far too large"),
        ({"x_train": np.zeros((30, 4), dtype=object)}, "is no whole array of plain values"),
        ({"x_train": np.zeros(30)}, "x_train must hold numbers"),
        ({"x_test": np.zeros((9, 5))}, r"test samples are numbers \(5,\)"),
        ({"y_train": np.arange(29) % 3}, "y_train must hold 30 whole numbers"),
        ({"y_train": np.arange(30) / 10}, "y_train must hold 30 whole numbers or texts, not float64"),
        ({"y_train": np.zeros(30, dtype=int)}, "all training samples are of class '0'"),
        ({"y_test": np.arange(9)}, "no training sample is of the test sample's class '3'"),
    ],
)
def test_unusable_archives_are_named(changes: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=fault) as caught:
        built(archive(tmp_path / "a.npz", **changes))
    assert str(tmp_path / "a.npz") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(DataError, match=r"a\.npz: the zip archive is damaged"):
        built(tmp_path / "a.npz")


def test_limit_and_validation_of_own_tasks(tmp_path: Path) -> None:
    task = built(archive(tmp_path / "a.npz"), limit=15, validation=0.2)
    assert task.train.labels.bincount().tolist() == [4, 4, 4]
    assert task.valid.labels.bincount().tolist() == [1, 1, 1]
    assert len(task.test) == 9
    again = built(tmp_path / "a.npz", limit=15, validation=0.2)
    assert torch.equal(task.train.rows, again.train.rows)
    assert not torch.equal(task.train.rows, built(tmp_path / "a.npz", seed=1, limit=15, validation=0.2).train.rows)


# --- tables

TABLE = '[[task]]\npath = "a.csv"\nlabel = "kind"\ntest_share = 0.5\n'
ROWS = ["id,kind,size,mass", *(f"{row},{'xy'[row % 2]},{row},{row * row}" for row in range(12))]


def test_table_is_standardised_on_its_training_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufeff" + "\n".join(ROWS) + "\n\n", encoding="utf-8")
    task = from_toml(tmp_path, f'{TABLE}drop = ["id"]\n')
    assert (task.classes, task.input_shape) == (("x", "y"), (2,))
    sizes = torch.arange(12.0, dtype=torch.float64)
    values = torch.stack([sizes, sizes**2], dim=1)
    # Which rows were drawn is told by undoing the standardisation for every possible choice: the sizes are distinct.
    train, test = task.train.load()[0].double(), task.test.load()[0].double()
    assert train.mean(0).abs().max() < 1e-6
    scale = None
    for rows in torch.combinations(torch.arange(12), 6):
        mean, std = values[rows].mean(0), values[rows].std(0, correction=0)
        if torch.allclose((values[rows] - mean) / std, train, atol=1e-5):
            scale = (mean, std, rows)
    assert scale is not None
    mean, std, rows = scale
    others = torch.tensor([row for row in range(12) if row not in rows.tolist()])
    torch.testing.assert_close(test, (values[others] - mean) / std, atol=1e-5, rtol=1e-5)


def test_second_table_for_testing_may_have_its_columns_in_another_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n".join(ROWS))
    (tmp_path / "b.csv").write_text("kind;mass;size;id\ny;9;3;1\nx;4;2;1\n".replace(";", ","))
    task = from_toml(tmp_path, '[[task]]\npath = "a.csv"\nlabel = "kind"\ndrop = ["id"]\ntest = "b.csv"\n')
    assert task.test.load()[1].tolist() == [1, 0]
    assert torch.equal(task.test.load()[0], task.train.load()[0][[3, 2]])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda text: text.replace("\n3,y,3,", "\n3,y,,"), "a.csv line 5, column 'size': the value is missing"),
        (lambda text: text.replace("\n3,y,3,", "\n3,y,NaN,"), "a.csv line 5, column 'size': 'NaN' is not a finite"),
        (lambda text: text.replace("\n3,y,3,", "\n3,y,big,"), "a.csv line 5, column 'size': 'big' is not a finite"),
        (lambda text: text.replace("\n3,y,3,", "\n3,y,1_000,"), "a.csv line 5, column 'size': '1_000' is not a finite"),
        (lambda text: text.replace("\n3,y,3,", "\n3,y,１２,"), "a.csv line 5, column 'size': '１２' is not a finite"),
        (lambda text: text.replace("\n3,y,3,", '\n3,y,"2,5",'), "a.csv line 5, column 'size': '2,5' is not a finite"),
        (lambda text: text.replace("\n3,y,3,", "\n3,y,1e39,"), "a.csv line 5, column 'size': '1e39' is not a finite"),
        (lambda text: text.replace("\n3,y,3,", "\n3,,3,"), "a.csv line 5, column 'kind': the label is missing"),
        (lambda text: text.replace("\n3,y,3,", "\n3,y,3,0,"), "a.csv line 5: has 5 cells instead of 4"),
        (lambda text: text.replace("mass", "size"), "line 1: two columns are named 'size'"),
        (lambda text: text.replace("kind", "sort"), "there is no column in .*a.csv 'kind'"),
        (
            lambda text: text.replace("id,kind", 'id,"kind', 1).replace("0,x,0,0", '0",x,0,1', 1),
            "there is no column in .*'kind'",
        ),
        (lambda text: "", "a.csv: is empty"),
        (lambda text: text.split("\n")[0], "no line below the column names"),
        (lambda text: text.replace("\n3,y,3,", '\n3,y,"3,'), "a.csv line 5: cannot be read as a row of a table"),
        (lambda text: text.replace("y", "x"), "all training samples are of class 'x'"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(change: Callable[[str], str], fault: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(change("\n".join(ROWS)))
    with pytest.raises(HatrackError, match=fault) as caught:
        from_toml(tmp_path, TABLE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("x,y,kind", ["1,2,a", '3,4,"a', "5,6,b", '7,8,b"', "9,1,a"]),
        ("x,y,kind", ["1,2,a", '3,"4,a', "5,6,b", '7,8",b', "9,1,a"]),
        ("x,note,kind", ["1,n,a", '3,"4,a', '5,6",b', "9,n,a"]),
        ("note,x,kind", ["n,1,a", '"m,3,a', "k,4,b", "l,5,b", '6",7,b']),
        ("kind,x,note", ["a,1,n", 'b,2,"m', "a,3,n", 'b,4,o"']),
        ('kind,x,"note', ["a,1,n", 'b,2,m"', "a,1,n", "b,4,o"]),
    ],
)
def test_rows_within_quotation_marks_are_not_swallowed(header: str, rows: list[str], tmp_path: Path) -> None:
    for end in ("\n", "\r\n"):
        (tmp_path / "a.csv").write_bytes(end.join([header, *rows * 3]).encode())
        with pytest.raises(HatrackError, match=r"a\.csv line [13]\b.*(quotation mark|not a finite)") as caught:
            from_toml(tmp_path, TABLE + ('drop = ["note"]' if "note" in header.split(",") else ""))
        assert "\n" not in str(caught.value)


def test_text_of_several_lines_is_no_matter(tmp_path: Path) -> None:
    rows = [f'{row},"a ""word"",\nand another",{"ab"[row % 2]}' for row in range(9)]
    (tmp_path / "a.csv").write_text("\n".join(["x,note,kind", *rows]))
    assert from_toml(tmp_path, TABLE + 'drop = ["note"]').input_shape == (1,)


@pytest.mark.parametrize("name", ["", " ", '""', "Unnamed: 0"])
def test_numbers_of_rows_are_no_feature(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n".join([ROWS[0].replace("id", name), *ROWS[1:]]))
    kept = name.strip('" ')
    with pytest.raises(DataError, match=rf'column 1 has no name.*leave it out by drop = \["{kept}"\]'):
        from_toml(tmp_path, TABLE)
    assert from_toml(tmp_path, f'{TABLE}drop = ["{kept}"]\n').input_shape == (2,)


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_are_named(delimiter: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n".join(ROWS).replace(",", delimiter))
    said = f"delimiter = {json.dumps(delimiter)}"
    with pytest.raises(InputError, match=re.escape(f'not by ","; say {said}')):
        from_toml(tmp_path, TABLE)
    assert from_toml(tmp_path, f"{TABLE}{said}\n").input_shape == (3,)


@pytest.mark.parametrize(
    ("encoding", "fault"),
    [
        ("latin-1", r"a\.csv line 3: is not UTF-8 \(byte 0xe9\).*save it as UTF-8"),
        ("utf-16", r"a\.csv: is UTF-16; save it as UTF-8"),
        ("utf-16-le", r"a\.csv: is UTF-16"),
        ("utf-16-be", r"a\.csv: is UTF-16"),
    ],
)
def test_other_encodings_are_named(encoding: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\n".join(ROWS).replace("y", "\u00e9").encode(encoding))
    with pytest.raises(DataError, match=fault):
        from_toml(tmp_path, TABLE)


@pytest.mark.parametrize("start", [1_700_000_000, 1_700_000_000_000, 2**53 - 60])
def test_large_numbers_that_differ_little_stay_apart(start: int, tmp_path: Path) -> None:
    moments = [start + second for second in range(50)]
    rows = [f"{moment},{'xy'[moment % 2]}" for moment in moments]
    (tmp_path / "a.csv").write_text("\n".join(["time,kind", *rows]))
    x = np.array(moments)[:, None]
    y = np.arange(50) % 2
    path = archive(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    table, whole = from_toml(tmp_path, TABLE), built(path)
    floats = built(archive(path, x_train=x * 1.0, y_train=y, x_test=x, y_test=y))
    for task in (table, whole):
        values = torch.cat([task.train.load()[0], task.test.load()[0]]).unique()
        assert len(values) == 50
        assert values.diff().min() > 0.9 * values.diff().max(), "steps of a second are equally long"
    assert torch.equal(floats.train.load()[0], whole.train.load()[0])
    assert whole.train.load()[0].std(correction=0) == pytest.approx(1, abs=1e-3)


def test_what_is_noise_of_computing_is_no_feature(tmp_path: Path) -> None:
    x = np.array([0.1 + 0.2, 0.3] * 15)[:, None] * [1.0, 1e6]
    task = built(archive(tmp_path / "a.npz", x_train=x, x_test=x[:9]))
    assert task.train.load()[0].abs().max() < 1e-6


def test_numbers_that_no_float_tells_apart_are_refused(tmp_path: Path) -> None:
    moments = [10**18 + row * 10**6 + 1 for row in range(12)]  # nanoseconds, rounded to 128 of them
    lines = [ROWS[0], *(f"{row},{'xy'[row % 2]},{moment},0" for row, moment in enumerate(moments))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert from_toml(tmp_path, TABLE).train.load()[0][:, 1].unique().numel() == 6
    (tmp_path / "a.csv").write_text("\n".join([*lines, f"12,x,{moments[3] + 1},0"]))
    with pytest.raises(DataError, match=r"line 14, column 'size': 1\d+2 and 1\d+1 above are the same"):
        from_toml(tmp_path, TABLE)
    with pytest.raises(DataError, match="x_train holds whole numbers that are the same in 64 bits"):
        built(archive(tmp_path / "a.npz", x_train=np.array([10**18 + row for row in range(30)])[:, None]))


# --- what a file may say


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "names no task"),
        ("[[task]]\n", "has no path"),
        ('[[task]]\npath = "absent"\n', "absent does not exist"),
        ('[[task]]\npath = "tasks.toml"\n', "is no folder of pictures, .npz or .csv file"),
        ('[[task]]\npath = "a.csv"\n', "needs label"),
        ('[[task]]\npath = "a.csv"\nlabel = "kind"\n', "no test samples; give test_share"),
        ('[[task]]\npath = "a.npz"\ntest_share = 0.2\n', "test samples of its own; leave out test_share"),
        ('[[task]]\npath = "a.npz"\nlabel = "kind"\n', "is no CSV file"),
        (TABLE + 'test = "a.csv"\n', "test samples of its own"),
        (TABLE + "resize = [2, 2]\n", "resize and channels are for pictures"),
        (TABLE + 'delimiter = ",,"\n', "a single character"),
        (TABLE + 'drop = ["kind"]\n', "cannot be dropped"),
        (TABLE + "drop = [1]\n", "drop must be a list of texts"),
        (TABLE + TABLE, "two tasks are named 'a'"),
        (TABLE.replace("0.5", "1.5"), "test_share must be above 0 and below 1"),
        (TABLE.replace("0.5", "true"), "test_share must be a number"),
        ('[[task]]\npath = "a.npz"\nresize = [2]\n', r"resize must be \[height, width\]"),
        ('[[task]]\npath = "a.npz"\nresize = [2.5, 2]\n', "resize must be a list of numbers"),
        ('[[task]]\npath = "a.npz"\nchannels = 2\n', "channels must be 1 or 3"),
        ('[[task]]\npath = "a.npz"\nresise = [2, 2]\n', "did you mean 'resize'"),
        ('[[task]]\npath = "a.npz"\nname = "a b"\n', "letters, digits"),
        ('name = 5\n[[task]]\npath = "a.npz"\n', "name must be a text"),
        ("[[task\n", "not a TOML file"),
    ],
)
def test_what_cannot_be_said(text: str, fault: str, tmp_path: Path) -> None:
    archive(tmp_path / "a.npz")
    (tmp_path / "a.csv").write_text("\n".join(ROWS))
    with pytest.raises(InputError, match=fault) as caught:
        from_toml(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_digest_tells_every_change(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", {"a": 3, "b": 3})
    (tmp_path / "a.csv").write_text("\n".join(ROWS))
    (tmp_path / "b.csv").write_text("\n".join(ROWS))
    tasks = [
        OwnTask("set", folder, test_share=0.5),
        OwnTask("table", tmp_path / "a.csv", Table("kind"), test=tmp_path / "b.csv"),
    ]
    before = [digest_of(task) for task in tasks]
    assert before == [digest_of(task) for task in tasks]
    (folder / "a" / "0.png").rename(folder / "b" / "9.png")
    (tmp_path / "b.csv").write_text("\n".join(ROWS[:-1]))
    assert all(left != right for left, right in zip(before, [digest_of(task) for task in tasks], strict=True))


def test_marks_and_encodings_of_a_toml_file(tmp_path: Path) -> None:
    archive(tmp_path / "a.npz")
    path = tmp_path / "tasks.toml"
    path.write_text('[[task]]\npath = "a.npz"\n', encoding="utf-8-sig")
    assert built(path).name == "a"
    for encoding in ("utf-16", "latin-1"):
        path.write_text('# \u00e9\n[[task]]\npath = "a.npz"\n', encoding=encoding)
        with pytest.raises(InputError, match=r"tasks\.toml: is not UTF-8.*save it as UTF-8"):
            built(path)


# --- labels


@pytest.mark.parametrize(
    ("as_kept", "classes"),
    [
        (lambda y: y[:, None], ("0", "1", "2")),
        (lambda y: y.astype(float), ("0", "1", "2")),
        (lambda y: y.astype(np.float16)[:, None], ("0", "1", "2")),
        (lambda y: y.astype(np.uint8), ("0", "1", "2")),
        (lambda y: y > 1, ("False", "True")),
        (lambda y: np.array([b"c", "\u00e9".encode(), b"a"])[y], ("a", "c", "\u00e9")),
        (lambda y: np.array(["c", "b", "a"])[y][:, None], ("a", "b", "c")),
    ],
)
def test_labels_are_taken_in_whatever_says_them_exactly(
    as_kept: Callable[[np.ndarray], np.ndarray], classes: tuple[str, ...], tmp_path: Path
) -> None:
    y = np.arange(30) % 3
    task = built(archive(tmp_path / "a.npz", y_train=as_kept(y), y_test=as_kept(y[:9])))
    assert task.classes == classes
    numbers = task.train.load()[1].tolist()
    assert len(set(zip(numbers, as_kept(y).flatten().tolist(), strict=True))) == len(classes), "one number for each"


@pytest.mark.parametrize(
    ("as_kept", "fault"),
    [
        (lambda y: np.eye(3)[y], r"y_train must hold 30 .*\(30, 3\); if the largest.*argmax\(axis=1\)"),
        (lambda y: y + 0.5, r"y_train must hold 30 .*; 0\.5 is no class.*astype\(str\)"),
        (lambda y: np.where(y > 1, np.nan, y), r"y_train\[2\]: the label is missing"),
        (lambda y: np.where(y > 1, np.inf, y), r"y_train must hold .*; inf is no class"),
        (lambda y: np.array(["a", "b", "c"], dtype=object)[y], r"y_train.npy is .*of Python objects.*y\.astype\(str\)"),
        (lambda y: np.array([b"\xff", b"b", b"c"])[y], "y_train must hold .*no UTF-8, so save them decoded"),
        (lambda y: y.astype("datetime64[s]"), "y_train must hold 30 whole numbers or texts, not datetime64"),
    ],
)
def test_labels_that_say_no_class_are_refused(
    as_kept: Callable[[np.ndarray], np.ndarray], fault: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=fault) as caught:
        built(archive(tmp_path / "a.npz", y_train=as_kept(np.arange(30) % 3)))
    assert "\n" not in str(caught.value)


MISSING = ["", " ", "nan", "NaN", "-nan", "NA", "N/A", "n/a", "null", "NULL", "None", "<NA>", "?", "#N/A"]


@pytest.mark.parametrize("word", MISSING)
def test_missing_labels_are_no_class(word: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n".join(ROWS).replace("\n3,y,3,", f"\n3,{word},3,"))
    with pytest.raises(DataError, match=r"a\.csv line 5, column 'kind': the label is missing.*; fill it in"):
        from_toml(tmp_path, TABLE)
    y = np.array(["x", "y", word] * 10)
    with pytest.raises(DataError, match=r"a\.npz: y_train\[2\]: the label is missing"):
        built(archive(tmp_path / "a.npz", y_train=y, y_test=y[:9]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "1.0"),
        ("0", "00"),
        ("1000", "1e3"),
        ("\u00e9", "e\u0301"),
        ("a b", "a\u00a0b"),
        ("ab", "a\u200bb"),
        ("a b", "a  b"),
    ],
)
def test_one_class_in_two_spellings_is_refused(one: str, other: str, tmp_path: Path) -> None:
    fault = rf"writes a class as .*{re.escape(ascii(other))}.* that is .*{re.escape(ascii(one))}.* elsewhere"
    rows = "\n".join(ROWS).replace(",x,", f",{one},")
    (tmp_path / "a.csv").write_text(rows.replace(f"\n4,{one},", f"\n4,{other},"), encoding="utf-8")
    with pytest.raises(DataError, match=rf"a\.csv line 6, column 'kind': {fault}"):
        from_toml(tmp_path, TABLE)
    (tmp_path / "a.csv").write_text(rows, encoding="utf-8")
    (tmp_path / "b.csv").write_text(rows.replace(f",{one},", f",{other},"), encoding="utf-8")
    with pytest.raises(DataError, match=rf"b\.csv: {fault}"):
        from_toml(tmp_path, TABLE.replace("test_share = 0.5", 'test = "b.csv"'))
    y = np.array([one, "w", other] * 10)
    with pytest.raises(DataError, match=rf"a\.npz: y_train\[2\]: {fault}"):
        built(archive(tmp_path / "a.npz", y_train=y, y_test=y[:9]))
    pictures(tmp_path / "set", {one: 3, other: 3})
    with pytest.raises(DataError, match=r"writes a class as "):
        from_toml(tmp_path, PICTURES)


def test_labels_have_one_order_however_they_come() -> None:
    labels = [
        "nan",
        "NaN",
        "-nan",
        "10",
        "9",
        "2.50",
        "2.5",
        "9007199254740993",
        "9007199254740992",
        "b",
        "a",
        "inf",
        "-1",
    ]
    ordered = sorted(labels, key=order_of)
    assert ordered[:8] == ["-1", "2.5", "2.50", "9", "10", "9007199254740992", "9007199254740993", "inf"]
    assert ordered[8:] == ["-nan", "NaN", "a", "b", "nan"], "what is no number is a word"
    assert all(sorted(RANDOM.permutation(labels).tolist(), key=order_of) == ordered for _ in range(50))
