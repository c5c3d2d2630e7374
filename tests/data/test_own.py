from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from hatrack.data import (
    CommonForm,
    Fitting,
    ImageDataset,
    as_rgb32,
    channel_statistics,
    from_dataset,
    from_huggingface,
    from_npz,
    from_pictures,
)
from hatrack.data.npz import decode_npz
from hatrack.errors import DataError, InputError
from support.formats import npz, resized
from support.miniatures import picture, put, zipped
from support.picture_kinds import png

GENERATOR = torch.Generator().manual_seed(0)
GREY = torch.randint(0, 256, (6, 1, 4, 5), dtype=torch.uint8, generator=GENERATOR)
COLOUR = torch.randint(0, 256, (6, 3, 4, 5), dtype=torch.uint8, generator=GENERATOR)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


class Items:
    """A map-style data set like torchvision's."""

    def __init__(self, pictures: object, labels: object, classes: list[str] | None = None) -> None:
        self.items = list(zip(pictures, labels, strict=True))  # type: ignore[call-overload]
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


def pil(images: torch.Tensor) -> list[Image.Image]:
    return [Image.open(io.BytesIO(picture(image))) for image in images]


# --- statistics


def test_statistics_are_those_of_the_definition() -> None:
    mean, std = channel_statistics(COLOUR)
    scaled = COLOUR.double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


# --- torch


@pytest.mark.parametrize(
    ("part", "images"),
    [
        ((GREY, Y), GREY),
        ((GREY.squeeze(1), Y), GREY),
        ((COLOUR, Y), COLOUR),
        ((COLOUR.double() / 255, Y), COLOUR),
        ((COLOUR.permute(0, 2, 3, 1).numpy(), Y.numpy()), COLOUR),
        ((GREY.squeeze(1).numpy(), Y.tolist()), GREY),
        (TensorDataset(COLOUR, Y), COLOUR),
        (TensorDataset(GREY.float() / 255, Y), GREY),
        (Items(pil(COLOUR), Y.tolist()), COLOUR),
        (Items(pil(GREY), Y.numpy()), GREY),
        (Items([image.permute(1, 2, 0).numpy() for image in COLOUR], Y), COLOUR),
    ],
    ids=[
        "grey",
        "flat",
        "colour",
        "floats",
        "arrays",
        "flat arrays",
        "TensorDataset",
        "floats in one",
        "PIL",
        "grey PIL",
        "items",
    ],
)
def test_whatever_they_come_in_the_bytes_are_the_same(part: object, images: torch.Tensor) -> None:
    dataset = from_dataset("mine", part, part)
    for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)):
        assert torch.equal(x, images)
        assert x.dtype == torch.uint8
        assert torch.equal(y, Y)
    assert dataset.class_names == ("0", "1", "2")
    assert (dataset.mean, dataset.std) == channel_statistics(images)


def test_names_and_constants() -> None:
    named = from_dataset("mine", Items(GREY, Y, ["a", "b", "c"]), (GREY[:2], Y[:2]))
    assert named.class_names == ("a", "b", "c")
    padded = CommonForm(Fitting.PAD)
    given = from_dataset("mine", (GREY, Y), (GREY, Y), class_names="xyz", mean=(0.5,), std=(0.2,), common_form=padded)
    assert (given.class_names, given.mean, given.std) == (("x", "y", "z"), (0.5,), (0.2,))
    assert as_rgb32(given).x_train[0, 0, :14].sum() == 0


def test_pil_pictures_are_turned_as_their_exif_data_say() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    buffer = io.BytesIO()
    pil(COLOUR[:1])[0].save(buffer, "PNG", exif=exif)
    dataset = from_dataset("mine", Items([Image.open(buffer)], [0]), (COLOUR[:1], Y[:1]))
    assert torch.equal(dataset.x_train[0], COLOUR[0].flip(1, 2))


