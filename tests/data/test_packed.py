"""Packed parts: the same bits again, the first pictures of each class, and no part that passes for a whole."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from hatrack.data import (
    DATASETS,
    CommonForm,
    DatasetSpec,
    FileVariant,
    Fitting,
    Identity,
    ImageDataset,
    as_rgb32,
    first_in_turns,
    load_subset,
    pack_dataset,
    read_packed,
    write_packed,
)
from hatrack.data.dataset import ImageArrays
from hatrack.data.files import DataFile
from hatrack.data.sources import NotFoundError, PublishedFiles
from hatrack.data.strips import decode_strips, encode_strips
from hatrack.errors import DataError, InputError
from hatrack.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from hatrack.streams import STREAMS, ClassGroup, StreamOptions, all_classes, build_stream, class_stream

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = ("ant", "bee", "cat")
MEAN, STD = (0.3, 0.4, 0.5), (0.1, 0.2, 0.3)
TINY = Identity("tiny", NAMES, MEAN, STD)


def tiny(train: Sequence[int] = (9, 7, 2), test: Sequence[int] = (4, 4, 4), origin: str = "one file") -> ImageDataset:
    """Random colour pictures of 5 x 4 in random order, so many of each class."""
    generator = torch.Generator().manual_seed(0)
    halves: list[Tensor] = []
    for counts in (train, test):
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        labels = labels[torch.randperm(len(labels), generator=generator)]
        halves += [torch.randint(0, 256, (len(labels), 3, 5, 4), dtype=torch.uint8, generator=generator), labels]
    return ImageDataset("tiny", *halves, class_names=NAMES, mean=MEAN, std=STD, origin=origin)


def packed(folder: Path, dataset: ImageDataset | None = None, **limits: int) -> Path:
    path = folder / "tiny.packed"
    write_packed(path, pack_dataset(dataset or tiny(), "free", **limits))
    return path


# --- the same bits again


@given(
    count=st.integers(0, 70),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 19), st.integers(1, 19)),
    values=st.sampled_from([2, 256]),
    seed=st.integers(0, 99),
)
def test_strips_give_back_every_bit(count: int, shape: tuple[int, int, int], values: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    images = torch.randint(0, values, (count, width, channels, height), generator=generator).byte().permute(0, 2, 3, 1)
    told: list[int] = []
    strips = encode_strips(images, told.append)
    again = decode_strips(strips, count, shape, "here")
    assert again.dtype == torch.uint8
    assert again.shape == images.shape
    assert torch.equal(again, images)
    assert told == sorted(told)
    assert told[-1:] == [count][: len(strips)]


@pytest.mark.parametrize(
    ("count", "channels", "height", "width"),
    [(3, 3, 16_383, 1), (3, 1, 1, 16_383), (3, 3, 6_000, 2), (130, 1, 2, 2), (65, 3, 2, 2), (40, 4, 3, 1)],
)
def test_strips_of_odd_shapes(count: int, channels: int, height: int, width: int) -> None:
    images = torch.randint(0, 256, (count, channels, height, width), generator=torch.Generator().manual_seed(1)).byte()
    strips = encode_strips(images)
    assert torch.equal(decode_strips(strips, count, (channels, height, width), "here"), images)


@pytest.mark.parametrize("shape", [(3, 16_384, 1), (1, 1, 16_384), (3, 0, 2), (0, 2, 2)])
def test_pictures_that_no_strip_can_hold(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=r"cannot be packed: they need a channel at least, and 1 to 16,383 pixels"):
        encode_strips(torch.zeros(1, *shape, dtype=torch.uint8))


def test_damaged_strips() -> None:
    images = torch.arange(96, dtype=torch.uint8).reshape(2, 3, 4, 4)
    (strip,) = encode_strips(images)
    file = io.BytesIO()
    Image.new("RGB", (4, 8)).save(file, "PNG")
    for strips, fault in (
        ((strip, strip), "holds 2 strips of pictures instead of 1"),
        ((strip[:-9],), "a strip of pictures is damaged"),
        ((b"",), "a strip of pictures is damaged"),
        ((file.getvalue(),), "a strip of pictures is damaged"),
        ((encode_strips(images[:1])[0],), r"a strip has 4 x 4 pixels \(RGB\) instead of 4 x 8"),
    ):
        with pytest.raises(DataError, match=f"here: {fault}"):
            decode_strips(strips, 2, (3, 4, 4), "here")


@given(
    train=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    test=st.integers(0, 8),
    channels=st.integers(1, 4),
    limit=st.none() | st.integers(4, 60),
    test_limit=st.none() | st.integers(4, 20),
    seed=st.integers(0, 99),
)
def test_what_was_packed_is_read(
    train: list[int], test: int, channels: int, limit: int | None, test_limit: int | None, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    halves: list[Tensor] = []
    for counts in (train, [test] * len(train)):
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        labels = labels[torch.randperm(len(labels), generator=generator)]
        halves += [torch.randint(0, 256, (len(labels), channels, 3, 5), generator=generator).byte(), labels]
    names = tuple(f"class {label}, ü" for label in range(len(train)))
    mean, std = (tuple(torch.rand(channels, generator=generator).tolist()) for _ in range(2))
    dataset = ImageDataset("tiny", *halves, class_names=names, mean=mean, std=std, origin="some file")
    part = pack_dataset(dataset, "free", limit=limit, test_limit=test_limit)
    with tempfile.TemporaryDirectory() as folder:
        write_packed(Path(folder) / "any.packed", part)
        again = read_packed(Path(folder) / "any.packed", Identity("tiny", names, mean, std))
    rows = (in_turns(dataset.y_train.tolist(), limit), in_turns(dataset.y_test.tolist(), test_limit))
    assert torch.equal(again.arrays.x_train, dataset.x_train[rows[0]])
    assert torch.equal(again.arrays.y_train, dataset.y_train[rows[0]])
    assert torch.equal(again.arrays.x_test, dataset.x_test[rows[1]])
    assert torch.equal(again.arrays.y_test, dataset.y_test[rows[1]])
    assert again.arrays.y_train.dtype == torch.int64
    assert again.train_counts == tuple(train)
    assert again.test_counts == (test,) * len(train)
    assert (again.identity, again.licence, again.source) == (Identity("tiny", names, mean, std), "free", "some file")
    assert again.origin == part.origin


def test_the_same_part_is_the_same_file(tmp_path: Path) -> None:
    first = packed(tmp_path / "a", limit=6).read_bytes()
    assert packed(tmp_path / "b", limit=6).read_bytes() == first


def test_the_oldest_packed_part_is_read() -> None:
    subset = load_subset()
    identity = Identity(subset.name, subset.class_names, subset.mean, subset.std)
    part = read_packed(FIXTURES / "a4826d4" / "fashion-mnist-subset.packed", identity)
    train, test = (in_turns(labels.tolist(), limit) for labels, limit in ((subset.y_train, 12), (subset.y_test, 10)))
    assert torch.equal(part.arrays.x_train, subset.x_train[train])
    assert torch.equal(part.arrays.y_train, subset.y_train[train])
    assert torch.equal(part.arrays.x_test, subset.x_test[test])
    assert torch.equal(part.arrays.y_test, subset.y_test[test])
    assert part.origin == "packed part: 12 + 10 of idx files (SHA-256 3160f701a8879935)"
    assert (part.licence, part.train_counts, part.test_counts) == ("MIT (Zalando SE)", (300,) * 10, (100,) * 10)


# --- which pictures


def in_turns(labels: list[int], limit: int | None) -> list[int]:
    """Go round the classes, one picture a turn, as a person would who sorts them by hand."""
    piles = {label: [row for row, other in enumerate(labels) if other == label] for label in sorted(set(labels))}
    chosen: list[int] = []
    while any(piles.values()):
        for pile in piles.values():
            if pile and (limit is None or len(chosen) < limit):
                chosen.append(pile.pop(0))
            elif limit is not None and len(chosen) == limit:
                return sorted(chosen)
    return sorted(chosen)


@given(labels=st.lists(st.integers(0, 5), max_size=40), limit=st.none() | st.integers(6, 45))
def test_classes_take_turns(labels: list[int], limit: int | None) -> None:
    chosen = first_in_turns(torch.tensor(labels, dtype=torch.int64), limit).tolist()
    assert chosen == in_turns(labels, limit)
    more = first_in_turns(torch.tensor(labels, dtype=torch.int64), None if limit is None else limit + 1).tolist()
    assert set(chosen) <= set(more)


def test_a_limit_below_the_number_of_classes() -> None:
    assert len(pack_dataset(tiny(), "free", limit=3).arrays.y_train) == 3
    with pytest.raises(InputError, match="training pictures of tiny: 2 are fewer than the 3 classes; take 3 or more"):
        pack_dataset(tiny(), "free", limit=2)
    with pytest.raises(InputError, match="test pictures of tiny: 0 are fewer"):
        pack_dataset(tiny(), "free", test_limit=0)


def test_origins_say_what_is_there(tmp_path: Path) -> None:
    part, whole = pack_dataset(tiny(), "free", limit=7, test_limit=6), pack_dataset(tiny(), "free")
    assert part.origin.startswith("packed part: 7 + 6 of one file (SHA-256 ")
    assert whole.origin.startswith("packed whole: 18 + 12 of one file (SHA-256 ")
    assert pack_dataset(tiny(), "free", limit=7).origin.startswith("packed part: 7 + 12 of ")
    other = tiny()
    other.x_train[first_in_turns(other.y_train, 7)[0], 0, 0, 0] ^= 1
    assert pack_dataset(other, "free", limit=7, test_limit=6).origin != part.origin, "one bit is other data"


# --- refusals


def rewritten(path: Path, tensors: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Change what a file says, with the right checksum, as a program would that is wrong or wants to deceive."""
    kept = read_checkpoint(path)
    write_checkpoint(path, Checkpoint({**kept.tensors, **(tensors or {})}, {**kept.description, **changes}))
    return path


