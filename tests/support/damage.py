"""Every reader of files, with whole files to begin with: whatever bytes come, it reads them or says what is wrong.

``test_damage.py`` damages the files at random, ``benchmarks/fuzz.py`` looks for new paths through the readers.
"""

from __future__ import annotations

import gzip
import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import hatrack
from hatrack import HATNetwork, HatrackError, WeightMaskedNetwork
from hatrack.data import Identity, PackedPart, read_packed, write_packed
from hatrack.data.dataset import ImageArrays
from hatrack.data.files import unpack
from hatrack.data.mnist import decode_idx, encode_idx
from hatrack.data.npz import decode_npz
from hatrack.data.pictures import PictureForm, PictureLayout, decode_files
from hatrack.data.registry import SVHN_TEST, SVHN_TRAIN, decode_svhn
from hatrack.data.strips import decode_strips, encode_strips
from hatrack.data.traffic_signs import SignLayout
from hatrack.data.trees import unpack_tree
from hatrack.experiments import read_result
from hatrack.experiments.comparison import read_failure, write_failure
from hatrack.experiments.experiment import own_experiment
from hatrack.experiments.plan import ComparisonPlan, read_plan, write_plan
from hatrack.experiments.results import write_result
from hatrack.streams.own.files import OwnTask, read_own_task
from hatrack.streams.own.samples import as_splits
from hatrack.streams.own.tables import TableFormat
from support.formats import npz, ppm, svhn_file, table
from support.miniatures import TEN, arrays_of, binary_files, picture, python_files, tar_gz, zipped
from support.picture_kinds import png, tiff
from support.records import of_a_run

FOLDER = Path(tempfile.mkdtemp(prefix="hatrack-damage-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=GENERATOR)
ROWS = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=GENERATOR)


@dataclass(frozen=True)
class Reader:
    """A reader and whole files.

    Attributes:
        read: reads bytes; what it raises must be a HatrackError of one line.
        files: what it reads without an error.
    """

    read: Callable[[bytes], object]
    files: tuple[bytes, ...]


class ExecutionError(AssertionError):
    """A reader ran, imported or started something that a file named."""


def attempt(reader: Reader, content: bytes) -> object:
    """Return a reader's result for bytes; None where it refuses them as it should.

    Raises:
        AssertionError: it refuses them in another way, or the bytes had something executed.
    """
    try:
        with warnings.catch_warnings(), _watched():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", TELLS_WHAT_IS_LEFT_OUT)
            return reader.read(content)
    except HatrackError as error:
        if "\n" in str(error):
            raise AssertionError(f"not one line: {error}") from error
        return None


TELLS_WHAT_IS_LEFT_OUT = r"(?s).*(are read, not |is not read|can be read and is left out)"
"""Warnings about files whose names, damaged or not, are none that are read; the reader goes on without them."""

EXECUTING = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")


class _Watch:
    """Listens, while it is on, to what the interpreter reports of itself; such a listener cannot be taken away."""

    def __init__(self) -> None:
        self.on = self.installed = False

    def hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.on:
            return
        package = str(arguments[0]).partition(".")[0] if event == "import" else ""
        foreign = bool(package) and package not in sys.stdlib_module_names and package not in sys.modules
        if event in EXECUTING or foreign:
            raise ExecutionError(f"{event} {arguments[:1]}")

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if not self.installed:
            sys.addaudithook(self.hear)
            self.installed = True
        self.on = True
        try:
            yield
        finally:
            self.on = False


_watched = _Watch()

# --- data


TWO = replace(TEN, class_names=("cat", "dog"), train=("data_batch_1",), train_rows=2, test_rows=2)
ARRAYS = arrays_of(TWO)
PYTHON, BINARY = python_files(TWO, ARRAYS), binary_files(TWO, ARRAYS)
SIGNS = SignLayout(train=2, test=1, classes=2)
FOLDERS = ("GTSRB/Final_Training/Images", "GTSRB/Final_Test/Images")
SIGN_FILES = {
    f"{FOLDERS[0]}/00000/a.ppm": ppm(IMAGES[0]),
    f"{FOLDERS[0]}/00000/GT-00000.csv": table({"a.ppm": 0}),
    f"{FOLDERS[0]}/00001/b.ppm": ppm(IMAGES[1]),
    f"{FOLDERS[0]}/00001/GT-00001.csv": table({"b.ppm": 1}),
    f"{FOLDERS[1]}/00000.ppm": ppm(IMAGES[2]),
    "GT-final_test.csv": table({"00000.ppm": 1}),
}
TREE = PictureLayout(("a", "b"), 1, 1, (8, 8))
TREE_FILES = {f"{part}/{name}/0.png": picture(IMAGES[0]) for part in ("train", "test") for name in ("a", "b")}
NPZ = {
    "x_train": IMAGES.permute(0, 2, 3, 1).numpy(),
    "y_train": np.array([0, 1, 0, 1]),
    "x_test": IMAGES[:2].permute(0, 2, 3, 1).numpy(),
    "y_test": np.array([0, 1]),
}
CSV = b"a,b,answer\n1,2.5,yes\n3,4e-1,no\n5,-6,yes\n7,8,no\n9,1,yes\n"


WORDS = (
    "\tcolour\tnew\tanswer\n0\tred\ttrue\tyes\n1\tgreen\tfalse\tno\n2\tr\u00f6d\ttrue\tyes\n3\tred\ttrue\tno\n".encode()
)
WORDS_OF_16_BITS = WORDS.decode().encode("utf-16")


def with_file(files: Mapping[str, bytes], name: str, content: bytes) -> dict[str, bytes]:
    return {**files, name: content}


def tree(content: bytes) -> object:
    return TREE.decode(unpack_tree(content, TREE, top="top", origin="here"), "here")


def own(name: str, content: bytes, **settings: Any) -> object:
    path = FOLDER / name
    path.write_bytes(content)
    return own_splits(OwnTask("task", path, **settings))


def own_splits(task: OwnTask) -> object:
    found = read_own_task(task, seed=0)
    assert found.test is not None
    return as_splits(found.train, found.test)


def _typed_tables() -> dict[str, Reader]:
    """Return the readers of Parquet and Arrow, where pyarrow is installed."""
    try:
        import pyarrow
        from pyarrow import feather, parquet
    except ImportError:
        return {}
    table = pyarrow.table({"a": [1.5, 2, 3, 4, 5], "b": [*"xyxxy"], "answer": [*"uvuvu"]})
    readers = {}
    for ending, write in ((".parquet", parquet.write_table), (".feather", feather.write_feather)):
        write(table, str(FOLDER / f"whole{ending}"))

        def read(content: bytes, name: str = f"d{ending}") -> object:
            return own(name, content, table=TableFormat("answer"), test_share=0.4)

        readers[f"own {ending[1:]}"] = Reader(read, ((FOLDER / f"whole{ending}").read_bytes(),))
    return readers


def own_pictures(content: bytes) -> object:
    for name in ("train/a/0.png", "train/b/0.png", "test/a/0.png"):
        path = FOLDER / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if name == "train/a/0.png" else picture(IMAGES[0]))
    return own_splits(OwnTask("task", FOLDER / "tree", channels=3, resize=(8, 8)))


