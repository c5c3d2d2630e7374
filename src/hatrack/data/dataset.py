"""Data sets: labelled images in memory, and the recipe by which they are obtained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import PIL
import torch

from hatrack.data.arrays import ImageArrays
from hatrack.data.files import OFFLINE_VARIABLE, DownloadMonitor, offline
from hatrack.data.packed import Identity, PackedPart, find_packed, packed_files
from hatrack.data.prepared import Decoded, prepared
from hatrack.data.sources import Absence, FileSource, NotFoundError, cache_root
from hatrack.errors import DataError, InputError

__all__ = [
    "CommonForm",
    "DatasetSpec",
    "Decoder",
    "FileVariant",
    "Fitting",
    "ImageArrays",
    "ImageDataset",
    "Loaded",
    "PackedVariant",
    "Variant",
]


class FormSearch:
    """Attempts to obtain the forms of a data set: a context around each gathers why it failed."""

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._errors: list[DataError] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, DataError):  # a damaged form must not hide a sound one
            self._errors.append(error)
            return True
        return False

    def require_no_damage(self, part: Path) -> None:
        """Refuse to take a packed part in the place of a whole form that is there, and damaged or incomplete.

        Args:
            part: the packed file.

        Raises:
            DataError: there is such a form.
        """
        faults = [str(error) for error in self._errors if not isinstance(error, NotFoundError)]
        absences = [error.absence for error in self._errors if isinstance(error, NotFoundError)]
        faults += [fault for absence in absences for fault in absence.faults]
        if faults:
            raise DataError(
                f"{self._dataset}: {'; '.join(dict.fromkeys(faults))}; mend or remove that, for {part} is only a part "
                "and not taken in its place"
            )

    def failure(self) -> DataError:
        """Return the one error that names all places that were searched, all faults there, and the remedy."""
        absences = [error.absence for error in self._errors if isinstance(error, NotFoundError)]
        faults = [str(error) for error in self._errors if not isinstance(error, NotFoundError)]
        if len({str(error) for error in self._errors}) == 1:
            return self._errors[-1]
        if not absences:
            return DataError("; ".join(dict.fromkeys(faults)))
        whole = Absence.of_all(absences)
        whole = dataclasses.replace(whole, faults=tuple(dict.fromkeys((*whole.faults, *faults))))
        return NotFoundError(f"{self._dataset}:", whole)


Decoder: TypeAlias = Callable[[Mapping[str, bytes]], ImageArrays]
"""Turns the verified content of a data set's files, by plain name, into its arrays."""


class Loaded(NamedTuple):
    """The arrays of a data set, and one line on the form in which they were found."""

    arrays: ImageArrays
    origin: str


class Variant(Protocol):
    """One form in which a data set can be had."""

    @property
    def name(self) -> str:
        """Name of the form."""
        ...

    @property
    def downloads(self) -> bool:
        """Return whether the network could provide it."""
        ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """From where the network could provide it."""
        ...

    def load(
        self, dataset: str, data_dir: Path | None, *, download: bool, monitor: DownloadMonitor | None = None
    ) -> Loaded:
        """Obtain the data set in this form.

        Args:
            dataset: name of the data set.
            data_dir: folder to look in before all others, or None.
            download: whether the network may be used.
            monitor: told how downloads go on.

        Raises:
            NotFoundError: this form was found nowhere.
            DataError: it was found damaged.
        """
        ...

    def locate(self, dataset: str, data_dir: Path | None) -> tuple[Path, ...]:
        """Return the files or the folder on this machine from which :meth:`load` would take the data set.

        Published files are verified; trees of pictures are not read.

        Raises:
            NotFoundError: this form was found nowhere.
        """
        ...


