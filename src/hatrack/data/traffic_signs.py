"""TrafficSigns: the German traffic sign recognition benchmark (GTSRB), 43 classes, as colour images of 32 x 32.

Source: J. Stallkamp, M. Schlipsing, J. Salmen, C. Igel, "Man vs. computer: benchmarking machine learning algorithms for
traffic sign recognition", Neural Networks 32, 2012. Published are pictures of 15 to 250 pixels a side, with a margin
around the sign. Here the **whole** picture is resized to 32 x 32, whatever its proportions; the region of interest that
the csv files give is not cut out.

The 30 pictures of a track show one sign while a car drives by: a random validation split shares tracks with training.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hatrack.data.archives import Limits
from hatrack.data.arrays import ImageArrays
from hatrack.data.pictures import PictureForm, decode_labelled
from hatrack.data.trees import unpack_tree
from hatrack.errors import DataError

__all__ = ["TEST_COUNTS", "TRAIN_COUNTS", "SignLayout", "decode_archives"]

TEST_FOLDER = "GTSRB/Final_Test/Images"
TEST_TABLE = "GT-final_test.csv"
FORM = PictureForm((32, 32), resize=True, formats=("PPM",))

TRAIN_COUNTS = (
    *(210, 2220, 2250, 1410, 1980, 1860, 420, 1440, 1410, 1470, 2010, 1320, 2100, 2160, 780, 630, 420, 1110, 1200),
    *(210, 360, 330, 390, 510, 270, 1500, 600, 240, 540, 270, 450, 780, 240, 689, 420, 1200, 390, 210, 2070, 300),
    *(360, 240, 240),
)
TEST_COUNTS = (
    *(60, 720, 750, 450, 660, 630, 150, 450, 450, 480, 660, 420, 690, 720, 270, 210, 150, 360, 390, 60, 90, 90, 120),
    *(150, 90, 480, 180, 60, 150, 90, 150, 270, 60, 210, 120, 390, 120, 60, 690, 90, 90, 60, 90),
)


@dataclass(frozen=True)
class SignLayout:
    """The published folders, ``train_folder/00000/*.ppm`` with a csv table each, and one table of all test pictures.

    Attributes:
        train_folder: the folder with the folders of the classes.
        train: number of training pictures.
        test: number of test pictures.
        classes: number of classes.
    """

    train_folder: str = "GTSRB/Final_Training/Images"
    train: int = sum(TRAIN_COUNTS)
    test: int = sum(TEST_COUNTS)
    classes: int = len(TRAIN_COUNTS)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Pictures and tables; that of the test pictures may lie at the top, as in its archive, or beside them."""
        return (f"{self.train_folder}/*/*", f"{TEST_FOLDER}/*", f"GTSRB/{TEST_TABLE}", TEST_TABLE)

    @property
    def markers(self) -> tuple[str, ...]:
        """The folders of the pictures."""
        return (f"{self.train_folder}/00000", TEST_FOLDER)

    @property
    def advice(self) -> str:
        """Instruction for a person who lacks the tree."""
        return f"the folders {self.train_folder} and {TEST_FOLDER} and the file {TEST_TABLE}"

    @property
    def limits(self) -> Limits:
        """Limits of a tree that holds as many pictures as there must be, and the tables."""
        return Limits(self.train + self.test + self.classes + 3, 1 << 20, 1 << 30)

    def choose(self, names: Sequence[str]) -> list[str]:
        """Return pictures and the tables of classes; not the published test table that lacks the classes."""
        return [name for name in names if name.endswith((".ppm", TEST_TABLE)) or _is_table_of_a_class(name)]

    def decode(self, contents: Mapping[str, bytes], origin: str) -> ImageArrays:
        """Decode the pictures: training ones in the order of their paths, test ones in that of their names.

        Raises:
            DataError: a table and the pictures do not agree, the numbers are wrong, or a picture is damaged.
        """
        train = dict(self._training_labels(contents, origin))
        test = dict(self._test_labels(contents, origin))
        for part, labels, wanted in (("training", train, self.train), ("test", test, self.test)):
            if len(labels) != wanted:
                raise DataError(f"{origin}: holds {len(labels)} {part} pictures instead of {wanted}; fetch it again")
        return decode_labelled(contents, train, test, FORM, origin)

    def _training_labels(self, contents: Mapping[str, bytes], origin: str) -> Iterator[tuple[str, int]]:
        """Yield every picture with the label of its folder, which its table must repeat."""
        for label in range(self.classes):
            folder = f"{self.train_folder}/{label:05}"
            table = f"{folder}/GT-{label:05}.csv"
            pictures = {path for path in contents if path.startswith(f"{folder}/") and path.endswith(".ppm")}
            if table not in contents:
                raise DataError(f"{origin}: {table} is missing")
            listed = dict(self._rows(contents[table], f"{origin}: {table}"))
            if {f"{folder}/{name}" for name in listed} != pictures:
                raise DataError(f"{origin}: {table} does not list the pictures beside it; fetch it again")
            if set(listed.values()) - {label}:
                raise DataError(f"{origin}: {table} lists pictures of another class; fetch it again")
            yield from ((path, label) for path in pictures)

    def _test_labels(self, contents: Mapping[str, bytes], origin: str) -> Iterator[tuple[str, int]]:
        tables = [path for path in contents if path.endswith(TEST_TABLE)]
        if not tables:
            raise DataError(f"{origin}: {TEST_TABLE} is missing, which GTSRB_Final_Test_GT.zip holds")
        listed = {f"{TEST_FOLDER}/{name}": label for name, label in self._rows(contents[tables[0]], tables[0])}
        pictures = {path for path in contents if path.startswith(f"{TEST_FOLDER}/") and path.endswith(".ppm")}
        if set(listed) != pictures:
            raise DataError(f"{origin}: {TEST_TABLE} does not list the pictures of {TEST_FOLDER}; fetch them again")
        yield from listed.items()

    def _rows(self, table: bytes, origin: str) -> Iterator[tuple[str, int]]:
        """Yield file name and class of every row."""
        seen = set()
        rows = csv.DictReader(io.StringIO(table.decode("latin-1")), delimiter=";")
        try:
            for row in rows:
                name, label = row["Filename"], int(row["ClassId"])
                if not 0 <= label < self.classes:
                    raise DataError(f"{origin}: a class is outside of 0..{self.classes - 1}; fetch the file again")
                if name in seen:
                    raise DataError(f"{origin}: lists {name} twice; fetch the file again")
                seen.add(name)
                yield name, label
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise DataError(f"{origin}: not a table with Filename and ClassId ({error!r}); fetch it again") from error


def _is_table_of_a_class(name: str) -> bool:
    file = name.rpartition("/")[2]
    return file.startswith("GT-0") and file.endswith(".csv")


def decode_archives(contents: Mapping[str, bytes]) -> ImageArrays:
    """Decode the three published archives, given by their names; see :class:`SignLayout`."""
    layout = SignLayout()
    files: dict[str, bytes] = {}
    for name, payload in contents.items():
        files |= unpack_tree(payload, layout, origin=name)
    return layout.decode(files, "GTSRB")
