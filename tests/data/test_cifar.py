from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from hatrack.data import DATASETS, DatasetSpec, load_dataset
from hatrack.data.cifar import CIFAR10_FORMAT, CIFAR100_FORMAT, CifarFormat
from hatrack.data.dataset import FileVariant, Variant
from hatrack.data.files import DataFile
from hatrack.data.pictures import PictureLayout
from hatrack.data.sources import PublishedFiles
from hatrack.data.trees import PictureTree
from hatrack.errors import DataError
from hatrack.streams import StreamOptions, build_stream
from support.miniatures import (
    HUNDRED,
    TEN,
    arrays_of,
    binary_files,
    dictionary,
    number,
    numbers,
    picture,
    put,
    python_files,
    tar_gz,
    texts,
    zipped,
)

LAYOUT_OF = {TEN: CIFAR10_FORMAT, HUNDRED: CIFAR100_FORMAT}
ARRAYS = {layout: arrays_of(layout) for layout in (TEN, HUNDRED)}
PYTHON = {layout: python_files(layout, ARRAYS[layout]) for layout in ARRAYS}
BINARY = {layout: binary_files(layout, ARRAYS[layout]) for layout in ARRAYS}
ARCHIVE = {layout: tar_gz(PYTHON[layout], layout.python_folder) for layout in ARRAYS}
BINARY_ARCHIVE = {layout: tar_gz(BINARY[layout], layout.binary_folder) for layout in ARRAYS}
BOTH = pytest.mark.parametrize("layout", [TEN, HUNDRED], ids=["cifar10", "cifar100"])


def rehashed(file: DataFile, content: bytes) -> DataFile:
    """The same file, known by the hash of other content."""
    if file.md5:
        return dataclasses.replace(file, md5=hashlib.md5(content).hexdigest())
    return dataclasses.replace(file, sha256=hashlib.sha256(content).hexdigest())


def miniature(layout: CifarFormat) -> DatasetSpec:
    """The real specification, with the hashes and numbers of the miniature and without download addresses."""
    spec = DATASETS["cifar10" if layout is TEN else "cifar100"]
    y_train, y_test = ARRAYS[layout].y_train, ARRAYS[layout].y_test
    counts = (int((y_train == 0).sum()), int((y_test == 0).sum()))
    contents = {
        "decode_python_archive": [ARCHIVE[layout]],
        "decode_python": [*PYTHON[layout].values()],
        "decode_binary_archive": [BINARY_ARCHIVE[layout]],
        "decode_binary": [content for name, content in BINARY[layout].items() if name.endswith(".bin")],
    }
    variants: list[Variant] = []
    for form, (decode, payloads) in zip(spec.variants, contents.items(), strict=False):
        assert isinstance(form, FileVariant)
        assert isinstance(form.source, PublishedFiles)
        assert form.decode == getattr(LAYOUT_OF[layout], decode)
        files = tuple(rehashed(*pair) for pair in zip(form.source.files, payloads, strict=True))
        source = dataclasses.replace(form.source, files=files, mirrors=())
        variants.append(dataclasses.replace(form, source=source, decode=getattr(layout, decode)))
    pictures = spec.variants[4]
    assert isinstance(pictures, PictureTree)
    variants.append(dataclasses.replace(pictures, layout=PictureLayout(layout.class_names, *counts, (32, 32))))
    return dataclasses.replace(spec, variants=tuple(variants))


def put_form(form: str, layout: CifarFormat, folder: Path) -> Path:
    """Put the miniature into a folder, in one of its forms."""
    stem = layout.python_folder.removesuffix("-python").removesuffix("-batches-py")
    name = "cifar10" if layout is TEN else "cifar100"
    files: dict[str, Mapping[str, bytes]] = {
        "python archive": {f"{stem}-python.tar.gz": ARCHIVE[layout]},
        "python archive in a folder": {f"{name}/{stem}-python.tar.gz": ARCHIVE[layout]},
        "python files": {f"{layout.python_folder}/{key}": content for key, content in PYTHON[layout].items()},
        "python files deeper": {f"{name}/{layout.python_folder}/{k}": content for k, content in PYTHON[layout].items()},
        "python files bare": PYTHON[layout],
        "binary archive": {f"{stem}-binary.tar.gz": BINARY_ARCHIVE[layout]},
        "binary files": {f"{layout.binary_folder}/{key}": content for key, content in BINARY[layout].items()},
    }
    return put(folder, files[form])


def tree(layout: CifarFormat) -> dict[str, bytes]:
    files = {}
    arrays = ARRAYS[layout]
    for part, x, y in (("train", arrays.x_train, arrays.y_train), ("test", arrays.x_test, arrays.y_test)):
        for row, (image, label) in enumerate(zip(x, y.tolist(), strict=True)):
            files[f"{part}/{layout.class_names[label]}/{row:04}.png"] = picture(image)
    return files


# --- every form