@dataclass(frozen=True)
class FileVariant:
    """A form that consists of a few files with known hashes.

    Attributes:
        name: name of the form.
        source: provides the content of its files.
        decode: turns their content into arrays.
        origin: text that results record, by default the name; forms with the same images in the same order share it.
        keep: above 0 if the arrays are kept once decoded, because decoding is slow. Raise it when ``decode`` changes,
            so that what was kept before is no longer used.
    """

    name: str
    source: FileSource
    decode: Decoder
    origin: str = ""
    keep: int = 0

    @property
    def downloads(self) -> bool:
        """Return whether its source can download."""
        return bool(self.addresses)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses of its source."""
        return self.source.addresses

    def load(
        self,
        dataset: str,
        data_dir: Path | None = None,
        *,
        download: bool = True,
        monitor: DownloadMonitor | None = None,
    ) -> Loaded:
        """Fetch, verify and decode the files. See :class:`Variant`."""
        contents = self.source.fetch(dataset, data_dir, download=download, monitor=monitor)
        origin = self.origin or self.name
        if not self.keep:
            return Loaded(self.decode(contents), origin)
        key = f"{self.source.digest} {self.keep} pillow {PIL.__version__}"
        path = cache_root() / dataset / f"{self.name.replace(' ', '-')}.safetensors"
        return Loaded(prepared(path, key, lambda: Decoded(self.decode(contents), self.source.digest)).arrays, origin)

    def locate(self, dataset: str, data_dir: Path | None = None) -> tuple[Path, ...]:
        """Return where the files are. See :class:`Variant`."""
        return self.source.locate(dataset, data_dir)


@dataclass(frozen=True)
class PackedVariant:
    """A form that is a part of the data set: the first sound packed file. See :mod:`hatrack.data.packed`.

    Attributes:
        identity: the data set.
        name: name of the form; of a part that was found its origin, which says what it holds.
    """

    identity: Identity
    name: str = "packed part"

    @property
    def downloads(self) -> bool:
        """False: packed parts are looked for on this machine only."""
        return False

    @property
    def addresses(self) -> tuple[str, ...]:
        """No address: packed parts are looked for on this machine only."""
        return ()

    def find(self, data_dir: Path | None = None) -> tuple[Path, PackedPart]:
        """Return the first sound file, and its content.

        Args:
            data_dir: folder to look in before ``$HATRACK_DATA``, or None.

        Raises:
            DataError: there is none; the message says what is wrong with those that are there.
        """
        return find_packed(self.identity, data_dir)

    def load(
        self,
        dataset: str,
        data_dir: Path | None = None,
        *,
        download: bool = False,
        monitor: DownloadMonitor | None = None,
    ) -> Loaded:
        """Read the first sound file. See :class:`Variant`."""
        _, part = self.find(data_dir)
        return Loaded(part.arrays, part.origin)

    def locate(self, dataset: str, data_dir: Path | None = None) -> tuple[Path, ...]:
        """Return the first sound file, after reading it. See :class:`Variant`."""
        path, _ = self.find(data_dir)
        return (path,)


class Fitting(Enum):
    """Way in which images become 32 x 32."""

    PAD = "pad"
    """Zeros around them."""
    RESIZE = "resize"
    """Bilinear, whatever their proportions."""


@dataclass(frozen=True)
class CommonForm:
    """Way in which images take the form 3 x 32 x 32; see :func:`hatrack.data.as_rgb32`.

    Attributes:
        fitting: treatment of images of another size.
        mean: mean that is published for this form, one value for all channels; empty if none is.
        std: standard deviation, likewise.
    """

    fitting: Fitting = Fitting.RESIZE
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images, held in memory as bytes.

    Attributes:
        name: name of the data set.
        x_train: training images, uint8 ``(N, C, H, W)``, values 0 to 255.
        y_train: their classes, int64 ``(N,)``, indices into ``class_names``.
        x_test: test images, of the same image shape.
        y_test: their classes.
        class_names: the name of each class.
        mean: mean of each channel over the training images, after scaling to [0, 1].
        std: standard deviation of each channel, after scaling to [0, 1].
        origin: one line on the form in which the data set was found, for results to record; empty if unknown.
        common_form: way in which the images take the form that all data sets of a mixture share.
        train_counts: number of training images of every class of the whole, where these are a packed part of it;
            otherwise empty.

    Raises:
        InputError: the arrays do not fit together.
    """

    name: str
    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str = ""
    common_form: CommonForm = CommonForm()
    train_counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for part, x, y in (("training", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            if x.dtype != torch.uint8 or x.dim() != 4:
                raise InputError(
                    f"{self.name}: {part} images must be uint8 (N, C, H, W), not {x.dtype} {tuple(x.shape)}"
                )
            if y.dtype != torch.int64 or y.shape != x.shape[:1]:
                raise InputError(
                    f"{self.name}: {part} labels must be int64 ({len(x)},), not {y.dtype} {tuple(y.shape)}"
                )
            if len(y) and not 0 <= int(y.min()) <= int(y.max()) < len(self.class_names):
                raise InputError(f"{self.name}: {part} labels must lie in 0..{len(self.class_names) - 1}")
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise InputError(f"{self.name}: training and test images differ in shape")
        if not len(self.mean) == len(self.std) == self.x_train.shape[1]:
            raise InputError(
                f"{self.name}: mean and std need one value for each of the {self.x_train.shape[1]} channels"
            )
        if self.train_counts and len(self.train_counts) != len(self.class_names):
            raise InputError(f"{self.name}: the whole needs a count for each of the {len(self.class_names)} classes")

    def require_limit(self, classes: Sequence[int], limit: int) -> None:
        """Check that a packed part has the training images that a limit asks of the whole.

        Args:
            classes: labels of the classes, without others.
            limit: number of training images, balanced over the classes.

        Raises:
            InputError: it has not; the message gives the largest limit of these classes.
        """
        if not self.train_counts:
            return
        here = [int((self.y_train == label).sum()) for label in classes]
        there = [self.train_counts[label] for label in classes]
        short = min((count for count, whole in zip(here, there, strict=True) if count < whole), default=None)
        if short is None:
            return
        # Once the whole gives every class more than the shortest one has here, the part cannot follow.
        if limit <= (most := min(sum(here), sum(min(count, short + 1) for count in there) - 1)):
            return
        raise InputError(
            f"{limit:,} training images (`limit={limit}`) are more than the packed part of {self.name} can give in "
            f"equal parts; ask for {most:,} at most (`limit={most}`), give no limit to take all of it, or get the "
            f"whole data set (`hatrack data fetch {self.name}`); here is a {self.origin}"
        )


@dataclass(frozen=True)
class DatasetSpec:
    """Recipe by which a data set is obtained.

    A data set in another format is another decoder, and one that is published in several forms has several variants;
    neither needs another loader.

    Attributes:
        name: name under which the data set is asked for.
        description: one line on what it holds.
        licence: terms under which it is published.
        class_names: the name of each class, in the order of the labels.
        mean: mean of each channel of the training images, after scaling to [0, 1].
        std: standard deviation of each channel, likewise.
        variants: the whole forms in which it can be had, the preferred one first; a packed part comes after all.
        common_form: way in which the images become 3 x 32 x 32.
    """

    name: str
    description: str
    licence: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    variants: tuple[Variant, ...]
    common_form: CommonForm = CommonForm()

    @property
    def downloads(self) -> bool:
        """Return whether the network could provide it."""
        return any(variant.downloads for variant in self.variants)

    @property
    def packed(self) -> PackedVariant:
        """Form of a packed part, which is taken if no whole form is on this machine."""
        return PackedVariant(Identity(self.name, self.class_names, self.mean, self.std))

    def load(
        self,
        data_dir: Path | None = None,
        *,
        download: bool = True,
        monitor: DownloadMonitor | None = None,
        parts: bool = True,
    ) -> ImageDataset:
        """Obtain the data set: in the first form that is on this machine, or else can be downloaded.

        Args:
            data_dir: folder to look in before all others.
            download: whether files found nowhere may be fetched from the network, unless ``HATRACK_OFFLINE`` is set.
            monitor: told how downloads go on.
            parts: whether a packed part will do where no whole form is on this machine.

        Raises:
            InputError: ``data_dir`` is no folder.
            DataError: a file is missing or damaged; the message says what to do.
        """
        _require_folder(data_dir)
        try:
            (arrays, origin), train_counts = self._load(data_dir, download and not offline(), monitor, parts)
        except NotFoundError as error:
            if download and self.downloads and offline():
                raise error.with_fault(f"{OFFLINE_VARIABLE} is set, so the network was not asked") from error
            raise
        return ImageDataset(
            self.name,
            *arrays,
            class_names=self.class_names,
            mean=self.mean,
            std=self.std,
            origin=origin,
            common_form=self.common_form,
            train_counts=train_counts,
        )

    def locate(self, data_dir: Path | None = None) -> tuple[Variant, tuple[Path, ...]]:
        """Return the form in which :meth:`load` would find the data set on this machine, and where.

        Published files and packed parts are verified; trees of pictures are not read. A packed part's form is named
        after what it holds.

        Args:
            data_dir: folder to look in before all others.

        Raises:
            InputError: ``data_dir`` is no folder.
            NotFoundError: it is not on this machine; the message says what to do.
        """
        _require_folder(data_dir)
        search = FormSearch(self.name)
        for variant in self.variants:
            with search:
                return variant, variant.locate(self.name, data_dir)
        packed = packed_files(self.name, data_dir)
        if packed:
            search.require_no_damage(packed[0])
            with search:
                path, part = self.packed.find(data_dir)
                return dataclasses.replace(self.packed, name=part.origin), (path,)
        raise search.failure()

    def _load(
        self, data_dir: Path | None, download: bool, monitor: DownloadMonitor | None, parts: bool
    ) -> tuple[Loaded, tuple[int, ...]]:
        """Return the data set, and of a packed part the number of training images of every class of the whole."""
        packed = packed_files(self.name, data_dir) if parts else []
        if not packed:
            return self._load_whole(data_dir, download, monitor), ()
        search = FormSearch(self.name)
        with search:
            return self._load_whole(data_dir, False, monitor), ()
        search.require_no_damage(packed[0])
        with search:
            _, part = self.packed.find(data_dir)
            return Loaded(part.arrays, part.origin), part.train_counts
        if download and self.downloads:
            with search:
                return self._load_whole(data_dir, True, monitor), ()
        raise search.failure()

    def _load_whole(self, data_dir: Path | None, download: bool, monitor: DownloadMonitor | None) -> Loaded:
        if len(self.variants) == 1:  # nothing to choose from, so its own error says it best
            return self.variants[0].load(self.name, data_dir, download=download, monitor=monitor)
        search = FormSearch(self.name)
        for downloading in (False, True) if download else (False,):
            for variant in self.variants:
                if downloading and not variant.downloads:
                    continue
                with search:
                    return variant.load(self.name, data_dir, download=downloading, monitor=monitor)
        raise search.failure()


def _require_folder(data_dir: Path | None) -> None:
    if data_dir is not None and not data_dir.is_dir():
        raise InputError(f"the data folder {data_dir} does not exist; give an existing folder as `data_dir`")