def without(path: Path, key: str) -> Path:
    kept = read_checkpoint(path)
    description = {name: value for name, value in kept.description.items() if name != key}
    write_checkpoint(path, Checkpoint(kept.tensors, description))
    return path


AGAIN = r"pack the whole data set again \(hatrack data pack tiny\)"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"name": "other"}, "is packed from other, not from tiny; call it other.packed, or"),
        ({"class_names": ["ant", "wasp", "cat"]}, "has other classes than tiny: 'wasp' there, 'bee' here"),
        ({"mean": [0.3, 0.4, 0.6]}, "has another mean or standard deviation than tiny"),
        ({"std": [0.1, 0.2, 0.4]}, "has another mean or standard deviation than tiny"),
        ({"version": 2}, "is a packed part of version 2, this hatrack reads up to 1; upgrade it, or"),
        ({"version": "new"}, "is a packed part of version new, this hatrack reads up to 1"),
        ({"format": "hatrack.HATNetwork"}, "holds a hatrack.HATNetwork, not a hatrack.PackedPart"),
        ({"shape": [3, 4, 5]}, "a strip has 4 x 90 pixels"),
        ({"shape": [3, 0, 4]}, "its pictures have no pixels"),
        ({"shape": [3, 1 << 20, 1 << 20]}, "unpack to more than"),
        ({"shape": [3, 5]}, "is not as hatrack packs data sets"),
        ({"shape": [3, 1 << 14, 1]}, "is not as hatrack packs data sets"),
        ({"train_counts": [float("inf")] * 3}, "is not as hatrack packs data sets"),
        ({"class_names": 3}, "is not as hatrack packs data sets"),
        ({"sha256": "0" * 64}, "its pictures are not those that were packed"),
        ({"train_counts": [9, 7, 1]}, "holds more pictures of a class than it says that the whole has"),
        ({"train_counts": [9, 7]}, "holds more pictures of a class than it says that the whole has"),
        ({"mean": [0.3]}, "its mean and standard deviation are not of 3 channels"),
        ({"tensors": {"train.labels": torch.full((18,), -1, dtype=torch.int32)}}, "a label is outside of 0..2"),
        ({"tensors": {"test.labels": torch.full((12,), 1 << 30, dtype=torch.int32)}}, "a label is outside of 0..2"),
        ({"tensors": {"train.labels": torch.zeros(17, dtype=torch.int32)}}, "a strip has 4 x 90 pixels"),
        ({"tensors": {"train.sizes": torch.tensor([5])}}, "a strip of pictures is damaged"),
        ({"tensors": {"test.sizes": torch.tensor([9, 9])}}, "holds 2 strips of pictures instead of 1"),
    ],
)
def test_what_is_not_as_it_should_be_is_refused(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    path = rewritten(packed(tmp_path), **changes)
    with pytest.raises(DataError, match=f"tiny.packed.* {fault}.*{AGAIN}") as caught:
        read_packed(path, TINY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["name", "class_names", "mean", "licence", "source", "shape", "sha256", "test_counts"])
def test_a_file_that_lacks_something_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match=f"is not as hatrack packs data sets.*{key}.*{AGAIN}"):
        read_packed(without(packed(tmp_path), key), TINY)


