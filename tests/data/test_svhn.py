from __future__ import annotations

import dataclasses
import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from hatrack.data.dataset import FileVariant
from hatrack.data.files import DataFile
from hatrack.data.matlab import read_mat
from hatrack.data.registry import DATASETS, SVHN_TEST, SVHN_TRAIN, decode_svhn
from hatrack.data.sources import NotFoundError
from hatrack.errors import DataError
from support.formats import compressed, element, mat_array, mat_file, svhn_file
from support.miniatures import put

SVHN = DATASETS["svhn"]
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=GENERATOR)
LABELS = [10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1]
FILES = {SVHN_TRAIN: svhn_file(IMAGES, LABELS), SVHN_TEST: svhn_file(IMAGES[:2], [9, 10])}
GRID = np.arange(6, dtype=np.float64).reshape(2, 3) + 0.5
BYTES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def read(content: bytes, *names: str, limit: int = 1 << 20) -> dict[str, torch.Tensor]:
    return read_mat(content, names, limit=limit, origin="here")


# --- MAT-files


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "compressed"])
def test_arrays_have_their_axes_in_reverse(packed: bool, order: str) -> None:
    arrays = [mat_array("grid", GRID, order=order), mat_array("b", BYTES, order=order)]
    if packed:
        arrays = [compressed(array, order) for array in arrays]
    found = read(mat_file(*arrays, order=order), "grid", "b")
    assert torch.equal(found["grid"], torch.from_numpy(GRID.T.copy()))
    assert torch.equal(found["b"], torch.from_numpy(BYTES.transpose(2, 1, 0).copy()))


def test_whole_numbers_stored_in_fewer_bytes() -> None:
    found = read(mat_file(mat_array("y", np.array([[1.0], [10.0]]), stored="u1")), "y")
    assert found["y"].tolist() == [[1, 10]]


def test_other_arrays_are_passed_over_whatever_they_are() -> None:
    cell = struct.pack("<II", 14, 48) + mat_array("c", BYTES, flags=1)[8:56]
    assert list(read(mat_file(cell, mat_array("b", BYTES)), "b")) == ["b"]


ONE = mat_array("b", BYTES)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        pytest.param(b"", "not a MAT-file of version 5", id="empty"),
        pytest.param(b"MATLAB 7.3" + bytes(118) + ONE, "not a MAT-file of version 5", id="wrong magic"),
        pytest.param(mat_file(ONE)[:-30], "cut short", id="cut short"),
        pytest.param(mat_file(ONE)[:130], "is damaged", id="cut in a tag"),
        pytest.param(mat_file(compressed(ONE)[:-9]), "cut short", id="a compressed one cut short"),
        pytest.param(mat_file(struct.pack("<II", 15, 9) + zlib.compress(ONE)[:9]), "cut short", id="compression cut"),
        pytest.param(mat_file(struct.pack("<II", 15, 9) + b"no zlib.."), "is damaged", id="no compression"),
        pytest.param(mat_file(), "holds no array 'b'", id="nothing"),
        pytest.param(mat_file(mat_array("c", BYTES)), "holds no array 'b'", id="another array"),
        pytest.param(mat_file(ONE, ONE), "two arrays 'b'", id="twice"),
        pytest.param(mat_file(element(9, bytes(16))), "an element of type 9 where", id="no array"),
        pytest.param(mat_file(mat_array("b", BYTES, flags=1)), "no array of real numbers", id="a cell"),
        pytest.param(mat_file(mat_array("b", BYTES, flags=17)), "no array of real numbers", id="a function"),
        pytest.param(mat_file(mat_array("b", BYTES, flags=0x0809)), "no array of real numbers", id="complex"),
        pytest.param(
            mat_file(ONE.replace(struct.pack("<3i", 2, 3, 4), struct.pack("<3i", 2, 3, 5))),
            "declares 2 x 3 x 5 values but holds 24",
            id="wrong count",
        ),
        pytest.param(
            mat_file(ONE.replace(struct.pack("<3i", 2, 3, 4), struct.pack("<3i", -2, -3, 4))), "declares", id="negative"
        ),
        pytest.param(mat_file(compressed(mat_array("b", np.zeros(1 << 21, np.uint8)))), "more than", id="a bomb"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(content: bytes, fault: str) -> None:
    with pytest.raises(DataError) as caught:
        read(content, "b")
    assert str(caught.value).startswith("here: ")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_agrees_with_scipy() -> None:
    scipy = pytest.importorskip("scipy.io")
    for content in (mat_file(mat_array("b", BYTES), compressed(mat_array("grid", GRID))),):
        theirs = scipy.loadmat(io.BytesIO(content))
        for name, ours in read(content, "b", "grid").items():
            assert np.array_equal(theirs[name].transpose(), ours.numpy())
    written = io.BytesIO()
    scipy.savemat(written, {"b": BYTES, "grid": GRID, "text": "x"}, do_compression=True)
    for name, wanted in (("b", BYTES), ("grid", GRID)):
        assert np.array_equal(read(written.getvalue(), name)[name].numpy(), wanted.transpose())


# --- the data set


def test_images_are_upright_and_ten_becomes_zero_exactly_once() -> None:
    arrays = decode_svhn(FILES)
    assert torch.equal(arrays.x_train, IMAGES)
    assert torch.equal(arrays.x_test, IMAGES[:2])
    assert arrays.y_train.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert arrays.y_test.tolist() == [9, 0]
    assert arrays.y_train.dtype == torch.int64
    assert arrays.x_train.is_contiguous()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (svhn_file(IMAGES[:2], [0, 1]), "a label is outside of 1..10"),  # has been mapped before
        (svhn_file(IMAGES[:2], [1, 11]), "a label is outside of 1..10"),
        (svhn_file(IMAGES[:2], [1]), "holds 1 labels of 2 images"),
        (svhn_file(IMAGES[:2, :, :16], [1, 2]), "its images are torch.uint8 (16, 32, 3, 2)"),
        (mat_file(mat_array("X", GRID), mat_array("y", GRID)), "its images are torch.float64"),
    ],
)
def test_wrong_images_and_labels_are_named(content: bytes, fault: str) -> None:
    with pytest.raises(DataError) as caught:
        decode_svhn({**FILES, SVHN_TEST: content})
    assert f"{SVHN_TEST}: " in str(caught.value)
    assert fault in str(caught.value)


