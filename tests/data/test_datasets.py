from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from hatrack.data import DATASETS, ImageDataset, build_subset, load_dataset, load_subset
from hatrack.data.dataset import DatasetSpec, ImageArrays, Loaded
from hatrack.data.mnist import TEST_PER_CLASS, TRAIN_PER_CLASS, decode_mnist, encode_idx, encode_subset
from hatrack.data.sources import Absence, NotFoundError
from hatrack.errors import DataError, InputError
from hatrack.support.names import look_up

SHIPPED = resources.files("hatrack.data") / "subset"
FOUR_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def tiny(**changes: object) -> ImageDataset:
    """Two grey 2 x 2 training images and a test image, of classes a and b."""
    parts: dict[str, object] = {
        "name": "tiny",
        "x_train": torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2),
        "y_train": torch.tensor([0, 0, 1, 0, 1, 1]),
        "x_test": torch.arange(8, dtype=torch.uint8).reshape(2, 1, 2, 2),
        "y_test": torch.tensor([1, 0]),
        "class_names": ("a", "b"),
        "mean": (0.5,),
        "std": (0.25,),
    }
    return ImageDataset(**(parts | changes))  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of the tiny data set that fails as told, or else is found."""

    name: str
    failure: DataError | None = None
    downloads: bool = False
    asked: list[bool] = dataclasses.field(default_factory=list)

    def load(self, dataset: str, data_dir: Path | None, *, download: bool, monitor: object = None) -> Loaded:
        self.asked.append(download)
        if self.failure is not None and not (download and self.downloads):
            raise self.failure
        whole = tiny()
        return Loaded(ImageArrays(whole.x_train, whole.y_train, whole.x_test, whole.y_test), self.name)


def absent(name: str) -> NotFoundError:
    return NotFoundError(f"tiny: {name}", Absence((Path("there"),), (f"{name} is odd",), (f"{name}.gz",), (name,)))


def tiny_spec(*forms: Form) -> DatasetSpec:
    return DatasetSpec("tiny", "tiny images", "none", ("a", "b"), (0.5,), (0.25,), forms)


# --- in several forms


def test_first_form_that_is_found_is_taken() -> None:
    forms = Form("one", absent("one"), downloads=True), Form("two", DataError("two is damaged")), Form("three")
    dataset = tiny_spec(*forms).load()
    assert dataset.origin == "three"
    assert [form.asked for form in forms] == [[False], [False], [False]], "nothing is downloaded without need"


def test_network_is_asked_last_and_only_by_forms_that_can() -> None:
    forms = Form("one", absent("one")), Form("two", absent("two"), downloads=True)
    assert tiny_spec(*forms).load().origin == "two"
    assert [form.asked for form in forms] == [[False], [False, True]]
    with pytest.raises(DataError, match="not found"):
        tiny_spec(*forms).load(download=False)


def test_absence_of_all_forms_is_one_message() -> None:
    forms = Form("one", absent("one")), Form("two", DataError("two is damaged")), Form("three", absent("three"))
    with pytest.raises(NotFoundError) as caught:
        tiny_spec(*forms).load()
    assert str(caught.value) == (
        "tiny: not found in there (one is odd; three is odd; two is damaged); put one.gz or three.gz into a folder "
        "DIR or DIR/one and give it as `data_dir` or HATRACK_DATA=DIR"
    )
    with pytest.raises(DataError, match=r"^two is damaged; four too$"):
        tiny_spec(Form("two", DataError("two is damaged")), Form("four", DataError("four too"))).load()


def test_error_of_an_only_form_is_its_own() -> None:
    with pytest.raises(DataError, match=r"^as it is$"):
        tiny_spec(Form("one", DataError("as it is"))).load()


# --- the arrays


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"x_train": torch.zeros(6, 1, 2, 2)}, "training images must be uint8"),
        ({"x_test": torch.zeros(2, 2, 2, dtype=torch.uint8)}, "test images must be uint8"),
        ({"y_train": torch.tensor([0, 1])}, r"training labels must be int64 \(6,\)"),
        ({"y_test": torch.tensor([0, 1], dtype=torch.int32)}, "test labels must be int64"),
        ({"y_test": torch.tensor([0, 2])}, r"test labels must lie in 0\.\.1"),
        ({"y_test": torch.tensor([-1, 0])}, r"test labels must lie in 0\.\.1"),
        ({"x_test": torch.zeros(2, 1, 2, 3, dtype=torch.uint8)}, "differ in shape"),
        ({"mean": (0.5, 0.5)}, "one value for each of the 1 channels"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, object], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        tiny(**changes)


def test_decoded_arrays() -> None:
    dataset = tiny()
    decoded = decode_mnist(encode_subset(dataset))
    for part in ("x_train", "y_train", "x_test", "y_test"):
        assert torch.equal(getattr(decoded, part), getattr(dataset, part))
        assert getattr(decoded, part).dtype == getattr(dataset, part).dtype


def test_images_and_labels_mixed_up_are_refused() -> None:
    contents = encode_subset(tiny())
    contents["train-images-idx3-ubyte"] = encode_idx(torch.zeros(6, dtype=torch.uint8))
    with pytest.raises(DataError, match="train-images-idx3-ubyte: has 1 axes instead of 3"):
        decode_mnist(contents)


# --- by name


def test_unknown_name_gets_the_closest_and_all() -> None:
    with pytest.raises(InputError, match="no data set 'fashion_mnist', did you mean 'fashion-mnist'") as caught:
        load_dataset("fashion_mnist")
    for name in DATASETS:
        assert name in str(caught.value)


def test_look_up_without_a_close_name() -> None:
    assert look_up("letter", "a", {"a": 1, "b": 2}) == 1
    with pytest.raises(InputError, match="there is no letter 'zzz'; choose one of: a, b"):
        look_up("letter", "zzz", {"a": 1, "b": 2})


@pytest.mark.parametrize("given", [(torch.zeros(10_000, 3), [1] * 10_000), torch.zeros(50, 50), ["a"] * 500])
def test_samples_in_the_place_of_a_name_are_not_printed(given: Any) -> None:
    """As in ``Learner.evaluate((x, y), "a")``."""
    with pytest.raises(
        InputError, match=r"no task that something of type \w+ could name; choose one of: a, b"
    ) as caught:
        look_up("task", given, {"a": 1, "b": 2})
    assert len(str(caught.value)) < 100
    with pytest.raises(InputError, match="there is no task 3; choose one of: a, b"):
        look_up("task", 3, {"a": 1, "b": 2})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(DATASETS))
def test_given_folder_must_exist(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent does not exist"):
        load_dataset(name, tmp_path / "absent")


def test_four_right_names_with_wrong_content_are_refused(tmp_path: Path) -> None:
    for name, content in encode_subset(tiny()).items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="its content is not that of mnist's train-images-idx3-ubyte"):
        load_dataset("mnist", str(tmp_path), download=False)


def test_specs_agree_with_themselves() -> None:
    for name, spec in DATASETS.items():
        assert spec.name == name
        assert spec.description
        assert spec.licence
        assert "\n" not in spec.description


# --- the shipped part


def test_shipped_subset_is_balanced() -> None:
    subset = load_subset()
    assert subset.name == "fashion-mnist-subset"
    assert subset.x_train.shape == (3000, 1, 28, 28)
    assert subset.x_test.shape == (1000, 1, 28, 28)
    assert subset.y_train.bincount().tolist() == [TRAIN_PER_CLASS] * 10
    assert subset.y_test.bincount().tolist() == [TEST_PER_CLASS] * 10


def test_shipped_subset_carries_its_licence_and_is_small() -> None:
    notice = (SHIPPED / "NOTICE").read_text()
    assert "Copyright (c) 2017 Zalando SE" in notice
    assert "Permission is hereby granted" in notice
    assert sum(len(file.read_bytes()) for file in SHIPPED.iterdir()) < 2_500_000


def test_shipped_files_are_reproducible_gzip() -> None:
    for name in FOUR_FILES:
        header = (SHIPPED / f"{name}.gz").read_bytes()[:8]
        assert header == b"\x1f\x8b\x08\0" + bytes(4), "no file name and no time in the header"


def test_subset_takes_the_first_of_every_class_in_order() -> None:
    subset = build_subset(tiny(), 2, 1)
    assert subset.y_train.tolist() == [0, 0, 1, 1]
    assert subset.x_train[:, 0, 0, 0].tolist() == [0, 4, 8, 16]
    assert subset.y_test.tolist() == [1, 0]
    assert subset.name == "tiny-subset"


@pytest.mark.parametrize("per_class", [0, 4])
def test_subset_of_too_many_or_none_is_refused(per_class: int) -> None:
    with pytest.raises(InputError, match=f"cannot take {per_class} images of every class; the smallest has"):
        build_subset(tiny(), per_class, 1)


def test_colour_cannot_be_encoded_as_mnist() -> None:
    colour = tiny(
        x_train=torch.zeros(6, 3, 2, 2, dtype=torch.uint8),
        x_test=torch.zeros(2, 3, 2, 2, dtype=torch.uint8),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    with pytest.raises(InputError, match="grey images"):
        encode_subset(colour)


# --- the real data


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_full_set(name: str, request: pytest.FixtureRequest) -> None:
    dataset: ImageDataset = request.getfixturevalue("mnist" if name == "mnist" else "fashion")
    assert dataset.name == name
    assert dataset.x_train.shape == (60000, 1, 28, 28)
    assert dataset.x_test.shape == (10000, 1, 28, 28)
    scaled = dataset.x_train.double() / 255
    assert round(scaled.mean().item(), 4) == dataset.mean[0]
    assert round(scaled.std().item(), 4) == dataset.std[0]


@pytest.mark.slow
@pytest.mark.data
def test_known_first_labels(mnist: ImageDataset, fashion: ImageDataset) -> None:
    assert [mnist.class_names[label] for label in mnist.y_train[:5]] == ["5", "0", "4", "1", "9"]
    assert [fashion.class_names[label] for label in fashion.y_train[:2]] == ["Ankle boot", "T-shirt/top"]


@pytest.mark.data
def test_shipped_subset_is_what_is_built_from_the_full_set(fashion: ImageDataset) -> None:
    shipped, built = load_subset(), build_subset(fashion, TRAIN_PER_CLASS, TEST_PER_CLASS)
    for field in dataclasses.fields(ImageDataset):
        left, right = getattr(shipped, field.name), getattr(built, field.name)
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right, field.name