@BOTH
@pytest.mark.parametrize(
    "form",
    [
        "python archive",
        "python archive in a folder",
        "python files",
        "python files deeper",
        "python files bare",
        "binary archive",
        "binary files",
    ],
)
def test_every_form_gives_the_same_arrays(form: str, layout: CifarFormat, tmp_path: Path) -> None:
    dataset = miniature(layout).load(put_form(form, layout, tmp_path / "data"), download=False)
    for part in ("x_train", "y_train", "x_test", "y_test"):
        found, wanted = getattr(dataset, part), getattr(ARRAYS[layout], part)
        assert found.dtype == wanted.dtype
        assert found.is_contiguous()
        assert torch.equal(found, wanted), part
    assert dataset.origin == "original images"
    assert dataset.class_names == layout.class_names


@BOTH
def test_pictures_give_the_same_images_in_another_order(layout: CifarFormat, tmp_path: Path) -> None:
    name = "cifar10" if layout is TEN else "cifar100"
    put(tmp_path / "data", {f"{name}.zip": zipped(tree(layout))})
    dataset = miniature(layout).load(tmp_path / "data", download=False)
    assert dataset.origin.startswith("pictures, not a published set: SHA-256 ")
    rows = {
        (image.numpy().tobytes(), label) for image, label in zip(dataset.x_train, dataset.y_train.tolist(), strict=True)
    }
    wanted = zip(ARRAYS[layout].x_train, ARRAYS[layout].y_train.tolist(), strict=True)
    assert rows == {(image.numpy().tobytes(), label) for image, label in wanted}


def test_the_original_images_come_before_pictures_wherever_they_are(tmp_path: Path) -> None:
    data = put(tmp_path / "data", {"cifar10.zip": zipped(tree(TEN))})
    assert miniature(TEN).load(data, download=False).origin.startswith("pictures")
    put_form("binary files", TEN, tmp_path / "cache" / "hatrack" / "cifar10")
    assert miniature(TEN).load(data, download=False).origin == "original images"


def test_a_damaged_form_does_not_hide_a_sound_one(tmp_path: Path) -> None:
    data = put_form("binary files", TEN, tmp_path / "data")
    put(data, {"cifar-10-python.tar.gz": ARCHIVE[TEN][:-9], "cifar-10-batches-py/data_batch_1": b"damaged"})
    assert miniature(TEN).load(data, download=False).origin == "original images"
    (data / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    with pytest.raises(DataError) as caught:
        miniature(TEN).load(data, download=False)
    message = str(caught.value)
    for fault in (
        "cifar10: not found in",
        "its content is not that of cifar10's cifar-10-python.tar.gz (the SHA-256 differs)",
        "its content is not that of cifar10's data_batch_1 (the MD5 differs)",
        "test_batch.bin is missing beside data_batch_1.bin",
        "put cifar-10-python.tar.gz or the folder cifar-10-batches-py or cifar-10-binary.tar.gz or the folder "
        "cifar-10-batches-bin or cifar10-jpeg.zip (or pictures as",
        "`data_dir`",
    ):
        assert fault in message
    assert "\n" not in message
    assert not (tmp_path / "cache").exists()


def test_absent_set_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset("cifar100", tmp_path, download=False)
    assert "put cifar-100-python.tar.gz or the folder cifar-100-python or" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_files_of_the_other_set_are_refused(tmp_path: Path) -> None:
    put(tmp_path, {"cifar-100-python.tar.gz": ARCHIVE[TEN]})
    with pytest.raises(DataError, match="its content is not that of cifar100's"):
        miniature(HUNDRED).load(tmp_path, download=False)


# --- faults that no hash would let through, but decoders do not rely on that

Files = dict[str, bytes]


def changed(files: Mapping[str, bytes], **changes: bytes) -> Files:
    return {**files, **changes}


def batch(rows: int = 4, labels: bytes | None = None) -> bytes:
    from support.miniatures import array

    data = array(torch.zeros(rows, 3072, dtype=torch.uint8))
    return dictionary({"data": data, "labels": numbers([0, 1, 2, 3]) if labels is None else labels})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda: {"data_batch_2": PYTHON[TEN]["data_batch_2"][:-100]}, "data_batch_2: not a pickle of plain data"),
        (lambda: {"data_batch_2": b"cos\nsystem\n(S'true'\ntR."}, "it asks for os.system, which was not run"),
        (
            lambda: {"data_batch_2": batch(3)},
            r"data_batch_2: its images are of shape (3, 3072), not of shape (4, 3072)",
        ),
        (lambda: {"data_batch_2": dictionary({"labels": numbers([0])})}, "data_batch_2: its images are missing"),
        (lambda: {"test_batch": batch(4)}, "test_batch: its images are of shape (4, 3072), not of shape (10, 3072)"),
        (lambda: {"data_batch_2": batch(labels=numbers([0, 1, 2]))}, "data_batch_2: does not hold 4 whole numbers"),
        (
            lambda: {"data_batch_2": batch(labels=texts(["0", "1", "2", "3"]))},
            "does not hold 4 whole numbers as labels",
        ),
        (lambda: {"data_batch_2": batch(labels=number(3))}, "does not hold 4 whole numbers as labels"),
        (lambda: {"data_batch_2": batch(labels=numbers([0, 1, 2, 10]))}, "a label is outside of 0..9"),
        (lambda: {"data_batch_2": batch(labels=numbers([0, 0, 0, 0]))}, "training images: of one class there are"),
        (lambda: {"batches.meta": dictionary({"label_names": texts(["cat"])})}, "'cat' for 'airplane'"),
        (lambda: {"batches.meta": dictionary({"label_names": texts(TEN.class_names[:9])})}, "(9 names)"),
        (lambda: {"batches.meta": dictionary({})}, "batches.meta: does not name the 10 classes as it should (0 names)"),
        (lambda: {"batches.meta": PYTHON[HUNDRED]["meta"]}, "batches.meta: does not name the 10 classes"),
    ],
)
def test_faulty_files_for_python(change: Callable[[], Files], fault: str) -> None:
    check_fault(TEN.decode_python, changed(PYTHON[TEN], **change()), fault)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda: {"test.bin": BINARY[HUNDRED]["test.bin"][:-1]}, "test.bin: has 307399 bytes, not 307400"),
        (lambda: {"train.bin": BINARY[HUNDRED]["test.bin"]}, "train.bin: has 307400 bytes, not 614800"),
        (lambda: {"test.bin": b""}, "test.bin: has 0 bytes"),
        (lambda: {"test.bin": b"\0\x64" + BINARY[HUNDRED]["test.bin"][2:]}, "test.bin: a label is outside of 0..99"),
        (lambda: {"test.bin": BINARY[HUNDRED]["test.bin"][:3074] * 100}, "test images: of one class there are 0"),
        (lambda: {"fine_label_names.txt": b"apple\nbaby\n"}, "('baby' for 'aquarium_fish')"),
        (lambda: {"fine_label_names.txt": b""}, "does not name the 100 classes as it should (0 names)"),
    ],
)
def test_faulty_files_of_the_binary_version(change: Callable[[], Files], fault: str) -> None:
    check_fault(HUNDRED.decode_binary, changed(BINARY[HUNDRED], **change()), fault)


