"""FaceScrub: the faces of the 100 people of whom there are most pictures, as colour images of 32 x 32.

Source: H.-W. Ng, S. Winkler, "A data-driven approach to cleaning large face datasets", ICIP 2014. It is published as a
list of addresses, so everybody's set is another one, and there is no published hash: any folder of cut-out faces, one
folder for each person, is read, and results record its digest. A tenth is set aside for testing, as in the HAT paper
(20,600 and 2,289 there).
"""

from __future__ import annotations

from hatrack.data.class_folders import ClassFolders
from hatrack.data.dataset import DatasetSpec
from hatrack.data.pictures import PictureForm
from hatrack.data.trees import PictureTree

__all__ = ["FACESCRUB"]

PEOPLE = 100

FACESCRUB = DatasetSpec(
    name="facescrub",
    description="faces of the 100 people of most pictures, resized to 32 x 32 colour, about 20,600 + 2,289",
    licence="the list is CC BY-NC-ND 4.0, the pictures are their owners'; cite H.-W. Ng and S. Winkler, 2014",
    # Who the 100 are depends on the pictures that could still be fetched: numbered in alphabetical order.
    class_names=tuple(f"person {number:03}" for number in range(PEOPLE)),
    mean=(0.5163, 0.5569, 0.4695),
    std=(0.2307, 0.2272, 0.2479),
    variants=(
        PictureTree(
            name="pictures",
            archives=("facescrub.zip", "facescrub.tar.gz"),
            folders=("facescrub", "FaceScrub"),
            layout=ClassFolders(
                classes=PEOPLE,
                form=PictureForm((32, 32), resize=True),
                test_every=10,
                total=60_000,
                file_bytes=1 << 23,
                total_bytes=1 << 31,
                below=("", "*/faces", "*"),
            ),
            top="facescrub",
        ),
    ),
)