def test_other_numbers_of_classes_are_told(tmp_path: Path) -> None:
    fewer = dataclasses.replace(tiny((9, 7), (4, 4)), class_names=NAMES[:2])
    with pytest.raises(DataError, match="has other classes than tiny: 2 there, 3 here"):
        read_packed(packed(tmp_path, fewer), TINY)


def test_cut_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = packed(tmp_path)
    content = path.read_bytes()
    for position in range(0, len(content), len(content) // 20):
        before, at, after = content[:position], content[position], content[position + 1 :]
        for damaged in (before, before + bytes([at ^ 1]) + after):
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=AGAIN):
                read_packed(path, TINY)
    path.write_bytes(content)
    assert len(read_packed(path, TINY).arrays.y_train) == 18


def test_a_pillow_without_webp_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path)
    monkeypatch.setattr("PIL.features.check", lambda feature: feature != "webp")
    with pytest.raises(DataError, match=r"WebP, without which this Pillow was built; install the one of PyPI$"):
        read_packed(path, TINY)
    with pytest.raises(DataError, match=r"WebP, without which this Pillow was built; install the one of PyPI$"):
        packed(tmp_path)


# --- the last of the forms

CONTENT = b"the whole of it"


def decode(_: object) -> ImageArrays:
    whole = tiny()
    return ImageArrays(whole.x_train, whole.y_train, whole.x_test, whole.y_test)


