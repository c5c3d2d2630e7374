"""Trees without a test part: the layout, and NotMNIST and FaceScrub, which have it."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest
import torch

from hatrack.data import DATASETS, ImageDataset, load_dataset
from hatrack.data.arrays import every_nth_of_each_class
from hatrack.data.dataset import FileVariant
from hatrack.data.files import DataFile
from hatrack.data.mnist import encode_idx
from hatrack.data.pictures import ClassFolders, PictureForm
from hatrack.data.registry import NOTMNIST_SMALL, decode_notmnist_sample
from hatrack.data.sources import NotFoundError, PublishedFiles
from hatrack.data.trees import PictureTree, unpack_tree
from hatrack.errors import DataError
from support.miniatures import picture, put, tar_gz, zipped

GENERATOR = torch.Generator().manual_seed(0)
LAYOUT = ClassFolders(
    ("b", "a"), PictureForm((5, 4), channels=1), test_every=2, total=8, counts=(3, 2), empty=("a/x.png",)
)
IMAGES = torch.randint(0, 256, (5, 1, 4, 5), dtype=torch.uint8, generator=GENERATOR)
PATHS = ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png"]
FILES = {path: picture(image) for path, image in zip(PATHS, IMAGES, strict=True)} | {"a/x.png": b""}
TREE = PictureTree("pictures", ("tiny.zip", "tiny.tar.gz"), ("tiny",), LAYOUT, top="tiny")


def top(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"tiny/{name}": content for name, content in files.items()}


# --- dividing


def test_every_nth_of_each_class_is_for_testing() -> None:
    labels = torch.tensor([0, 1, 0, 0, 1, 0, 1, 0])
    images = torch.arange(8, dtype=torch.uint8).reshape(8, 1, 1, 1)
    arrays = every_nth_of_each_class(images, labels, 2)
    assert arrays.x_test.flatten().tolist() == [2, 4, 5]
    assert arrays.y_test.tolist() == [0, 1, 0]
    assert arrays.x_train.flatten().tolist() == [0, 1, 3, 6, 7]
    assert arrays.y_train.tolist() == [0, 1, 0, 1, 0]


# --- the layout


@pytest.mark.parametrize(
    "form",
    [
        {"tiny.zip": zipped(FILES)},
        {"tiny.zip": zipped(top(FILES))},
        {"tiny.tar.gz": tar_gz(FILES, "tiny")},
        {"tiny/tiny.tar.gz": tar_gz(FILES, ".")},
        top(FILES),
        FILES,
    ],
    ids=["zip", "zip with a folder", "tar", "tar with dots", "folder", "bare"],
)
def test_every_form_gives_the_same_arrays(form: dict[str, bytes], tmp_path: Path) -> None:
    arrays, origin = TREE.load("tiny", put(tmp_path / "data", form))
    assert torch.equal(arrays.x_train, IMAGES[[0, 2, 4]])
    assert arrays.y_train.tolist() == [1, 0, 0]
    assert torch.equal(arrays.x_test, IMAGES[[1, 3]])
    assert arrays.y_test.tolist() == [1, 0]
    assert origin.startswith("pictures, not a published set: SHA-256 ")


def tar_of(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, "/etc/passwd" if kind != tarfile.REGTYPE else "", len(content)
        archive.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue())


SMALLER = dataclasses.replace(LAYOUT, total=6, file_bytes=100, total_bytes=20_000)


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        pytest.param(tar_of("../a/1.png"), "points out of the archive", id="tar slip"),
        pytest.param(tar_of("/a/1.png"), "points out of the archive", id="absolute"),
        pytest.param(zipped({"../a/1.png": b""}), "points out of the archive", id="zip slip"),
        pytest.param(tar_of("a/1.png", tarfile.SYMTYPE), "is no plain file", id="a link"),
        pytest.param(tar_of("a/1.png", tarfile.LNKTYPE), "is no plain file", id="a hard link"),
        pytest.param(tar_of("a/1.png", content=bytes(101)), "unpacks to 101 bytes", id="a large file"),
        pytest.param(gzip.compress(bytes(1 << 20)), "unpacks to more than 20,000 bytes", id="a bomb"),
        pytest.param(tar_gz(FILES, "tiny")[:-5], "the gzip data is cut short", id="cut short"),
        pytest.param(gzip.compress(b"no tar" * 200), "the tar archive is damaged", id="no tar"),
        pytest.param(
            gzip.compress(gzip.decompress(tar_of("a/1.png", content=bytes(99)))[:550]),
            "the tar archive is damaged",
            id="tar cut short",
        ),
        pytest.param(tar_gz({f"a/{n}.png": b"1" for n in range(7)}, "."), "holds more than 6 images", id="too many"),
        pytest.param(zipped(FILES)[:-5], "the zip archive is damaged", id="a zip cut short"),
        pytest.param(b"<html>", "the zip archive is damaged", id="another format"),
    ],
)
def test_faulty_archives_are_refused(payload: bytes, fault: str) -> None:
    with pytest.raises(DataError) as caught:
        unpack_tree(payload, SMALLER, origin="here")
    assert str(caught.value).startswith("here: ")
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"a/3.png": FILES["a/1.png"]}, "a holds 3 pictures instead of 2"),
        ({"a/1.png": b""}, "a/1.png: not a whole JPEG or PNG picture"),
        ({"a/1.png": FILES["a/1.png"][:40]}, "a/1.png: not a whole JPEG or PNG picture"),
        ({"a/1.png": picture(IMAGES[0].mT)}, "a/1.png: is 4 x 5 pixels, not 5 x 4"),
    ],
)
def test_faulty_pictures_are_named_and_nothing_is_kept(change: dict[str, bytes], fault: str, tmp_path: Path) -> None:
    data = put(tmp_path / "data", {"tiny.zip": zipped({**FILES, **change})})
    with pytest.raises(NotFoundError) as caught:
        TREE.load("tiny", data)
    assert fault in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_missing_class_is_named() -> None:
    with pytest.raises(DataError, match="here: a holds 0 pictures instead of 2"):
        LAYOUT.decode({name: content for name, content in FILES.items() if name.startswith("b/")}, "here")


# --- NotMNIST


def letters(per_class: int) -> dict[str, bytes]:
    images = torch.randint(0, 256, (10 * per_class, 1, 28, 28), dtype=torch.uint8, generator=GENERATOR)
    names = [f"{letter}/{number:03}.png" for letter in "ABCDEFGHIJ" for number in range(per_class)]
    return {name: picture(image) for name, image in zip(names, images, strict=True)}


def test_notmnist_small_from_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = letters(10) | dict.fromkeys(NOTMNIST_SMALL.empty, b"")
    layout = dataclasses.replace(NOTMNIST_SMALL, counts=(10,) * 10)
    monkeypatch.setattr("hatrack.data.registry.NOTMNIST_SMALL", layout)
    payload = tar_gz(files, "notMNIST_small")
    archive, folder, _ = DATASETS["notmnist"].variants
    assert isinstance(archive, FileVariant)
    assert isinstance(archive.source, PublishedFiles)
    assert isinstance(folder, PictureTree)
    file = DataFile("notMNIST_small.tar.gz", md5=hashlib.md5(payload).hexdigest(), archive=True)
    source = dataclasses.replace(archive.source, files=(file,), mirrors=())
    data = put(tmp_path / "data", {"notMNIST_small.tar.gz": payload})
    packed = dataclasses.replace(archive, source=source).load("notmnist", data)
    assert packed.arrays.x_train.shape == (90, 1, 28, 28)
    assert packed.arrays.y_test.tolist() == list(range(10))
    unpacked = dataclasses.replace(folder, layout=layout).load(
        "notmnist", put(tmp_path / "b/notMNIST_small", files).parent
    )
    for ours, theirs in zip(packed.arrays, unpacked.arrays, strict=True):
        assert torch.equal(ours, theirs)


def test_notmnist_as_published() -> None:
    assert sum(NOTMNIST_SMALL.counts) == 18_724
    assert NOTMNIST_SMALL.limits.files == 18_726
    assert DATASETS["notmnist"].mean + DATASETS["notmnist"].std == (0.4254, 0.4501)


@pytest.mark.parametrize(
    ("images", "labels", "fault"),
    [
        (torch.zeros(3, 2, 2), torch.tensor([0, 1, 10]), "a label is outside of 0..9"),
        (torch.zeros(3, 2, 2), torch.tensor([0, 1]), "do not fit"),
        (torch.zeros(3, 4), torch.tensor([0, 1, 2]), "do not fit"),
        (torch.zeros(0, 2, 2), torch.zeros(0), "a label is outside"),
    ],
)
def test_faulty_sample_is_named(images: torch.Tensor, labels: torch.Tensor, fault: str) -> None:
    contents = {
        "t10k-images-idx3-ubyte": encode_idx(images.byte()),
        "t10k-labels-idx1-ubyte": encode_idx(labels.byte()),
    }
    with pytest.raises(DataError) as caught:
        decode_notmnist_sample(contents)
    assert fault in str(caught.value)


@pytest.mark.data
def test_real_sample(notmnist: ImageDataset) -> None:
    assert notmnist.x_train.shape == (8000, 1, 28, 28)
    assert notmnist.x_test.shape == (2000, 1, 28, 28)
    assert notmnist.y_train.bincount().tolist() == [800] * 10
    assert notmnist.y_test.bincount().tolist() == [200] * 10
    assert notmnist.origin == "a sample of 10,000, divided 80/20"


def test_mnist_files_in_its_place_are_refused(tmp_path: Path) -> None:
    contents = {"t10k-images-idx3-ubyte": encode_idx(torch.zeros(1, 2, 2).byte())}
    put(tmp_path / "notmnist-10k", contents | {"t10k-labels-idx1-ubyte": encode_idx(torch.zeros(1).byte())})
    with pytest.raises(DataError, match="its content is not that of notmnist's t10k-images-idx3-ubyte"):
        load_dataset("notmnist", tmp_path, download=False)


# --- FaceScrub


def faces(people: int, above: str = "") -> dict[str, bytes]:
    """Of the first person 10 faces, of the second 11, and so on, in different sizes."""
    flat = torch.zeros(3, 40, 50, dtype=torch.uint8)
    files = {}
    for person in range(people):
        for number in range(10 + person):
            files[f"{above}person-{person:03}/{number:03}.jpg"] = picture(flat[:, : 20 + number] + person, "JPEG")
    return files


@pytest.mark.parametrize("above", ["", "facescrub/", "facescrub/actors/", "FaceScrub/actresses/faces/"])
def test_the_people_of_most_pictures_are_taken(above: str, tmp_path: Path) -> None:
    (tree,) = DATASETS["facescrub"].variants
    assert isinstance(tree, PictureTree)
    assert isinstance(tree.layout, ClassFolders)
    three = dataclasses.replace(tree, layout=dataclasses.replace(tree.layout, classes=3))
    files = faces(5, above)
    data = put(tmp_path / "data", files if above else {"facescrub.zip": zipped(files)})
    arrays, _ = three.load("facescrub", data)
    assert arrays.x_train.shape[1:] == (3, 32, 32)
    assert torch.cat([arrays.y_train, arrays.y_test]).bincount().tolist() == [12, 13, 14]
    assert arrays.y_test.tolist() == [0, 1, 2]
    assert arrays.x_test.flatten(1).float().mean(1).round().tolist() == [2, 3, 4], "the first two people are left out"


def test_too_few_people_are_an_error(tmp_path: Path) -> None:
    data = put(tmp_path / "data", {"facescrub.zip": zipped(faces(3))})
    with pytest.raises(DataError, match="holds pictures of 3 classes instead of 100"):
        load_dataset("facescrub", data, download=False)


def test_too_few_pictures_of_a_person_are_an_error(tmp_path: Path) -> None:
    files = {f"{person}/{number}.png": b"1" for person in range(100) for number in range(9)}
    data = put(tmp_path / "data", {"facescrub.zip": zipped(files)})
    with pytest.raises(DataError, match="0 holds 9 pictures instead of at least 10"):
        load_dataset("facescrub", data, download=False)


def test_facescrub_is_not_looked_for_in_any_folder(tmp_path: Path) -> None:
    put(tmp_path / "data", {f"{n}/{m}.png": b"" for n in range(3) for m in range(3)})
    with pytest.raises(NotFoundError) as caught:
        load_dataset("facescrub", tmp_path / "data", download=False)
    assert caught.value.absence.faults == ()
    assert len(DATASETS["facescrub"].class_names) == 100
