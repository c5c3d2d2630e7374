"""NotMNIST: the letters A to J in many typefaces, 28 x 28 grey.

Source: Y. Bulatov, "notMNIST dataset", 2011. The HAT paper uses the smaller, hand-cleaned of the two published sets
(notMNIST_small: 18,724 pictures and two empty files), which has no test part; a tenth is set aside here, as there. A
sample of 10,000 letters as idx files is divided 80/20. The larger, uncleaned set is not read.
"""

from __future__ import annotations

from collections.abc import Mapping

from hatrack.data.arrays import ImageArrays, every_nth_of_each_class
from hatrack.data.class_folders import ClassFolders
from hatrack.data.dataset import CommonForm, DatasetSpec, FileVariant, Fitting
from hatrack.data.files import DataFile
from hatrack.data.idx import decode_idx
from hatrack.data.mnist import TEST_IMAGES, TEST_LABELS
from hatrack.data.pictures import PictureForm
from hatrack.data.sources import PublishedFiles
from hatrack.data.trees import PictureTree, unpack_tree
from hatrack.errors import DataError

__all__ = ["NOTMNIST", "SMALL", "decode_sample"]

LETTERS = tuple("ABCDEFGHIJ")
SMALL_COUNTS = (1872, 1873, 1873, 1873, 1873, 1872, 1872, 1872, 1872, 1872)
TOP = "notMNIST_small"

SMALL = ClassFolders(
    classes=LETTERS,
    form=PictureForm((28, 28), channels=1),
    test_every=10,
    total=sum(SMALL_COUNTS) + 2,
    counts=SMALL_COUNTS,
    empty=("A/RGVtb2NyYXRpY2FCb2xkT2xkc3R5bGUgQm9sZC50dGY=.png", "F/Q3Jvc3NvdmVyIEJvbGRPYmxpcXVlLnR0Zg==.png"),
)


def decode_sample(contents: Mapping[str, bytes]) -> ImageArrays:
    """Decode the one pair of idx files of the sample; of each letter, every fifth image is for testing.

    Args:
        contents: decompressed content of both files by plain name.

    Raises:
        DataError: a file is not idx, has another number of axes than it should, or holds other labels.
    """
    images, labels = (decode_idx(contents[name], name) for name in (TEST_IMAGES, TEST_LABELS))
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        raise DataError(f"{TEST_IMAGES}: {tuple(images.shape)} images and {tuple(labels.shape)} labels do not fit")
    if len(labels) == 0 or int(labels.max()) >= len(LETTERS):
        raise DataError(f"{TEST_LABELS}: a label is outside of 0..{len(LETTERS) - 1}; fetch the file again")
    return every_nth_of_each_class(images.unsqueeze(1), labels.long(), 5)


def _decode_small(contents: Mapping[str, bytes]) -> ImageArrays:
    ((name, payload),) = contents.items()
    return SMALL.decode(unpack_tree(payload, SMALL, top=TOP, origin=name), name)


NOTMNIST = DatasetSpec(
    name="notmnist",
    description="letters A to J in many typefaces, 28 x 28 grey, 16,854 + 1,870 (or a sample: 8,000 + 2,000)",
    licence="none stated; cite Y. Bulatov, 2011",
    class_names=LETTERS,
    mean=(0.4254,),
    std=(0.4501,),
    common_form=CommonForm(Fitting.RESIZE),
    variants=(
        FileVariant(
            name="notMNIST_small",
            source=PublishedFiles(
                files=(DataFile("notMNIST_small.tar.gz", md5="c9890a473a9769fda4bdf314aaf500dd", archive=True),),
                folders=("notmnist", "notMNIST", "NotMNIST"),
                mirrors=(
                    "http://yaroslavvb.com/upload/notMNIST/",
                    "https://commondatastorage.googleapis.com/books1000/",
                ),
                wanted="notMNIST_small.tar.gz",
            ),
            decode=_decode_small,
            keep=1,
        ),
        PictureTree(
            name="pictures",
            archives=("notMNIST_small.zip",),
            folders=("notMNIST_small", "notmnist/notMNIST_small", "notmnist", "notMNIST/notMNIST_small"),
            layout=SMALL,
            top=TOP,
        ),
        FileVariant(
            name="sample of 10,000",
            source=PublishedFiles(
                files=(
                    DataFile(TEST_IMAGES, "8e7f38ae95cc8f48e0986175ffc9137e5007ebcf3d8fdf6656c904eb9dab198b", ".gz"),
                    DataFile(TEST_LABELS, "5f8e6012f2ce730700d8d05fca098bc47f71d25b890e4bec7ac5ebfd614a4001", ".gz"),
                ),
                folders=("notmnist-10k", "notmnist"),
                mirrors=(),
                wanted=f"the folder notmnist-10k with {TEST_IMAGES}.gz and {TEST_LABELS}.gz",
            ),
            decode=decode_sample,
            origin="a sample of 10,000, divided 80/20",
        ),
    ),
)
