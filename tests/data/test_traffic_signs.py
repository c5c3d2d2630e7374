from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hatrack.data import DATASETS, ImageDataset, channel_statistics, load_dataset
from hatrack.data.dataset import FileVariant
from hatrack.data.files import DataFile
from hatrack.data.sources import PublishedFiles
from hatrack.data.traffic_signs import TEST_COUNTS, TRAIN_COUNTS, SignLayout
from hatrack.data.trees import PictureTree
from hatrack.errors import DataError
from support.formats import ppm, resized, table
from support.miniatures import put, zipped

GENERATOR = torch.Generator().manual_seed(0)
TRAIN, TEST = "GTSRB/Final_Training/Images", "GTSRB/Final_Test/Images"
TRAFFIC_SIGNS = DATASETS["traffic-signs"]
LAYOUT = SignLayout(train=5, test=3, classes=2)
SIZES = [(30, 29), (50, 40), (32, 32), (15, 15), (100, 60), (31, 33), (40, 50), (29, 30)]
IMAGES = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=GENERATOR) for size in SIZES]
NAMES = ["00000/00000_00000", "00000/00000_00001", "00001/00000_00000", "00001/00000_00001", "00001/00001_00000"]
PATHS = [f"{TRAIN}/{name}.ppm" for name in NAMES] + [f"{TEST}/0000{number}.ppm" for number in range(3)]
LABELS = {"00000.ppm": 1, "00001.ppm": 0, "00002.ppm": 1}
PICTURES = {path: ppm(image) for path, image in zip(PATHS, IMAGES, strict=True)}
TABLES = {
    f"{TRAIN}/00000/GT-00000.csv": table({"00000_00000.ppm": 0, "00000_00001.ppm": 0}),
    f"{TRAIN}/00001/GT-00001.csv": table({"00000_00000.ppm": 1, "00000_00001.ppm": 1, "00001_00000.ppm": 1}),
    "GT-final_test.csv": table(LABELS),
}
# what the archive of the test pictures holds instead: no classes
WITHOUT_CLASSES = {f"{TEST}/GT-final_test.test.csv": b"Filename;Width;Height\r\n00000.ppm;29;30\r\n"}
FILES = PICTURES | TABLES | WITHOUT_CLASSES
TREE = PictureTree("published folders", (), ("gtsrb",), LAYOUT)
WANTED = torch.stack([resized(image) for image in IMAGES])


def require_right(arrays: object) -> None:
    assert torch.equal(arrays.x_train, WANTED[:5])  # type: ignore[attr-defined]
    assert arrays.y_train.tolist() == [0, 0, 1, 1, 1]  # type: ignore[attr-defined]
    assert torch.equal(arrays.x_test, WANTED[5:])  # type: ignore[attr-defined]
    assert arrays.y_test.tolist() == [1, 0, 1]  # type: ignore[attr-defined]


# --- forms


def test_published_folders(tmp_path: Path) -> None:
    require_right(TREE.load("traffic-signs", put(tmp_path / "data", FILES)).arrays)


def test_table_of_the_test_pictures_beside_their_folder(tmp_path: Path) -> None:
    moved = {name: content for name, content in FILES.items() if name != "GT-final_test.csv"}
    moved["GTSRB/GT-final_test.csv"] = TABLES["GT-final_test.csv"]
    require_right(TREE.load("traffic-signs", put(tmp_path / "data" / "gtsrb", moved).parent).arrays)


def test_folders_of_torchvision(tmp_path: Path) -> None:
    as_there = {f"gtsrb/{name.replace('Final_Training/Images', 'Training')}": FILES[name] for name in FILES}
    data = put(tmp_path / "data", as_there)
    tree = TRAFFIC_SIGNS.variants[-1]
    assert isinstance(tree, PictureTree)
    assert tree.layout == SignLayout("GTSRB/Training", train=26_640)
    small = dataclasses.replace(tree, layout=dataclasses.replace(LAYOUT, train_folder="GTSRB/Training"))
    require_right(small.load("traffic-signs", data).arrays)


def test_published_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(*starts: str) -> bytes:
        return zipped({name: content for name, content in FILES.items() if name.startswith(starts)})

    archives = {
        "GTSRB_Final_Training_Images.zip": part(TRAIN),
        "GTSRB_Final_Test_Images.zip": part(TEST),
        "GTSRB_Final_Test_GT.zip": part("GT-"),
    }
    variant = TRAFFIC_SIGNS.variants[0]
    assert isinstance(variant, FileVariant)
    assert isinstance(variant.source, PublishedFiles)
    assert [file.name for file in variant.source.files] == list(archives)
    files = tuple(
        DataFile(name, md5=hashlib.md5(content).hexdigest(), archive=True) for name, content in archives.items()
    )
    small = dataclasses.replace(variant, source=dataclasses.replace(variant.source, files=files, mirrors=()))
    monkeypatch.setattr("hatrack.data.traffic_signs.SignLayout", lambda: LAYOUT)
    loaded = small.load("traffic-signs", put(tmp_path / "data", archives))
    require_right(loaded.arrays)
    assert loaded.origin == "original pictures, resized"
    monkeypatch.setattr("hatrack.data.traffic_signs.unpack_tree", None)
    require_right(small.load("traffic-signs", tmp_path / "data").arrays)