class Endless(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> object:
        raise AssertionError("must not be gone through")


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        (Endless(), "training part has no length"),
        ((GREY, Y[:3]), "6 pictures and 3 labels"),
        ((GREY[:0], Y[:0]), "0 pictures"),
        (Items(GREY - 0, [0.5] * 6), "label 0 must be a whole number from 0, not 0.5"),
        ((GREY, -Y), "label 1 must be a whole number from 0"),
        ((COLOUR.double() / 255 - 0.5, Y), "leave out transforms that normalise"),
        ((COLOUR.double() * float("nan"), Y), r"floats in \[0, 1\]"),
        ((COLOUR.int(), Y), "must hold bytes"),
        ((COLOUR[:, :2], Y), r"picture 0 has the shape \(2, 4, 5\)"),
        (Items([GREY[0], GREY[1].mT], [0, 1]), r"picture 1 has the shape \(1, 5, 4\), the first \(1, 4, 5\)"),
        (Items(["a.png"], [0]), "must be a tensor, an array or a PIL picture, not str"),
        (Items([Image.new("RGBA", (4, 4))], [0]), "is of kind RGBA"),
        (Items([Image.open(io.BytesIO(png([[7, 9]], 8, 0, key=[9])))], [0]), "of kind L with a transparent colour"),
        ([GREY[0]], "item 0 must be a pair of a picture and a label, not Tensor"),
    ],
)
def test_what_does_not_fit_is_named(part: object, fault: str) -> None:
    with pytest.raises(InputError, match=fault) as caught:
        from_dataset("mine", part, (GREY, Y))
    assert str(caught.value).startswith("mine: ")
    assert "\n" not in str(caught.value)


def test_too_few_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"labels must lie in 0\.\.1"):
        from_dataset("mine", (GREY, Y), (GREY, Y), class_names=("a", "b"))


# --- Hugging Face


class Feature:
    names = ("a", "b", "c")


class Table:
    """Behaves like a data set of the library as far as it is used here."""

    column_names = ("img", "label")
    features: Mapping[str, object] = {"label": Feature()}

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"img": pil(COLOUR[index : index + 1])[0], "label": int(Y[index])}


def test_a_stand_in_for_hugging_face() -> None:
    dataset = from_huggingface("mine", {"train": Table(), "validation": Table()}, image="img", test="validation")
    assert torch.equal(dataset.x_train, COLOUR)
    assert torch.equal(dataset.y_test, Y)
    assert dataset.class_names == ("a", "b", "c")


def test_missing_splits_and_columns_are_named() -> None:
    with pytest.raises(InputError, match="mine: there is no split 'test'; choose from train, validation"):
        from_huggingface("mine", {"train": Table(), "validation": Table()})
    with pytest.raises(InputError, match="mine: train: there is no column 'image'; choose from img, label"):
        from_huggingface("mine", {"train": Table(), "test": Table()})


def test_without_the_library_its_installation_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'hatrack\[huggingface\]'"):
        from_huggingface("mine", "somebody/mnist")


@pytest.mark.filterwarnings("ignore")  # what the library says to itself
def test_the_real_library() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    rows = {"image": pil(COLOUR), "label": Y.tolist()}
    split = datasets.Dataset.from_dict(rows, features=features)
    dataset = from_huggingface("mine", datasets.DatasetDict({"train": split, "test": split.select([2, 1])}))
    assert torch.equal(dataset.x_train, COLOUR)
    assert torch.equal(dataset.x_test, COLOUR[[2, 1]])
    assert dataset.y_test.tolist() == [2, 1]
    assert dataset.class_names == ("a", "b", "c")


# --- npz

ARRAYS = {
    "x_train": COLOUR.permute(0, 2, 3, 1).numpy(),
    "y_train": Y.numpy(),
    "x_test": COLOUR[:2].permute(0, 2, 3, 1).numpy(),
    "y_test": Y[:2].numpy()[:, None].astype(np.uint8),
}
NPZ = npz(ARRAYS)


@pytest.mark.parametrize("names", [None, ("a", "b", "c")])
def test_npz(names: tuple[str, ...] | None, tmp_path: Path) -> None:
    dataset = from_npz("mine", put(tmp_path, {"mine.npz": NPZ}) / "mine.npz", class_names=names)
    assert torch.equal(dataset.x_train, COLOUR)
    assert torch.equal(dataset.y_test, Y[:2])
    assert dataset.class_names == (names or ("0", "1", "2"))
    grey = {name: array[..., 0] if name[0] == "x" else array for name, array in ARRAYS.items()}
    assert torch.equal(decode_npz(npz(grey), "here").x_train, COLOUR[:, :1])


