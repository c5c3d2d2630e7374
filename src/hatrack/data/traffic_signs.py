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
from hatrack.data.dataset import DatasetSpec, FileVariant
from hatrack.data.files import DataFile
from hatrack.data.pictures import PictureForm, PictureLayout, decode_labelled
from hatrack.data.sources import PublishedFiles
from hatrack.data.trees import PictureTree, unpack_tree
from hatrack.errors import DataError

__all__ = ["TRAFFIC_SIGNS", "SignLayout"]

PUBLISHER = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
TEST_FOLDER = "GTSRB/Final_Test/Images"
TEST_TABLE = "GT-final_test.csv"
FORM = PictureForm((32, 32), resize=True, formats=("PPM",))

_CLASSES = """
speed limit 20, speed limit 30, speed limit 50, speed limit 60, speed limit 70, speed limit 80, end of speed limit 80,
speed limit 100, speed limit 120, no passing, no passing by lorries, right of way at the next crossing, priority road,
yield, stop, no vehicles, no lorries, no entry, danger, bend to the left, bend to the right, double bend, bumpy road,
slippery road, road narrows on the right, road works, traffic lights, pedestrians, children, bicycles, ice or snow,
wild animals, end of all limits, turn right ahead, turn left ahead, straight ahead, straight or right,
straight or left, keep right, keep left, roundabout, end of no passing, end of no passing by lorries
"""
CLASS_NAMES = tuple(_CLASSES.strip().replace("\n", " ").split(", "))

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
    classes: int = len(CLASS_NAMES)

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


def _decode_archives(contents: Mapping[str, bytes]) -> ImageArrays:
    layout = SignLayout()
    files: dict[str, bytes] = {}
    for name, payload in contents.items():
        files |= unpack_tree(payload, layout, origin=name)
    return layout.decode(files, "GTSRB")


TRAFFIC_SIGNS = DatasetSpec(
    name="traffic-signs",
    description="German traffic signs (GTSRB) resized to 32 x 32 colour, 39,209 + 12,630, 43 classes",
    licence="none stated; cite J. Stallkamp et al., 2012",
    class_names=CLASS_NAMES,
    mean=(0.3398, 0.3117, 0.3210),
    std=(0.2755, 0.2647, 0.2712),
    variants=(
        FileVariant(
            name="published archives",
            source=PublishedFiles(
                files=(
                    DataFile("GTSRB_Final_Training_Images.zip", md5="f33fd80ac59bff73c82d25ab499e03a3", archive=True),
                    DataFile("GTSRB_Final_Test_Images.zip", md5="c7e4e6327067d32654124b0fe9e82185", archive=True),
                    DataFile("GTSRB_Final_Test_GT.zip", md5="fe31e9c9270bbcd7b84b7f21a9d9d9e5", archive=True),
                ),
                folders=("traffic-signs", "gtsrb", "GTSRB"),
                mirrors=(PUBLISHER,),
                wanted="GTSRB_Final_Training_Images.zip, GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip",
            ),
            decode=_decode_archives,
            origin="original pictures, resized",
            keep=1,
        ),
        PictureTree("published folders", (), ("traffic-signs", "gtsrb"), SignLayout()),
        PictureTree(
            name="pictures",
            archives=("gtsrb-32x32.zip", "traffic-signs.zip", "gtsrb.zip"),
            folders=("traffic-signs", "gtsrb", "GTSRB", "gtsrb-32x32"),
            layout=PictureLayout(
                tuple(f"{label:02}" for label in range(len(CLASS_NAMES))), TRAIN_COUNTS, TEST_COUNTS, (32, 32)
            ),
            known={"0de72ad6fe331ee308836e91deeba977b39a623f644dc9f311acc32f11a58f20": "JPEG re-encoding at 32 x 32"},
        ),
        # torchvision fetches the smaller training part of the competition: 26,640 pictures
        PictureTree(
            name="folders of torchvision",
            archives=(),
            folders=("traffic-signs", "gtsrb"),
            layout=SignLayout(train_folder="GTSRB/Training", train=26_640),
        ),
    ),
)