def moving(images: torch.Tensor) -> bytes:
    first, *others = (Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others)
    return buffer.getvalue()


def toml(content: bytes) -> object:
    (FOLDER / "a.csv").write_bytes(CSV)
    path = FOLDER / "tasks.toml"
    path.write_bytes(content)
    experiment = own_experiment((path,))
    return experiment.config("hat").flat()


TOML = b"""name = "mine"
[[task]]
name = "one"
path = "a.csv"
label = "answer"
test_share = 0.4
[training]
epochs = 2
lr = 0.05
[network]
hidden = [8, 8]
[method]
c = 0.5
[method.hat]
s_max = 100.0
"""

DATA: dict[str, Reader] = {
    "idx": Reader(lambda content: decode_idx(unpack(content, "here"), "here"), (encode_idx(IMAGES[:, 0]),)),
    "cifar pickle": Reader(
        lambda content: TWO.decode_python(with_file(PYTHON, "data_batch_1", content)), (PYTHON["data_batch_1"],)
    ),
    "cifar names": Reader(lambda content: TWO.decode_python(with_file(PYTHON, TWO.meta, content)), (PYTHON[TWO.meta],)),
    "cifar binary": Reader(
        lambda content: TWO.decode_binary(with_file(BINARY, "data_batch_1.bin", content)),
        (BINARY["data_batch_1.bin"],),
    ),
    "cifar archive": Reader(
        lambda content: TWO.decode_python_archive({"here": content}), (tar_gz(PYTHON, TWO.python_folder),)
    ),
    "matlab": Reader(
        lambda content: decode_svhn({SVHN_TRAIN: content, SVHN_TEST: content}), (svhn_file(ROWS[:1], [10]),)
    ),
    "npz": Reader(lambda content: decode_npz(content, "here"), (npz(NPZ),)),
    "picture": Reader(
        lambda content: decode_files({"a": content}, PictureForm((8, 8), resize=True), "here"),
        (picture(IMAGES[0]), picture(IMAGES[0], "JPEG"), picture(IMAGES[0, :1])),
    ),
    "picture ppm": Reader(
        lambda content: SIGNS.decode(with_file(SIGN_FILES, f"{FOLDERS[1]}/00000.ppm", content), "here"),
        (ppm(IMAGES[2]),),
    ),
    "signs table": Reader(
        lambda content: SIGNS.decode(with_file(SIGN_FILES, "GT-final_test.csv", content), "here"),
        (SIGN_FILES["GT-final_test.csv"],),
    ),
    "tree": Reader(tree, (zipped(TREE_FILES), tar_gz(TREE_FILES, "top"))),
    "own npz": Reader(
        lambda content: own("a.npz", content),
        (npz(NPZ), npz({**NPZ, "y_train": np.array(list("abab")), "y_test": np.array(list("ab"))})),
    ),
    "own table": Reader(lambda content: own("b.csv", content, table=TableFormat("answer"), test_share=0.4), (CSV,)),
    "own packed table": Reader(
        lambda content: own("b.csv.gz", content, table=TableFormat("answer"), test_share=0.4), (gzip.compress(CSV),)
    ),
    "own table of words": Reader(
        lambda content: own("c.tsv", content, table=TableFormat("answer"), test_share=0.4), (WORDS, WORDS_OF_16_BITS)
    ),
    **_typed_tables(),
    "own pictures": Reader(own_pictures, tuple(picture(IMAGES[1], kind) for kind in ("PNG", "JPEG", "BMP", "WEBP"))),
    "own pictures of other kinds": Reader(
        own_pictures,
        (
            png([[7, 9, 200]], 8, 0, key=[9]),
            png([[70, 65535]], 16, 4),
            tiff([[0, 4095, 5]], 12, 1),
            tiff([[0, 60000]], 16, 1, byte_order=">"),
            picture(torch.cat([IMAGES[1], IMAGES[1, :1]])),
            moving(IMAGES),
        ),
    ),
    "own zip": Reader(lambda content: own("a.zip", content, channels=3, resize=(8, 8)), (zipped(TREE_FILES),)),
    "tasks.toml": Reader(toml, (TOML,)),
}
"""Readers of data, by what they read."""