class Runs:
    """Would be noticed if it were unpickled."""

    def __reduce__(self) -> object:
        return (pytest.fail, ("was unpickled",))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        pytest.param(b"", "the zip archive is damaged", id="empty"),
        pytest.param(NPZ[:-30], "the zip archive is damaged", id="cut short"),
        pytest.param(b"<html>" + NPZ[6:], "is damaged", id="wrong magic"),
        pytest.param(zipped({"../x_train.npy": b""}), "points out of the archive", id="zip slip"),
        pytest.param(npz({k: v for k, v in ARRAYS.items() if k != "y_test"}), "holds no y_test.npy", id="missing"),
        pytest.param(npz(ARRAYS | {"y_test": np.array([0, 3])}), "y_test: a label is outside of 0..2", id="range"),
        pytest.param(npz(ARRAYS | {"y_test": np.array([0, -1])}), "y_test: a label is outside of", id="negative"),
        pytest.param(npz(ARRAYS | {"y_test": np.array([0])}), "y_test must be 2 whole numbers", id="wrong count"),
        pytest.param(npz(ARRAYS | {"y_test": np.array([0.0, 1.0])}), "must be 2 whole numbers", id="floats"),
        pytest.param(npz(ARRAYS | {"x_test": np.zeros((2, 4, 5))}), "x_test must be bytes", id="not bytes"),
        pytest.param(npz(ARRAYS | {"x_test": np.zeros((0, 4, 5), np.uint8)}), "x_test is empty", id="none"),
        pytest.param(npz(ARRAYS | {"x_test": np.zeros((2, 4, 5), np.uint8)}), "differ in shape", id="shapes"),
        pytest.param(npz(ARRAYS | {"x_test": np.array([Runs()])}, pickles=True), "no whole array", id="a pickle"),
        pytest.param(zipped({f"{name}.npy": b"\x93NUMPY" for name in ARRAYS}), "no whole array", id="no header"),
    ],
)
def test_faulty_npz_is_named(content: bytes, fault: str) -> None:
    with pytest.raises(DataError) as caught:
        decode_npz(content, "here", classes=3)
    assert str(caught.value).startswith("here: ")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_header_that_claims_a_huge_array_allocates_nothing() -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (1 << 60,)})
    with pytest.raises(DataError, match="no whole array"):
        decode_npz(zipped({f"{name}.npy": file.getvalue() for name in ARRAYS}), "here")


@pytest.mark.data
def test_real_npz(animals: ImageDataset) -> None:
    assert animals.x_train.shape == (7775, 1, 28, 28)
    assert animals.x_test.shape == (1941, 1, 28, 28)
    assert animals.y_train.bincount().tolist() == [750, 650, 794, 797, 798, 800, 800, 798, 788, 800]
    mean, std = channel_statistics(animals.x_train)
    assert (round(mean[0], 4), round(std[0], 4)) == (animals.mean[0], animals.std[0])


# --- folders of pictures

PICTURES = {
    "train/b/1.png": picture(COLOUR[0]),
    "train/a/1.png": picture(COLOUR[1].mT),
    "train/a/2.jpg": picture(torch.full((3, 9, 9), 100, dtype=torch.uint8), "JPEG"),
    "test/b/1.PNG": picture(GREY[0]),
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_pictures_of_any_classes_and_sizes(packed: bool, tmp_path: Path) -> None:
    path = put(tmp_path, {"p.zip": zipped(PICTURES)}) / "p.zip" if packed else put(tmp_path / "p", PICTURES)
    dataset = from_pictures("mine", path, size=(4, 5))
    assert dataset.class_names == ("a", "b")
    assert dataset.y_train.tolist() == [0, 0, 1]
    assert torch.equal(dataset.x_train[0], COLOUR[1].mT)
    assert bool((dataset.x_train[1] == 100).all())
    assert torch.equal(dataset.x_train[2], resized(COLOUR[0], (4, 5)))
    assert from_pictures("mine", path, size=(4, 5), channels=1).x_test.shape == (1, 1, 5, 4)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"test/c/1.png": PICTURES["train/b/1.png"]}, "there is a class 'c' in test, but not in train"),
        ({"train/b/1.png": b"no picture"}, "train/b/1.png: is no picture"),
    ],
)
def test_faulty_pictures_are_named(change: dict[str, bytes], fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        from_pictures("mine", put(tmp_path, PICTURES | change), size=(4, 5))
    assert fault in str(caught.value)


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no pictures train/CLASS/\*\.png"):
        from_pictures("mine", tmp_path, size=(4, 5))
    with pytest.raises(DataError, match="cannot be read"):
        from_pictures("mine", tmp_path / "absent.zip", size=(4, 5))