# --- faults


def without(*names: str) -> dict[str, bytes]:
    return {name: content for name, content in FILES.items() if name not in names}


FIRST, LAST = f"{TRAIN}/00000/GT-00000.csv", "GT-final_test.csv"


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        pytest.param(without(PATHS[0]), "GT-00000.csv does not list the pictures beside it", id="a picture is missing"),
        pytest.param({**FILES, f"{TRAIN}/00000/x.ppm": b""}, "does not list the pictures beside it", id="one more"),
        pytest.param(without(FIRST), f"{FIRST} is missing", id="no table"),
        pytest.param(
            without(LAST), "GT-final_test.csv is missing, which GTSRB_Final_Test_GT.zip holds", id="no labels"
        ),
        pytest.param(without(PATHS[-1]), "does not list the pictures of GTSRB/Final_Test", id="no test picture"),
        pytest.param(
            {**FILES, FIRST: table({"00000_00000.ppm": 0, "00000_00001.ppm": 1})}, "of another class", id="wrong class"
        ),
        pytest.param({**FILES, LAST: table({**LABELS, "00001.ppm": 2})}, "a class is outside of 0..1", id="range"),
        pytest.param({**FILES, LAST: TABLES[LAST] + TABLES[LAST][61:]}, "twice", id="twice"),
        pytest.param({**FILES, LAST: b"<html>"}, "does not list", id="another format"),
        pytest.param(
            {**FILES, LAST: TABLES[LAST].replace(b"ClassId", b"Class")}, "not a table with Filename", id="no classes"
        ),
        pytest.param({**FILES, LAST: TABLES[LAST][:-4]}, "not a table with Filename", id="a table cut short"),
        pytest.param({**FILES, PATHS[0]: PICTURES[PATHS[0]][:-9]}, "not a whole PPM picture", id="a picture cut short"),
        pytest.param({**FILES, PATHS[0]: b"P6\n5000 5000\n255\n"}, "5000 x 5000 pixels, more", id="huge"),
        pytest.param({**FILES, PATHS[0]: b"GIF89a"}, "not a whole PPM picture", id="another kind"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_kept(files: dict[str, bytes], fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        TREE.load("traffic-signs", put(tmp_path / "data", files))
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_wrong_number_of_pictures() -> None:
    with pytest.raises(DataError, match="holds 5 training pictures instead of 6"):
        dataclasses.replace(LAYOUT, train=6).decode(FILES, "here")


# --- the real set


def test_constants_of_the_specification() -> None:
    assert (sum(TRAIN_COUNTS), sum(TEST_COUNTS)) == (39_209, 12_630)
    assert len(TRAIN_COUNTS) == len(TEST_COUNTS) == len(set(TRAFFIC_SIGNS.class_names)) == 43
    assert TRAFFIC_SIGNS.mean == (0.3398, 0.3117, 0.3210)
    assert TRAFFIC_SIGNS.std == (0.2755, 0.2647, 0.2712)


@pytest.fixture(scope="module")
def jpeg(gtsrb_jpeg: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], ImageDataset]]:
    """Loads the JPEG re-encoding, with a cache of its own."""
    cache = tmp_path_factory.mktemp("cache")

    def load() -> ImageDataset:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(cache))
            return load_dataset("traffic-signs", gtsrb_jpeg, download=False)

    yield load
    (cache / "hatrack" / "traffic-signs" / "pictures.safetensors").unlink(missing_ok=True)  # 160 MB


@pytest.mark.slow
@pytest.mark.data
def test_jpeg_re_encoding_and_its_cache(jpeg: Callable[[], ImageDataset]) -> None:
    dataset = jpeg()
    assert dataset.origin == "JPEG re-encoding at 32 x 32"
    assert dataset.x_train.shape == (39_209, 3, 32, 32)
    assert dataset.y_test.bincount().tolist() == list(TEST_COUNTS)
    mean, std = channel_statistics(dataset.x_train)
    # The re-encoding loses a little: 0.0006 of the mean and 0.0010 of the deviation at most.
    assert mean == pytest.approx(dataset.mean, abs=1e-3)
    assert std == pytest.approx(dataset.std, abs=1.1e-3)
    started = time.process_time()
    again = jpeg()
    assert time.process_time() - started < 2
    assert torch.equal(dataset.x_train, again.x_train)
    assert torch.equal(dataset.y_test, again.y_test)