@pytest.fixture
def spec() -> DatasetSpec:
    file = DataFile("whole", hashlib.sha256(CONTENT).hexdigest())
    variant = FileVariant("one file", PublishedFiles((file,), ("tiny",), ("http://127.0.0.1:9/",)), decode)
    return DatasetSpec("tiny", "tiny pictures", "free", NAMES, MEAN, STD, (variant,), CommonForm(Fitting.RESIZE))


def test_a_part_is_found_where_there_is_no_whole(
    tmp_path: Path, spec: DatasetSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path, limit=6, test_limit=6)
    dataset = spec.load(tmp_path)
    assert dataset.origin == pack_dataset(tiny(), "free", limit=6, test_limit=6).origin
    assert (dataset.train_counts, len(dataset.y_train)) == ((9, 7, 2), 6)
    assert (dataset.mean, dataset.std, dataset.common_form) == (MEAN, STD, spec.common_form)
    assert as_rgb32(dataset).train_counts == (9, 7, 2)
    variant, paths = spec.locate(tmp_path)
    assert (variant.name, paths) == (dataset.origin, (path,))
    assert variant.load("tiny", tmp_path, download=False).origin == dataset.origin
    assert variant.locate("tiny", tmp_path) == (path,)
    assert not variant.downloads
    assert variant.addresses == ()
    below = tmp_path / "below" / "tiny"
    below.mkdir(parents=True)
    path.rename(below / path.name)
    monkeypatch.setenv("HATRACK_DATA", str(below.parent))
    assert spec.load().origin == dataset.origin
    with pytest.raises(NotFoundError, match="tiny: whole not found"):
        spec.load(download=False, parts=False)