# --- what hatrack wrote itself


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 2), nn.ReLU())


def saved(kind: type[HATNetwork] | type[WeightMaskedNetwork]) -> bytes:
    net = kind(backbone(), torch.zeros(1, 1))
    net.add_task("a", 1)
    net.consolidate("a")
    net.save(FOLDER / "net.hat")
    return (FOLDER / "net.hat").read_bytes()


def network(content: bytes) -> object:
    (FOLDER / "net.hat").write_bytes(content)
    return hatrack.load(FOLDER / "net.hat", backbone())


def result(content: bytes) -> object:
    (FOLDER / "run.json").write_bytes(content)
    read = read_result(FOLDER / "run.json")
    return read.metrics()


def plan(content: bytes) -> object:
    (FOLDER / "comparison.json").write_bytes(content)
    return read_plan(FOLDER)


def failure(content: bytes) -> object:
    (FOLDER / "failure.json").write_bytes(content)
    return read_failure(FOLDER)


def written(name: str) -> tuple[bytes, ...]:
    write_result(FOLDER / "run.json", of_a_run())
    write_plan(FOLDER, ComparisonPlan.make("demo", ["hat"], [0, 1], {"hat.c": "0.5"}), {"threads": 1})
    write_failure(FOLDER, "it failed")
    return ((FOLDER / name).read_bytes(),)


IDENTITY = Identity("tiny", ("a", "b"), (0.5,) * 3, (0.2,) * 3)


def packed(content: bytes) -> object:
    (FOLDER / "tiny.packed").write_bytes(content)
    return read_packed(FOLDER / "tiny.packed", IDENTITY)


def packed_file() -> bytes:
    labels = torch.arange(4) % 2
    part = PackedPart(IDENTITY, "free", "a file", (2, 2), (2, 2), ImageArrays(IMAGES, labels, IMAGES, labels))
    write_packed(FOLDER / "tiny.packed", part)
    return (FOLDER / "tiny.packed").read_bytes()


def strip(content: bytes) -> object:
    return decode_strips((content,), len(IMAGES), (3, 8, 8), "a strip")


NETWORKS = (saved(HATNetwork), saved(WeightMaskedNetwork))
RECORDS: dict[str, Reader] = {
    "network": Reader(network, NETWORKS),
    "packed part": Reader(packed, (packed_file(),)),
    "strip": Reader(strip, tuple(encode_strips(IMAGES))),
    "run.json": Reader(result, written("run.json")),
    "comparison.json": Reader(plan, written("comparison.json")),
    "failure.json": Reader(failure, written("failure.json")),
}
"""Readers of what hatrack wrote."""

READERS = {**DATA, **RECORDS}
