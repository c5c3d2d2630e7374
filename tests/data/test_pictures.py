from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from hatrack.data import pictures
from hatrack.data.pictures import PictureLayout, decode_pictures
from hatrack.data.sources import NotFoundError
from hatrack.data.trees import PictureTree, tree_digest
from hatrack.errors import DataError
from support.miniatures import picture, put, zipped

CLASSES = ("zebra", "ant")  # not in alphabetical order: labels follow this one
LAYOUT = PictureLayout(CLASSES, train=3, test=1, size=(5, 4))
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (8, 3, 4, 5), dtype=torch.uint8, generator=GENERATOR)
PATHS = [
    f"{part}/{name}/{n}.png" for part, count in (("test", 1), ("train", 3)) for name in CLASSES for n in range(count)
]
FILES = {path: picture(image) for path, image in zip(PATHS, IMAGES, strict=True)}
IMAGE_OF = dict(zip(PATHS, IMAGES, strict=True))
PUBLISHED = PictureTree("pictures", ("tiny.zip",), ("tiny",), LAYOUT, {tree_digest(FILES): "a published set"})
OTHER_IMAGE = picture(IMAGES[0].flip(0))


def load(data_dir: Path, tree: PictureTree = PUBLISHED) -> object:
    return tree.load("tiny", data_dir)


