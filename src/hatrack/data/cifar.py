"""CIFAR-10 and CIFAR-100: 32 x 32 colour images of 10 and of 100 classes, 50,000 for training and 10,000 for testing.

Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", University of Toronto, 2009. Both are
published as pickles for Python and as a binary version, each in one archive; many tools keep the unpacked folders. The
pixels and labels of all of these are the same. Trees of picture files are read too.

A pickle holds a dictionary with ``data``, bytes ``(N, 3072)``, each row an image's red, green and blue values, row by
row, and a list of labels. The binary version holds one record per image: its label, in one byte, or in two of which
the second counts (CIFAR-100 puts the superclass first), and then the same 3072 bytes.

The hashes are those that several independent libraries publish; of the files unpacked from the Python archives only MD5
sums are public.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hatrack.data.archives import read_tar_gz
from hatrack.data.dataset import DatasetSpec, Decoder, FileVariant, ImageArrays, Variant
from hatrack.data.files import DataFile
from hatrack.data.pickles import load_pickle
from hatrack.data.pictures import PictureLayout
from hatrack.data.sources import PublishedFiles
from hatrack.data.trees import PictureTree
from hatrack.errors import DataError

__all__ = ["CIFAR10", "CIFAR10_FORMAT", "CIFAR100", "CIFAR100_FORMAT", "CifarFormat"]

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
ARCHIVE_LIMIT = 1 << 28
"""Largest size of an archive, unpacked: the real ones have 190 million bytes."""


@dataclass(frozen=True)
class CifarFormat:
    """Layout of one of the two sets; its methods are decoders.

    Attributes:
        class_names: the names of the classes, which the files must repeat.
        python_folder: the folder in the archive for Python.
        binary_folder: the folder in the archive of the binary version.
        train: names of the training files; those of the binary version end in ``.bin``.
        test: name of the test file, likewise.
        meta: name of the pickle with the names of the classes.
        labels_key: key of the labels in a pickle.
        names_key: key of the names of the classes in ``meta``.
        binary_names: name of the binary version's text file with the names of the classes, one a line.
        label_bytes: bytes before the pixels in a record of the binary version; the last one is the label.
        train_rows: images in each training file.
        test_rows: images in the test file.
    """

    class_names: tuple[str, ...]
    python_folder: str
    binary_folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels_key: str
    names_key: str
    binary_names: str
    label_bytes: int
    train_rows: int
    test_rows: int

    def decode_python_archive(self, contents: Mapping[str, bytes]) -> ImageArrays:
        """Decode the archive for Python, the only entry of ``contents``. See :meth:`decode_python`."""
        return self.decode_python(self._unpacked(contents, self.python_folder, (*self.train, self.test, self.meta)))

    def decode_binary_archive(self, contents: Mapping[str, bytes]) -> ImageArrays:
        """Decode the archive of the binary version, the only entry of ``contents``. See :meth:`decode_binary`."""
        names = (*(f"{name}.bin" for name in (*self.train, self.test)), self.binary_names)
        return self.decode_binary(self._unpacked(contents, self.binary_folder, names))

    def decode_python(self, contents: Mapping[str, bytes]) -> ImageArrays:
        """Decode the files for Python.

        Args:
            contents: content of each file by its name.

        Returns:
            Images uint8 ``(N, 3, 32, 32)`` and labels int64 ``(N,)``.

        Raises:
            DataError: a file is no such pickle, or its images, labels or names of classes are not what they should be.
        """
        names = load_pickle(contents[self.meta], self.meta).get(self.names_key)
        self._require_names([_text(name) for name in names] if isinstance(names, list) else [], self.meta)
        parts = {name: self._read_pickle(contents[name], name) for name in (*self.train, self.test)}
        return self._arrays(parts, [*self.train], self.test)

    def decode_binary(self, contents: Mapping[str, bytes]) -> ImageArrays:
        """Decode the files of the binary version.

        Args:
            contents: content of each file by its name; the one with the names of the classes may be left out.

        Returns:
            As :meth:`decode_python`.

        Raises:
            DataError: a file has another size than it should, or its labels or names of classes are wrong.
        """
        if self.binary_names in contents:
            lines = contents[self.binary_names].decode("latin-1").split("\n")
            self._require_names([line.strip() for line in lines if line.strip()], self.binary_names)
        train = [f"{name}.bin" for name in self.train]
        test = f"{self.test}.bin"
        parts = {name: self._read_records(contents[name], name) for name in (*train, test)}
        return self._arrays(parts, train, test)

    def _unpacked(self, contents: Mapping[str, bytes], folder: str, names: Sequence[str]) -> dict[str, bytes]:
        ((archive, payload),) = contents.items()
        within = {f"{folder}/{name}": name for name in names}
        members = read_tar_gz(payload, within.keys(), limit=ARCHIVE_LIMIT, origin=archive)
        return {within[path]: content for path, content in members.items()}

    def _rows(self, name: str) -> int:
        return self.test_rows if name.removesuffix(".bin") == self.test else self.train_rows

    def _read_pickle(self, content: bytes, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        entry = load_pickle(content, name)
        rows, labels = entry.get("data"), entry.get(self.labels_key)
        wanted = (self._rows(name), PIXELS)
        if not isinstance(rows, torch.Tensor) or tuple(rows.shape) != wanted:
            found = f"of shape {tuple(rows.shape)}" if isinstance(rows, torch.Tensor) else "missing"
            raise DataError(f"{name}: its images are {found}, not of shape {wanted}; fetch the file again")
        if not isinstance(labels, list) or len(labels) != len(rows) or not all(type(one) is int for one in labels):
            raise DataError(f"{name}: does not hold {len(rows)} whole numbers as {self.labels_key}; fetch it again")
        if not all(0 <= label < len(self.class_names) for label in labels):
            raise _out_of_range(name, len(self.class_names))
        return rows, torch.tensor(labels)

    def _read_records(self, content: bytes, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.label_bytes + PIXELS
        wanted = self._rows(name) * size
        if len(content) != wanted:
            raise DataError(f"{name}: has {len(content)} bytes, not {wanted}; fetch the file again")
        records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, size)
        labels = records[:, self.label_bytes - 1].long()
        if int(labels.max()) >= len(self.class_names):
            raise _out_of_range(name, len(self.class_names))
        return records[:, self.label_bytes :], labels

    def _require_names(self, found: list[str], name: str) -> None:
        if tuple(found) != self.class_names:
            pairs = zip(found, self.class_names, strict=False)
            first = next(
                (f"{theirs!r} for {ours!r}" for theirs, ours in pairs if theirs != ours), f"{len(found)} names"
            )
            raise DataError(
                f"{name}: does not name the {len(self.class_names)} classes as it should ({first}); fetch it again"
            )

    def _arrays(
        self, parts: Mapping[str, tuple[torch.Tensor, torch.Tensor]], train: Sequence[str], test: str
    ) -> ImageArrays:
        x_train = torch.cat([parts[name][0] for name in train]).reshape(-1, *SHAPE)
        y_train = torch.cat([parts[name][1] for name in train])
        x_test, y_test = parts[test]
        for part, labels in (("training", y_train), ("test", y_test)):
            counts = labels.bincount(minlength=len(self.class_names))
            if counts.min() != counts.max():
                raise DataError(
                    f"{part} images: of one class there are {counts.min()}, of another {counts.max()}, which should be "
                    "the same; fetch the files again"
                )
        return ImageArrays(x_train, y_train, x_test.reshape(-1, *SHAPE).contiguous(), y_test)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _out_of_range(name: str, classes: int) -> DataError:
    return DataError(f"{name}: a label is outside of 0..{classes - 1}; fetch the file again")


PUBLISHER = "https://www.cs.toronto.edu/~kriz/"

CIFAR10_FORMAT = CifarFormat(
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    python_folder="cifar-10-batches-py",
    binary_folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    meta="batches.meta",
    labels_key="labels",
    names_key="label_names",
    binary_names="batches.meta.txt",
    label_bytes=1,
    train_rows=10_000,
    test_rows=10_000,
)

_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

CIFAR100_FORMAT = CifarFormat(
    class_names=tuple(_CIFAR100_CLASSES.split()),
    python_folder="cifar-100-python",
    binary_folder="cifar-100-binary",
    train=("train",),
    test="test",
    meta="meta",
    labels_key="fine_labels",
    names_key="fine_label_names",
    binary_names="fine_label_names.txt",
    label_bytes=2,
    train_rows=50_000,
    test_rows=10_000,
)


def _variants(
    layout: CifarFormat,
    folders: tuple[str, ...],
    *,
    python: DataFile,
    python_files: tuple[DataFile, ...],
    binary: DataFile,
    binary_files: tuple[DataFile, ...],
    pictures: PictureTree,
) -> tuple[Variant, ...]:
    """Return the forms of one of the two sets: without loss first, and of those the one that can be downloaded."""

    def archive(file: DataFile, *mirrors: str) -> PublishedFiles:
        return PublishedFiles((file,), folders, mirrors, wanted=file.name)

    def unpacked(folder: str, files: tuple[DataFile, ...]) -> PublishedFiles:
        within = (folder, *(f"{name}/{folder}" for name in folders))
        return PublishedFiles(files, within, (), wanted=f"the folder {folder}")

    def form(name: str, source: PublishedFiles, decode: Decoder) -> FileVariant:
        return FileVariant(name, source, decode, origin="original images")

    return (
        form("python version", archive(python, PUBLISHER), layout.decode_python_archive),
        form("python version, unpacked", unpacked(layout.python_folder, python_files), layout.decode_python),
        form("binary version", archive(binary), layout.decode_binary_archive),
        form("binary version, unpacked", unpacked(layout.binary_folder, binary_files), layout.decode_binary),
        pictures,
    )


CIFAR10 = DatasetSpec(
    name="cifar10",
    description="photographs of animals and vehicles, 32 x 32 colour, 50,000 + 10,000, 10 classes",
    licence="none stated; cite A. Krizhevsky, 2009",
    class_names=CIFAR10_FORMAT.class_names,
    mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
    std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
    variants=_variants(
        CIFAR10_FORMAT,
        ("cifar10", "CIFAR10"),
        python=DataFile(
            "cifar-10-python.tar.gz",
            sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            archive=True,
        ),
        python_files=(
            DataFile("data_batch_1", md5="c99cafc152244af753f735de768cd75f"),
            DataFile("data_batch_2", md5="d4bba439e000b95fd0a9bffe97cbabec"),
            DataFile("data_batch_3", md5="54ebc095f3ab1f0389bbae665268c751"),
            DataFile("data_batch_4", md5="634d18415352ddfa80567beed471001a"),
            DataFile("data_batch_5", md5="482c414d41f54cd18b22e5b47cb7c3cb"),
            DataFile("test_batch", md5="40351d587109b95175f43aff81a1287e"),
            DataFile("batches.meta", md5="5ff9c542aee3614f3951f8cda6e48888"),
        ),
        binary=DataFile(
            "cifar-10-binary.tar.gz",
            sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            archive=True,
        ),
        binary_files=(
            DataFile("data_batch_1.bin", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
            DataFile("data_batch_2.bin", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
            DataFile("data_batch_3.bin", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
            DataFile("data_batch_4.bin", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
            DataFile("data_batch_5.bin", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
            DataFile("test_batch.bin", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
        ),
        pictures=PictureTree(
            name="pictures",
            archives=("cifar10-jpeg.zip", "cifar10.zip"),
            folders=("cifar10", "CIFAR10", "cifar10-jpeg"),
            layout=PictureLayout(CIFAR10_FORMAT.class_names, train=5000, test=1000, size=(32, 32)),
            known={
                "50ad6748b6e21784d69d60c380dbc30b9b8ec21336aff1d7db52f1607abb89c4": (
                    "JPEG re-encoding: accuracies a little below the lossless set's"
                )
            },
        ),
    ),
)

CIFAR100 = DatasetSpec(
    name="cifar100",
    description="photographs of things, plants and creatures, 32 x 32 colour, 50,000 + 10,000, 100 classes",
    licence="none stated; cite A. Krizhevsky, 2009",
    class_names=CIFAR100_FORMAT.class_names,
    mean=CIFAR10.mean,  # the HAT paper prepares both sets with the constants of the first
    std=CIFAR10.std,
    variants=_variants(
        CIFAR100_FORMAT,
        ("cifar100", "CIFAR100"),
        python=DataFile(
            "cifar-100-python.tar.gz",
            sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            archive=True,
        ),
        python_files=(
            DataFile("train", md5="16019d7e3df5f24257cddd939b257f8d"),
            DataFile("test", md5="f0ef6b0ae62326f3e7ffdfab6717acfc"),
            DataFile("meta", md5="7973b15100ade9c7d40fb424638fde48"),
        ),
        binary=DataFile(
            "cifar-100-binary.tar.gz",
            sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            archive=True,
        ),
        binary_files=(
            DataFile("train.bin", "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29"),
            DataFile("test.bin", "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a"),
        ),
        pictures=PictureTree(
            name="pictures",
            archives=("cifar100.zip",),
            folders=("cifar100", "CIFAR100"),
            layout=PictureLayout(CIFAR100_FORMAT.class_names, train=500, test=100, size=(32, 32)),
        ),
    ),
)
