"""Data sets of one's own, from what people have: torch's data sets, tensors, npz files, folders of pictures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps

from hatrack.data.arrays import ImageArrays, channel_statistics, note_of_identical
from hatrack.data.dataset import CommonForm, ImageDataset
from hatrack.data.file_trees import FolderFiles, file_tree
from hatrack.data.files import read_payload
from hatrack.data.npz import decode_npz
from hatrack.data.picture_folders import PICTURE_LIMITS, picture_classes, picture_parts, warn_of_passed_over
from hatrack.data.pictures import PictureForm, decode_seen
from hatrack.errors import DataError, InputError

__all__ = ["MapStyle", "from_dataset", "from_huggingface", "from_npz", "from_pictures"]

MapStyle: TypeAlias = Any
"""Any object with ``len`` and ``[]`` that gives pairs of a picture and its label; or a pair of all of both."""

Constants: TypeAlias = "tuple[float, ...] | None"


def from_dataset(
    name: str,
    train: MapStyle,
    test: MapStyle,
    *,
    class_names: Sequence[str] | None = None,
    mean: Constants = None,
    std: Constants = None,
    common_form: CommonForm = CommonForm(),  # noqa: B008 - it cannot be changed
) -> ImageDataset:
    """Make a data set of what is at hand; it is gone through once and kept in memory as bytes.

    Pictures may be tensors ``(C, H, W)`` or ``(H, W)``, arrays ``(H, W, C)`` or ``(H, W)``, or PIL pictures; bytes, or
    floats in [0, 1], which are rounded to bytes. So leave out transforms that normalise or augment. PIL pictures are
    turned as their EXIF data say, if they still have them.

    Args:
        name: name of the data set.
        train: the training part: a map-style data set such as torchvision's, whose items are pairs of a picture and a
            whole number, or a pair of all pictures ``(N, …)`` and all labels ``(N,)``.
        test: the test part, likewise.
        class_names: the name of each class; by default those that ``train.classes`` gives, or the numbers.
        mean: mean of each channel, after scaling to [0, 1]; by default, of the training images.
        std: standard deviation of each channel, likewise.
        common_form: way in which the images become 3 x 32 x 32; see :func:`hatrack.data.as_rgb32`.

    Raises:
        InputError: an item is no such pair, a picture is of another shape than the first, its values are out of range,
            or the labels and the names of classes do not fit.
    """
    x_train, y_train = _part(train, f"{name}: training")
    x_test, y_test = _part(test, f"{name}: test")
    if class_names is None:
        class_names = _names_of(train, 1 + max(int(y_train.max()), int(y_test.max())))
    return _assembled(name, ImageArrays(x_train, y_train, x_test, y_test), class_names, mean, std, common_form, "own")


def from_huggingface(
    name: str,
    source: str | Mapping[str, Any],
    *,
    image: str = "image",
    label: str = "label",
    train: str = "train",
    test: str = "test",
    mean: Constants = None,
    std: Constants = None,
) -> ImageDataset:
    """Make a data set of one of the ``datasets`` library.

    Args:
        name: name of the data set.
        source: a ``DatasetDict`` or another mapping of splits; or the name of a data set on the hub, for which the
            library must be there: ``pip install 'hatrack[huggingface]'``.
        image: the column of the pictures.
        label: the column of the labels.
        train: the split for training.
        test: the split for testing.
        mean: mean of each channel, after scaling to [0, 1]; None takes that of the training images.
        std: standard deviation of each channel, likewise.

    Raises:
        InputError: the library, a split or a column is missing, or as :func:`from_dataset`.
    """
    splits = _from_hub(source) if isinstance(source, str) else source
    for split in (train, test):
        if split not in splits:
            raise InputError(f"{name}: there is no split {split!r}; choose from {', '.join(map(str, splits))}")
    parts = {split: _Columns(splits[split], image, label, f"{name}: {split}") for split in (train, test)}
    return from_dataset(name, parts[train], parts[test], class_names=parts[train].classes, mean=mean, std=std)


def from_npz(
    name: str,
    path: Path | str,
    *,
    class_names: Sequence[str] | None = None,
    mean: Constants = None,
    std: Constants = None,
) -> ImageDataset:
    """Make a data set of an npz file with ``x_train y_train x_test y_test``; pickled arrays are refused.

    Args:
        name: name of the data set.
        path: the file: images as bytes ``(N, H, W)`` or ``(N, H, W, C)``, labels whole numbers from 0.
        class_names: the name of each class; by default the numbers.
        mean: mean of each channel, after scaling to [0, 1]; None takes that of the training images.
        std: standard deviation of each channel, likewise.

    Raises:
        DataError: the file cannot be read, is damaged, or holds other arrays.
    """
    arrays = decode_npz(read_payload(Path(path)), str(path), classes=len(class_names) if class_names else None)
    names = class_names or _names_of(None, 1 + max(int(arrays.y_train.max()), int(arrays.y_test.max())))
    return _assembled(name, arrays, names, mean, std, CommonForm(), "own npz file")


def from_pictures(
    name: str,
    path: Path | str,
    *,
    size: tuple[int, int],
    channels: int = 3,
    mean: Constants = None,
    std: Constants = None,
) -> ImageDataset:
    """Make a data set of pictures ``train/CLASS/*`` and ``test/CLASS/*``, in a folder or in a zip or tar.gz archive.

    PNG, JPEG, GIF, BMP, TIFF, WebP, PNM and a few other kinds of files are read, as they are seen: turned as their EXIF
    data say, transparent parts on white (on black where on white nothing is seen), 16 bits scaled to 8, and the first
    picture of one that moves. What is hidden is passed over; what else is not read is said in a warning, and so are
    test pictures that are training pictures, too. A folder ``val`` stands for ``test`` where there is none.

    Args:
        name: name of the data set.
        path: the folder or archive.
        size: width and height to which pictures of other sizes are resized.
        channels: 3, or 1 for grey.
        mean: mean of each channel, after scaling to [0, 1]; None takes that of the training images.
        std: standard deviation of each channel, likewise.

    Raises:
        DataError: there is no such folder or archive, it is damaged, a picture cannot be read rightly, a class has no
            pictures, some lie deeper, or ``test`` has a class that ``train`` lacks.
    """
    path = Path(path)
    tree = FolderFiles(path, PICTURE_LIMITS) if path.is_dir() else file_tree(path, PICTURE_LIMITS)
    if picture_parts(tree).test is None:
        raise DataError(f"{path}: holds no pictures train/CLASS/*.png and test/CLASS/*.png (or .jpg, .tif and others)")
    found = picture_classes(tree)
    warn_of_passed_over(found, tree)
    train, test = found.pictures
    unknown = set(test) - set(train)
    if unknown:
        raise DataError(f"{path}: there is a class {min(unknown)!r} in test, but not in train")
    label_of = {folder: label for label, folder in enumerate(train)}
    labels = [{file: label_of[folder] for folder, files in part.items() for file in files} for part in found.pictures]
    paths = [sorted(part) for part in labels]
    images = decode_seen(tree, [*paths[0], *paths[1]], PictureForm(size, resize=True, channels=channels))
    x_train, x_test = torch.split(images, [len(part) for part in paths])
    if note := note_of_identical(x_train, x_test, *paths):
        warnings.warn(f"{path}: {note}", stacklevel=2)
    y_train, y_test = (torch.tensor([part[file] for file in sorted(part)]) for part in labels)
    arrays = ImageArrays(x_train, y_train, x_test, y_test)
    return _assembled(name, arrays, list(train), mean, std, CommonForm(), "own pictures")


class _Columns:
    """Two columns of a table as a map-style data set."""

    def __init__(self, table: Any, image: str, label: str, origin: str) -> None:
        columns = list(getattr(table, "column_names", None) or (table[0] if len(table) else ()))
        for column in (image, label):
            if column not in columns:
                raise InputError(f"{origin}: there is no column {column!r}; choose from {', '.join(columns)}")
        self._table, self._image, self._label = table, image, label
        names = getattr((getattr(table, "features", None) or {}).get(label), "names", None)
        self.classes: list[str] | None = list(names) if names else None

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self._table[index]
        return row[self._image], row[self._label]


def _from_hub(source: str) -> Mapping[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{source}: needs the library datasets; pip install 'hatrack[huggingface]'") from error
    splits: Mapping[str, Any] = datasets.load_dataset(source)
    return splits


def _assembled(
    name: str,
    arrays: ImageArrays,
    class_names: Sequence[str],
    mean: Constants,
    std: Constants,
    common_form: CommonForm,
    origin: str,
) -> ImageDataset:
    measured = channel_statistics(arrays.x_train)
    return ImageDataset(
        name,
        *arrays,
        class_names=tuple(class_names),
        mean=measured[0] if mean is None else tuple(mean),
        std=measured[1] if std is None else tuple(std),
        origin=origin,
        common_form=common_form,
    )


def _names_of(part: MapStyle, classes: int) -> list[str]:
    names = getattr(part, "classes", None)
    return list(map(str, names)) if names else [str(label) for label in range(classes)]


def _part(part: MapStyle, origin: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images and labels of one part."""
    if isinstance(part, tuple) and len(part) == 2:
        pictures, labels = part
    else:
        try:
            length = len(part)
        except TypeError as error:
            raise InputError(f"{origin} part has no length; give a map-style data set or a pair of tensors") from error
        items = [_item(part[index], f"{origin} item {index}") for index in range(length)]
        pictures, labels = [picture for picture, _ in items], [label for _, label in items]
    if len(pictures) == 0 or len(pictures) != len(labels):
        raise InputError(f"{origin} part has {len(pictures)} pictures and {len(labels)} labels")
    images = [_image(picture, f"{origin} picture {index}") for index, picture in enumerate(pictures)]
    for index, image in enumerate(images):
        if image.shape != images[0].shape:
            raise InputError(
                f"{origin} picture {index} has the shape {tuple(image.shape)}, the first {tuple(images[0].shape)}; "
                "resize them in the data set's transform"
            )
    return torch.stack(images), torch.tensor([_label(label, f"{origin} label {i}") for i, label in enumerate(labels)])


def _item(item: Any, origin: str) -> tuple[Any, Any]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise InputError(f"{origin} must be a pair of a picture and a label, not {type(item).__name__}")
    return item[0], item[1]


def _label(label: Any, origin: str) -> int:
    single = isinstance(label, np.generic) or (isinstance(label, (torch.Tensor, np.ndarray)) and len(label.shape) == 0)
    value = label.item() if single else label
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{origin} must be a whole number from 0, not {label!r}")
    return value


def _image(picture: Any, origin: str) -> torch.Tensor:
    """Return one picture as uint8 ``(C, H, W)``."""
    if isinstance(picture, Image.Image):
        kind = f"{picture.mode} with a transparent colour" if "transparency" in picture.info else picture.mode
        if kind not in ("L", "RGB"):
            raise InputError(f"{origin} is of kind {kind}, not RGB or grey; convert it in the transform")
        picture = np.array(ImageOps.exif_transpose(picture))
    if isinstance(picture, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(picture))
        values = values.permute(2, 0, 1) if values.dim() == 3 else values
    elif isinstance(picture, torch.Tensor):
        values = picture.detach().cpu()
    else:
        raise InputError(f"{origin} must be a tensor, an array or a PIL picture, not {type(picture).__name__}")
    values = values.unsqueeze(0) if values.dim() == 2 else values
    if values.dim() != 3 or values.shape[0] not in (1, 3):
        raise InputError(
            f"{origin} has the shape {tuple(picture.shape)}; it must be (H, W), a tensor (C, H, W) or an array "
            "(H, W, C), with 1 or 3 channels"
        )
    if values.dtype == torch.uint8:
        return values.contiguous()
    if not values.is_floating_point() or not bool(((values >= 0) & (values <= 1)).all()):
        raise InputError(
            f"{origin} must hold bytes, or floats in [0, 1]; leave out transforms that normalise (it is {values.dtype})"
        )
    return (values * 255).round().byte()