def miniature(files: dict[str, bytes]) -> object:
    (variant,) = SVHN.variants
    assert isinstance(variant, FileVariant)
    known = tuple(DataFile(name, hashlib.sha256(content).hexdigest(), archive=True) for name, content in files.items())
    source = dataclasses.replace(variant.source, files=known, mirrors=())  # type: ignore[type-var]
    return dataclasses.replace(SVHN, variants=(dataclasses.replace(variant, source=source),))


@pytest.mark.parametrize("folder", ["", "svhn", "SVHN"])
def test_found_decoded_once_and_kept(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "data" / folder, FILES)
    spec = miniature(FILES)
    first = spec.load(tmp_path / "data")  # type: ignore[attr-defined]
    monkeypatch.setattr("hatrack.data.registry.read_mat", None)
    again = spec.load(tmp_path / "data")  # type: ignore[attr-defined]
    assert torch.equal(first.x_train, again.x_train)
    assert torch.equal(first.y_test, again.y_test)
    assert (first.origin, again.origin) == ("mat files", "mat files")


def test_a_changed_file_is_refused_though_its_arrays_were_kept(tmp_path: Path) -> None:
    spec = miniature(FILES)
    put(tmp_path / "data", FILES)
    spec.load(tmp_path / "data")  # type: ignore[attr-defined]
    put(tmp_path / "data", {SVHN_TEST: FILES[SVHN_TRAIN]})
    with pytest.raises(NotFoundError, match=f"its content is not that of svhn's {SVHN_TEST}"):
        spec.load(tmp_path / "data")  # type: ignore[attr-defined]


def test_damaged_arrays_are_not_kept(tmp_path: Path) -> None:
    files = {SVHN_TRAIN: svhn_file(IMAGES[:2], [0, 1]), SVHN_TEST: FILES[SVHN_TEST]}
    put(tmp_path / "data", files)
    with pytest.raises(DataError, match=r"outside of 1\.\.10"):
        miniature(files).load(tmp_path / "data")  # type: ignore[attr-defined]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_published_constants() -> None:
    assert SVHN.mean == (0.4377, 0.4438, 0.4728)
    assert SVHN.std == (0.198, 0.201, 0.197)
    assert SVHN.class_names == tuple("0123456789")