def kept(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "hatrack" / "tiny" / "pictures.safetensors"


@pytest.fixture(params=["zip", "folder"])
def data_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A data directory with the tree in one of its forms."""
    if request.param == "zip":
        return put(tmp_path / "data", {"tiny.zip": zipped(FILES)})
    return put(tmp_path / "data" / "tiny", FILES).parent


def replace_file(data_dir: Path, name: str, content: bytes) -> None:
    """Change one file of the tree."""
    if (data_dir / "tiny.zip").exists():
        put(data_dir, {"tiny.zip": zipped({**FILES, name: content})})
    else:
        put(data_dir / "tiny", {name: content})


# --- decoding


def test_images_are_in_the_order_of_their_paths_and_labels_in_that_of_the_classes() -> None:
    arrays = decode_pictures(dict(reversed(FILES.items())), LAYOUT, "here")
    train = ["train/ant/0.png", "train/ant/1.png", "train/ant/2.png"]
    train += ["train/zebra/0.png", "train/zebra/1.png", "train/zebra/2.png"]
    assert torch.equal(arrays.x_train, torch.stack([IMAGE_OF[path] for path in train]))
    assert arrays.y_train.tolist() == [1, 1, 1, 0, 0, 0]
    assert torch.equal(arrays.x_test, torch.stack([IMAGE_OF["test/ant/0.png"], IMAGE_OF["test/zebra/0.png"]]))
    assert arrays.y_test.tolist() == [1, 0]
    assert arrays.x_train.dtype == torch.uint8
    assert arrays.y_train.dtype == torch.int64


def test_jpeg_and_grey_pictures() -> None:
    flat = torch.full((3, 4, 5), 200, dtype=torch.uint8)
    files = {**FILES, "train/ant/0.png": picture(flat, "JPEG"), "train/ant/1.png": picture(flat[:1] - 90)}
    arrays = decode_pictures(files, LAYOUT, "here")
    assert torch.equal(arrays.x_train[0], flat)
    assert torch.equal(arrays.x_train[1], flat - 90)


def without(*names: str) -> dict[str, bytes]:
    return {name: content for name, content in FILES.items() if name not in names}


def transparent() -> bytes:
    return picture(torch.zeros(4, 4, 5, dtype=torch.uint8))


NAME = "train/ant/1.png"


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        pytest.param(without(NAME), "train/ant holds 2 pictures instead of 3", id="one too few"),
        pytest.param(without("test/ant/0.png"), "test/ant holds 0 pictures instead of 1", id="none"),
        pytest.param({**FILES, "train/ant/9.png": b""}, "train/ant holds 4 pictures instead of 3", id="one too many"),
        pytest.param({}, "train/zebra holds 0 pictures", id="nothing"),
        pytest.param({**FILES, "train/bee/0.png": b""}, "is of class 'bee'; known are zebra, ant", id="another class"),
        pytest.param({**FILES, NAME: b"no picture"}, f"{NAME}: not a whole JPEG or PNG picture", id="no picture"),
        pytest.param({**FILES, NAME: b""}, f"{NAME}: not a whole JPEG or PNG picture", id="an empty picture"),
        pytest.param({**FILES, NAME: FILES[NAME][:60]}, f"{NAME}: not a whole", id="a picture cut short"),
        pytest.param({**FILES, NAME: b"GIF89a" + bytes(99)}, f"{NAME}: not a whole", id="another kind of picture"),
        pytest.param({**FILES, NAME: picture(IMAGES[0].mT)}, f"{NAME}: is 4 x 5 pixels, not 5 x 4", id="another size"),
        pytest.param({**FILES, NAME: transparent()}, f"{NAME}: is a picture of kind RGBA", id="transparency"),
    ],
)
def test_what_is_wrong_with_a_tree_is_named(files: dict[str, bytes], fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        decode_pictures(files, LAYOUT, "here")
    assert str(caught.value).startswith("here: ")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_picture_that_claims_to_be_huge_is_not_decoded() -> None:
    huge = bytearray(FILES[NAME])
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(DataError, match=r"not a whole|is 60000 x 60000 pixels"):
        decode_pictures({**FILES, NAME: bytes(huge)}, LAYOUT, "here")


# --- finding


def test_archive_and_folder_are_the_same_tree(data_dir: Path) -> None:
    arrays, origin = load(data_dir)  # type: ignore[misc]
    assert origin == "a published set"
    for left, right in zip(arrays, decode_pictures(FILES, LAYOUT, "here"), strict=True):
        assert torch.equal(left, right)


def test_tree_in_the_given_folder_itself(tmp_path: Path) -> None:
    assert load(put(tmp_path / "data", FILES)).origin == "a published set"  # type: ignore[attr-defined]


def test_other_files_beside_the_pictures_do_not_matter(tmp_path: Path) -> None:
    extra = {"README.txt": b"about", "train/ant/.DS_Store": b"", "train/notes.txt": b"", "valid/ant/0.png": b""}
    put(tmp_path / "data", {"tiny.zip": zipped({**FILES, **extra})})
    assert load(tmp_path / "data").origin == "a published set"  # type: ignore[attr-defined]


def test_an_unknown_tree_is_read_and_recorded_as_such(data_dir: Path) -> None:
    replace_file(data_dir, NAME, OTHER_IMAGE)
    digest = tree_digest({**FILES, NAME: OTHER_IMAGE})
    assert load(data_dir).origin == f"pictures, not a published set: SHA-256 {digest}"  # type: ignore[attr-defined]


def test_a_faulty_tree_does_not_hide_a_sound_one(tmp_path: Path) -> None:
    put(tmp_path / "data", {"tiny.zip": zipped(FILES)[:-9]})
    put(tmp_path / "data" / "tiny", without(NAME))
    with pytest.raises(NotFoundError) as caught:
        load(tmp_path / "data")
    message = str(caught.value)
    assert "tiny.zip: the zip archive is damaged" in message
    assert "train/ant holds 2 pictures instead of 3" in message
    assert "put tiny.zip (or pictures as train/CLASS/*.png and test/CLASS/*.png) into a folder DIR" in message
    assert "\n" not in message
    assert not kept(tmp_path).exists()
    put(tmp_path / "data" / "tiny", FILES)
    assert load(tmp_path / "data").origin == "a published set"  # type: ignore[attr-defined]


def test_too_many_and_too_large_files_of_a_folder_are_not_read(tmp_path: Path) -> None:
    put(tmp_path / "data", {**FILES, "train/ant/9.png": b""})
    with pytest.raises(DataError, match="holds 9 pictures instead of 8"):
        load(tmp_path / "data")
    (tmp_path / "data" / "train/ant/9.png").unlink()
    put(tmp_path / "data", {NAME: bytes(pictures.PICTURE_BYTES + 1)})
    with pytest.raises(DataError, match=f"{NAME} has more than the 1048576 bytes"):
        load(tmp_path / "data")


def test_too_much_in_all_is_not_read(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "TREE_BYTES", sum(map(len, FILES.values())) - 1)
    with pytest.raises(DataError, match=r"more than (the )?\d+ bytes"):
        load(data_dir)


def test_folder_of_something_else_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "data", {"train/cat/0.png": b"", "test/cat/0.png": b""})
    with pytest.raises(NotFoundError, match=r"tiny: pictures not found in \S+; put"):
        load(tmp_path / "data")


def test_pictures_behind_links_are_part_of_the_tree(tmp_path: Path) -> None:
    ants = {name: content for name, content in FILES.items() if name.startswith("train/ant/")}
    put(tmp_path / "else", {name.removeprefix("train/"): content for name, content in ants.items()})
    put(tmp_path / "data" / "tiny", without(*ants))
    (tmp_path / "data" / "tiny" / "train" / "ant").symlink_to(tmp_path / "else" / "ant", target_is_directory=True)
    first = load(tmp_path / "data")
    assert first.origin == "a published set"  # type: ignore[attr-defined]
    put(tmp_path / "else", {"ant/1.png": OTHER_IMAGE})
    changed = load(tmp_path / "data")
    assert "not a published set" in changed.origin  # type: ignore[attr-defined]
    assert not torch.equal(first.arrays.x_train, changed.arrays.x_train)  # type: ignore[attr-defined]


def test_names_of_pictures_need_not_be_utf_8(tmp_path: Path) -> None:
    folder = put(tmp_path / "data" / "tiny", FILES)
    try:
        (folder / NAME).rename(os.fsdecode(os.fsencode(folder / "train" / "ant") + b"/1\xe4.png"))
    except OSError:
        pytest.skip("the disk has no such names")
    arrays, origin = load(tmp_path / "data")  # type: ignore[misc]
    assert torch.equal(arrays.x_train, decode_pictures(FILES, LAYOUT, "here").x_train)
    assert "not a published set" in origin


def test_hidden_pictures_are_none(data_dir: Path) -> None:
    replace_file(data_dir, "train/ant/._1.png", b"what macOS leaves")
    assert load(data_dir).origin == "a published set"  # type: ignore[attr-defined]


def turned(image: torch.Tensor, orientation: int) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def test_pictures_are_turned_as_their_exif_data_say() -> None:
    files = {**FILES, NAME: turned(IMAGE_OF[NAME], 3)}
    found = decode_pictures(files, LAYOUT, "here").x_train[1]
    assert torch.equal(found, IMAGE_OF[NAME].flip(1, 2))
    files[NAME] = turned(IMAGE_OF[NAME], 6)
    with pytest.raises(DataError, match="is 4 x 5 pixels once it is turned as its EXIF data say"):
        decode_pictures(files, LAYOUT, "here")


# --- keeping


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every decoding of a whole tree."""
    made: list[str] = []

    def counted(*arguments: object) -> object:
        made.append("decoded")
        return decode_pictures(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pictures, "decode_pictures", counted)
    return made


def same(left: object, right: object) -> bool:
    return left.origin == right.origin and all(  # type: ignore[attr-defined]
        torch.equal(one, other)
        for one, other in zip(left.arrays, right.arrays, strict=True)  # type: ignore[attr-defined]
    )


def test_decoded_once(data_dir: Path, decodings: list[str]) -> None:
    first, again = load(data_dir), load(data_dir)
    assert len(decodings) == 1
    assert same(first, again)


def test_changed_source_is_noticed(data_dir: Path, decodings: list[str]) -> None:
    first = load(data_dir)
    replace_file(data_dir, NAME, OTHER_IMAGE)
    changed = load(data_dir)
    assert len(decodings) == 2
    assert not same(first, changed)
    assert same(changed, load(data_dir))


def test_changed_archive_of_the_same_size_and_time_is_noticed(tmp_path: Path, decodings: list[str]) -> None:
    path = put(tmp_path / "data", {"tiny.zip": zipped(FILES)}) / "tiny.zip"
    first, about = load(path.parent), path.stat()
    swapped = {**FILES, NAME: FILES["train/ant/2.png"], "train/ant/2.png": FILES[NAME]}
    path.write_bytes(zipped(swapped))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert not same(first, load(path.parent))
    assert len(decodings) == 2


def test_picture_that_was_removed_or_spoilt_is_noticed(data_dir: Path) -> None:
    load(data_dir)
    replace_file(data_dir, NAME, b"no picture")
    with pytest.raises(DataError, match="not a whole JPEG or PNG"):
        load(data_dir)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-7],
        lambda content: content[:-7] + bytes([content[-7] ^ 1]) + content[-6:],
        lambda content: b"\0" * len(content),
        lambda content: content + b"more",
        lambda content: content.replace(b"x_test", b"x_tesT"),
    ],
    ids=["empty", "cut", "a bit", "zeros", "longer", "a name"],
)
def test_damaged_file_is_made_again(tmp_path: Path, data_dir: Path, damage: object, decodings: list[str]) -> None:
    first = load(data_dir)
    whole = kept(tmp_path).read_bytes()
    kept(tmp_path).write_bytes(damage(whole))  # type: ignore[operator]
    assert same(first, load(data_dir))
    assert len(decodings) == 2
    assert kept(tmp_path).read_bytes() == whole


def test_another_decoder_decodes_again(data_dir: Path, decodings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    load(data_dir)
    monkeypatch.setattr("PIL.__version__", "0.0")
    load(data_dir)
    assert len(decodings) == 2


def test_another_layout_decodes_again(data_dir: Path, decodings: list[str]) -> None:
    load(data_dir)
    renamed = PictureTree("pictures", ("tiny.zip",), ("tiny",), PictureLayout(CLASSES[::-1], 3, 1, (5, 4)))
    assert load(data_dir, renamed).arrays.y_test.tolist() == [0, 1]  # type: ignore[attr-defined]
    assert len(decodings) == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, data_dir: Path, decodings: list[str]) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert same(load(data_dir), load(data_dir))
    assert len(decodings) == 2


def test_a_folder_in_place_of_the_kept_file_is_no_error(tmp_path: Path, data_dir: Path) -> None:
    kept(tmp_path).mkdir(parents=True)
    assert load(data_dir).origin == "a published set"  # type: ignore[attr-defined]