def test_a_whole_is_preferred_wherever_it_is(
    tmp_path: Path, spec: DatasetSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(tmp_path, limit=6)
    (tmp_path / "environment").mkdir()
    (tmp_path / "environment" / "whole").write_bytes(CONTENT)
    monkeypatch.setenv("HATRACK_DATA", str(tmp_path / "environment"))
    dataset = spec.load(tmp_path)
    assert (dataset.origin, dataset.train_counts, len(dataset.y_train)) == ("one file", (), 18)
    assert spec.locate(tmp_path)[0].name == "one file"
    (tmp_path / "environment" / "whole").write_bytes(b"damaged")
    for attempt in (spec.load, spec.locate):
        with pytest.raises(
            DataError, match=r"the SHA-256 differs.*mend or remove that, for .*tiny.packed is only a part"
        ):
            attempt(tmp_path)


def test_no_damaged_file_hides_a_sound_one(tmp_path: Path, spec: DatasetSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = packed(tmp_path / "sound", limit=6)
    damaged = packed(tmp_path / "damaged", limit=6)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    monkeypatch.setenv("HATRACK_DATA", str(tmp_path / "sound"))
    assert spec.locate(tmp_path / "damaged")[1] == (sound,)
    assert len(spec.load(tmp_path / "damaged").y_train) == 6
    sound.unlink()
    for attempt in (spec.locate, lambda folder: spec.load(folder, download=False)):
        with pytest.raises(NotFoundError, match=rf"{damaged} is damaged.*{AGAIN}.*; put whole") as caught:
            attempt(tmp_path / "damaged")  # type: ignore[operator]
        assert caught.value.absence.faults
    monkeypatch.setenv("HATRACK_OFFLINE", "1")
    with pytest.raises(NotFoundError, match="HATRACK_OFFLINE is set"):
        spec.load(tmp_path / "damaged")
    (tmp_path / "damaged" / "whole").write_bytes(CONTENT)
    assert spec.load(tmp_path / "damaged").origin == "one file"


def test_a_part_is_not_packed_again(tmp_path: Path, spec: DatasetSpec) -> None:
    packed(tmp_path, limit=6)
    with pytest.raises(InputError, match=r"tiny is a packed part itself \(packed part: 6 \+ 12 .*\); pack the whole"):
        pack_dataset(spec.load(tmp_path), "free", limit=3)


# --- numbers of samples that a part does not have


def shares(counts: list[int], limit: int) -> tuple[int, int]:
    """Return the full turns in which classes give a sample each until there are ``limit``, and how many they give."""
    turns = given_out = 0
    while given_out < min(limit, sum(counts)):
        step = sum(count > turns for count in counts)
        if given_out + step > limit:
            return turns, limit
        given_out, turns = given_out + step, turns + 1
    return turns, given_out


@given(
    counts=st.lists(st.integers(1, 12), min_size=3, max_size=3),
    kept=st.integers(3, 40),
    limit=st.integers(1, 45),
    classes=st.sampled_from([(0, 1, 2), (0, 2), (1,)]),
)
def test_a_limit_is_given_in_equal_parts_or_refused(
    counts: list[int], kept: int, limit: int, classes: tuple[int, ...]
) -> None:
    whole = tiny(counts)
    part = pack_dataset(whole, "free", limit=kept)
    x, y = part.arrays.x_train, part.arrays.y_train
    dataset = dataclasses.replace(whole, x_train=x, y_train=y, origin=part.origin, train_counts=part.train_counts)
    here, there = [int((y == label).sum()) for label in classes], [counts[label] for label in classes]
    turns, wanted = shares(there, limit)
    enough = sum(here) >= wanted and all(own >= min(all_, turns) for own, all_ in zip(here, there, strict=True))
    if enough and (limit <= sum(there) or here == there):
        dataset.require_limit(classes, limit)
    else:
        with pytest.raises(InputError, match=r"are more than the packed part of tiny can give.*`limit=(\d+)`"):
            dataset.require_limit(classes, limit)
    whole.require_limit(classes, limit)


def test_streams_refuse_a_limit_that_a_part_cannot_give(tmp_path: Path, spec: DatasetSpec) -> None:
    packed(tmp_path, limit=8)
    dataset = spec.load(tmp_path)
    stream = class_stream([(dataset, all_classes(dataset))], StreamOptions(0), name="s")
    assert len(stream.tasks[0].train) == 8
    assert stream.origins == (f"tiny: {dataset.origin}",)
    stream = class_stream([(dataset, all_classes(dataset))], StreamOptions(0, limit=8), name="s")
    assert len(stream.tasks[0].train) == 8
    with pytest.raises(InputError, match=r"9 training images \(`limit=9`\) are more than.*8 at most \(`limit=8`\)"):
        class_stream([(dataset, all_classes(dataset))], StreamOptions(0, limit=9), name="s")
    with pytest.raises(InputError, match=r"6 at most \(`limit=6`\)"):
        class_stream([(dataset, ClassGroup("two", (0, 1)))], StreamOptions(0, limit=7), name="s")


@pytest.mark.slow
def test_a_preset_of_packed_parts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every data set of the mixture is known in its form as a packed part, from one folder, without network."""
    monkeypatch.setenv("HATRACK_OFFLINE", "1")
    generator = torch.Generator().manual_seed(0)
    names = STREAMS["mixture-seven"].datasets
    for name in names:
        spec = DATASETS[name]
        labels = torch.arange(2 * len(spec.class_names)) % len(spec.class_names)
        side = 28 if len(spec.mean) == 1 else 32
        images = torch.randint(0, 256, (len(labels), len(spec.mean), side, side), generator=generator).byte()
        whole = (images, labels, images, labels, spec.class_names, spec.mean, spec.std, "random")
        part = pack_dataset(ImageDataset(name, *whole), spec.licence, test_limit=len(spec.class_names))
        write_packed(tmp_path / f"{name}.packed", part)
    stream = build_stream("mixture-seven", StreamOptions(0, validation=0.5), data_dir=tmp_path)
    lines = dict(line.split(": ", 1) for line in stream.origins)
    assert lines.keys() == set(names)
    system = {"fashion-mnist"} if lines["fashion-mnist"] == "idx files" else set()  # where a system package has it
    for name in set(names) - system:
        number = len(DATASETS[name].class_names)
        assert lines[name].startswith(f"packed part: {2 * number} + {number} of random (SHA-256 ")
    tasks = {task.name: task for task in stream if task.name not in system}
    assert all(len(task.train) == len(task.valid) == len(task.test) == task.num_classes for task in tasks.values())


def test_a_count_for_each_class() -> None:
    with pytest.raises(InputError, match="the whole needs a count for each of the 3 classes"):
        dataclasses.replace(tiny(), train_counts=(1, 2))