def test_archive_without_one_of_the_files() -> None:
    incomplete = {name: content for name, content in PYTHON[TEN].items() if name != "test_batch"}
    archive = tar_gz(incomplete, TEN.python_folder)
    check_fault(TEN.decode_python_archive, {"a.tar.gz": archive}, "does not hold cifar-10-batches-py/test_batch")
    check_fault(TEN.decode_binary_archive, {"a.tar.gz": archive}, "does not hold cifar-10-batches-bin/data_batch_1.bin")


def check_fault(decode: Callable[[Files], object], files: Files, fault: str) -> None:
    with pytest.raises(DataError) as caught:
        decode(files)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


# --- the real sets


def test_constants_of_the_specifications() -> None:
    for spec, classes in ((DATASETS["cifar10"], 10), (DATASETS["cifar100"], 100)):
        assert len(set(spec.class_names)) == classes
        assert list(spec.class_names) == sorted(spec.class_names)
        assert [round(255 * value, 1) for value in (*spec.mean, *spec.std)] == [125.3, 123.0, 113.9, 63.0, 62.1, 66.7]
        assert [variant.downloads for variant in spec.variants] == [True, False, False, False, False]


@pytest.mark.slow
@pytest.mark.data
def test_jpeg_re_encoding_its_cache_and_its_tasks(
    cifar10_jpeg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    started = time.process_time()
    dataset = load_dataset("cifar10", cifar10_jpeg, download=False)
    decoding = time.process_time() - started
    assert dataset.origin == "JPEG re-encoding: accuracies a little below the lossless set's"
    assert dataset.x_train.shape == (50_000, 3, 32, 32)
    assert dataset.x_test.shape == (10_000, 3, 32, 32)
    assert dataset.y_train.bincount().tolist() == [5000] * 10
    assert dataset.y_test.bincount().tolist() == [1000] * 10
    scaled = dataset.x_train.float().div_(255)
    # The re-encoding keeps the means and loses a little of the deviations.
    for channel, (mean, std) in enumerate(zip(dataset.mean, dataset.std, strict=True)):
        assert scaled[:, channel].mean().item() == pytest.approx(mean, abs=5e-4)
        assert scaled[:, channel].std().item() == pytest.approx(std, abs=3e-3)

    started = time.process_time()
    again = load_dataset("cifar10", cifar10_jpeg, download=False)
    assert time.process_time() - started < decoding / 3, "it is not decoded again"
    assert torch.equal(dataset.x_train, again.x_train)
    assert torch.equal(dataset.y_test, again.y_test)
    assert dataset.origin == again.origin

    options = StreamOptions(seed=0, validation=0.15)
    stream = build_stream("split-cifar10", options, data_dir=cifar10_jpeg, download=False)
    assert [(len(task.train), len(task.valid), len(task.test)) for task in stream] == [(8500, 1500, 2000)] * 5
    x, y = stream[3].test.load()
    assert x.shape == (2000, 3, 32, 32)
    assert y.bincount().tolist() == [1000, 1000]
    assert abs(x.mean()) < 0.3
    (tmp_path / "hatrack" / "cifar10" / "pictures.safetensors").unlink()  # 180 MB
