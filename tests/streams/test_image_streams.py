from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hatrack.data import DATASETS, ImageDataset
from hatrack.errors import InputError
from hatrack.experiments import EXPERIMENTS
from hatrack.streams import (
    STREAMS,
    ClassGroup,
    EvaluationPart,
    Normalise,
    StreamOptions,
    TaskStream,
    build_stream,
    class_stream,
    consecutive_groups,
    permuted_stream,
    registry,
    shuffled_class_stream,
    shuffled_groups,
    split_stream,
)

GROUPS = (ClassGroup("some", (3, 0)), ClassGroup("others", (1, 2, 4)))
Make = Callable[[ImageDataset, int], TaskStream]


def make_split(dataset: ImageDataset, seed: int) -> TaskStream:
    return split_stream(dataset, GROUPS, StreamOptions(seed=seed, validation=0.2, limit=40))


def make_permuted(dataset: ImageDataset, seed: int) -> TaskStream:
    return permuted_stream(dataset, 3, StreamOptions(seed=seed, validation=0.2, limit=40))


def contents(stream: TaskStream) -> list[torch.Tensor]:
    """Everything that a learner could see of a stream."""
    return [part for task in stream for split in (task.train, task.valid, task.test) for part in split.load()]


# --- groups


def test_groups_are_named_after_their_classes() -> None:
    groups = consecutive_groups(("T-shirt/top", "Trouser", "Ankle boot"), 2)
    assert groups == (ClassGroup("tshirt-trouser", (0, 1)), ClassGroup("ankleboot", (2,)))
    assert consecutive_groups("abcdef", 5) == (ClassGroup("a-to-e", (0, 1, 2, 3, 4)), ClassGroup("f", (5,)))
    with pytest.raises(InputError, match="at least 1 class"):
        consecutive_groups("ab", 0)


@given(st.integers(1, 30), st.integers(1, 30))
def test_groups_cover_all_classes_in_order(num_classes: int, size: int) -> None:
    groups = consecutive_groups([f"c{label}" for label in range(num_classes)], size)
    assert [label for group in groups for label in group.classes] == list(range(num_classes))
    assert {len(group.classes) for group in groups[:-1]} <= {size}


# --- what is tested on


def test_validation_samples_can_stand_for_the_test_samples(tiny: ImageDataset) -> None:
    options = StreamOptions(seed=0, validation=0.25, limit=40)
    chosen = split_stream(tiny, GROUPS, replace(options, tested_on=EvaluationPart.VALIDATION))
    for before, now in zip(split_stream(tiny, GROUPS, options), chosen, strict=True):
        assert now.test is now.valid
        for one, other in ((before.train, now.train), (before.valid, now.valid)):
            assert all(torch.equal(*parts) for parts in zip(one.load(), other.load(), strict=True))
        assert len(before.test) != len(now.test)
    with pytest.raises(InputError, match="would be one on the training samples"):
        split_stream(tiny, GROUPS, StreamOptions(seed=0, tested_on=EvaluationPart.VALIDATION))


# --- split by class


def test_split_stream_holds_the_classes_of_each_group_renumbered(tiny: ImageDataset) -> None:
    stream = split_stream(tiny, GROUPS, StreamOptions(seed=0))
    assert stream.name == "split-tiny"
    assert [task.name for task in stream] == ["some", "others"]
    assert stream[0].classes == ("Dog", "Ant/bug")
    normalise = Normalise(tiny.mean, tiny.std)
    for task, group in zip(stream, GROUPS, strict=True):
        assert task.valid is task.train
        for split, images, labels in (
            (task.train, tiny.x_train, tiny.y_train),
            (task.test, tiny.x_test, tiny.y_test),
        ):
            x, y = split.load()
            original = torch.tensor(group.classes)[y]
            belongs = torch.isin(labels, torch.tensor(group.classes))
            assert torch.equal(original, labels[belongs])
            assert torch.equal(x, normalise(images[belongs]))


@pytest.mark.parametrize("classes", [(), (0, 5), (-1, 0), (1, 1)])
def test_unusable_group_is_refused(tiny: ImageDataset, classes: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"task odd: needs classes of tiny, each once, out of 0\.\.4"):
        split_stream(tiny, [ClassGroup("odd", classes)], StreamOptions(seed=0))


# --- permutations


def test_permuted_stream_has_another_order_in_every_task_and_one_within_it(tiny: ImageDataset) -> None:
    stream = permuted_stream(tiny, 4, StreamOptions(seed=5))
    assert stream.name == "permuted-tiny"
    assert [task.name for task in stream] == [f"permutation-{number}" for number in (1, 2, 3, 4)]
    plain_train = Normalise(tiny.mean, tiny.std)(tiny.x_train).flatten(2)
    plain_test = Normalise(tiny.mean, tiny.std)(tiny.x_test).flatten(2)
    orders = {tuple(range(12))}
    for task in stream:
        train, test = task.train.load()[0].flatten(2), task.test.load()[0].flatten(2)
        # Which original pixel stands at each place, told from the images: 200 random bytes identify a pixel.
        same = (train[:, 0, :, None] == plain_train[:, 0, None, :]).all(dim=0)
        order = same.int().argmax(dim=1)
        assert sorted(order.tolist()) == list(range(12))
        assert torch.equal(train, plain_train[:, :, order])
        assert torch.equal(test, plain_test[:, :, order])
        orders.add(tuple(order.tolist()))
    assert len(orders) == 5, "all tasks differ from one another, and the first from the images as they are"


def test_permuted_tasks_share_one_source(tiny: ImageDataset) -> None:
    stream = permuted_stream(tiny, 3, StreamOptions(seed=0, validation=0.1))
    for task in stream:
        assert task.train.source is task.valid.source is tiny.x_train
        assert task.test.source is tiny.x_test


def test_longer_permuted_stream_begins_with_the_shorter(tiny: ImageDataset) -> None:
    short, long = (permuted_stream(tiny, count, StreamOptions(seed=3, validation=0.1, limit=50)) for count in (2, 4))
    for left, right in zip(contents(short), contents(long), strict=False):
        assert torch.equal(left, right)


def test_no_permutation_is_refused(tiny: ImageDataset) -> None:
    with pytest.raises(InputError, match="at least one task"):
        permuted_stream(tiny, 0, StreamOptions(seed=0))


# --- several data sets


def other(tiny: ImageDataset, **changes: object) -> ImageDataset:
    """Another data set of the same shape: the test images are its training images."""
    parts = {"name": "other", "x_train": tiny.x_test, "y_train": tiny.y_test, "mean": (0.1, 0.2), "origin": "made up"}
    return dataclasses.replace(tiny, **(parts | changes))  # type: ignore[arg-type]


def shuffled(tiny: ImageDataset, seed: int, num_tasks: int | None = None) -> TaskStream:
    return shuffled_class_stream(
        [tiny, other(tiny)],
        (2, 4),
        StreamOptions(seed=seed, validation=0.15, limit=20),
        num_tasks=num_tasks,
        name="mixed",
    )


def test_tasks_of_several_data_sets_are_prepared_each_with_its_own_constants(tiny: ImageDataset) -> None:
    second = other(tiny)
    stream = class_stream([(second, GROUPS[1]), (tiny, GROUPS[0])], StreamOptions(seed=0), name="mixed")
    assert [task.name for task in stream] == ["others", "some"]
    for task, dataset in zip(stream, (second, tiny), strict=True):
        x, _ = task.train.load()
        assert torch.equal(x, Normalise(dataset.mean, dataset.std)(dataset.x_train[task.train.rows]))
    assert stream.origins == ("other: made up", "tiny: unknown")


def test_one_data_set_is_the_same_stream_either_way(tiny: ImageDataset) -> None:
    together = class_stream(
        [(tiny, group) for group in GROUPS], StreamOptions(seed=4, validation=0.2, limit=40), name="a"
    )
    for left, right in zip(contents(together), contents(make_split(tiny, 4)), strict=True):
        assert torch.equal(left, right)


def test_images_of_another_shape_are_refused(tiny: ImageDataset) -> None:
    wide = other(tiny, x_train=tiny.x_test.mT.contiguous(), x_test=tiny.x_test.mT.contiguous())
    with pytest.raises(InputError, match="one network needs one shape"):
        class_stream([(tiny, GROUPS[0]), (wide, GROUPS[1])], StreamOptions(seed=0), name="mixed")


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_shuffled_groups_hold_every_class_once(seed: int, size: int) -> None:
    dataset = ImageDataset(
        name="five",
        x_train=torch.zeros(1, 1, 2, 2, dtype=torch.uint8),
        y_train=torch.tensor([0]),
        x_test=torch.zeros(1, 1, 2, 2, dtype=torch.uint8),
        y_test=torch.tensor([0]),
        class_names=("Ant/bug", "Bee", "Cat", "Dog", "Big eel"),
        mean=(0.5,),
        std=(0.5,),
    )
    groups = shuffled_groups(dataset, size, seed)
    assert sorted(label for group in groups for label in group.classes) == list(range(5))
    assert {len(group.classes) for group in groups[:-1]} <= {size}
    assert len({group.name for group in groups}) == len(groups)
    slugs = ["ant", "bee", "cat", "dog", "bigeel"]
    for number, group in enumerate(groups, 1):
        named = "-".join(["five", *(slugs[label] for label in group.classes)])
        assert group.name == (named if len(group.classes) <= 3 else f"five-{number}")


def test_shuffled_tasks_depend_on_the_seed_alone(tiny: ImageDataset) -> None:
    torch.manual_seed(1)
    first = shuffled(tiny, 3)
    torch.manual_seed(2)
    again = shuffled(tiny, 3)
    assert [task.name for task in first] == [task.name for task in again]
    assert all(torch.equal(left, right) for left, right in zip(contents(first), contents(again), strict=True))
    assert len({tuple(task.name for task in shuffled(tiny, seed)) for seed in range(8)}) == 8


def test_shuffled_tasks_of_all_data_sets_are_mixed(tiny: ImageDataset) -> None:
    orders = {tuple(task.name.split("-")[0] for task in shuffled(tiny, seed)) for seed in range(20)}
    assert all(sorted(order) == ["other"] * 2 + ["tiny"] * 3 for order in orders)
    assert len(orders) > 3


def test_shorter_shuffled_stream_begins_the_longer(tiny: ImageDataset) -> None:
    long, short = shuffled(tiny, 5), shuffled(tiny, 5, num_tasks=3)
    assert [task.name for task in short] == [task.name for task in long[:3]]
    for left, right in zip(contents(short), contents(long), strict=False):
        assert torch.equal(left, right)
    with pytest.raises(InputError, match="stream mixed has 5 tasks; 6 cannot be made"):
        shuffled(tiny, 5, num_tasks=6)
    with pytest.raises(InputError, match="at least 1 class"):
        shuffled_class_stream([tiny], (0,), StreamOptions(seed=0), name="mixed")


# --- both


@pytest.mark.parametrize("make", [make_split, make_permuted])
def test_same_seed_same_stream_other_seed_another(tiny: ImageDataset, make: Make) -> None:
    torch.manual_seed(1)
    first = contents(make(tiny, 1))
    torch.manual_seed(2)
    again = contents(make(tiny, 1))
    assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))
    other = contents(make(tiny, 2))
    assert any(
        left.shape != right.shape or not torch.equal(left, right) for left, right in zip(first, other, strict=True)
    )


@pytest.mark.parametrize(
    ("make", "per_task"),
    # Of the classes of the second group the last has only 10 images; the other two share what it cannot fill.
    [(make_split, [[20, 20], [15, 15, 10]]), (make_permuted, [[8] * 5] * 3)],
)
def test_limit_and_validation(tiny: ImageDataset, make: Make, per_task: list[list[int]]) -> None:
    for task, per_class in zip(make(tiny, 0), per_task, strict=True):
        rows = task.train.rows.tolist() + task.valid.rows.tolist()
        assert len(set(rows)) == len(rows) == 40
        assert torch.cat([task.train.labels, task.valid.labels]).bincount().tolist() == per_class
        held_out = task.valid.labels.bincount(minlength=task.num_classes)
        assert ((held_out - 0.2 * torch.tensor(per_class)).abs() < 1).all()


def test_limit_leaves_the_test_images_alone(tiny: ImageDataset) -> None:
    (task,) = permuted_stream(tiny, 1, StreamOptions(seed=0, limit=5))
    assert task.test.rows.tolist() == list(range(60))


def test_validation_images_are_drawn_by_the_seed(tiny: ImageDataset) -> None:
    streams = [split_stream(tiny, GROUPS, StreamOptions(seed, validation=0.2)) for seed in (0, 1)]
    held_out = {tuple(stream[0].valid.rows.tolist()) for stream in streams}
    assert len(held_out) == 2


def test_tasks_of_a_stream_draw_independently(tiny: ImageDataset) -> None:
    stream = permuted_stream(tiny, 2, StreamOptions(seed=0, limit=50))
    assert not torch.equal(stream[0].train.rows, stream[1].train.rows)


# --- by name


def test_demo_needs_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HATRACK_DATA", str(tmp_path))
    stream = build_stream("demo", StreamOptions(seed=0, validation=0.15), download=False)
    assert stream.name == "demo"
    assert stream.input_shape == (1, 28, 28)
    assert [task.name for task in stream] == [
        "tshirt-trouser",
        "pullover-dress",
        "coat-sandal",
        "shirt-sneaker",
        "bag-ankleboot",
    ]
    assert [(len(task.train), len(task.valid), len(task.test)) for task in stream] == [(510, 90, 200)] * 5


def test_options_and_number_of_tasks() -> None:
    stream = build_stream("demo", StreamOptions(seed=0, validation=0.0, limit=10), num_tasks=2)
    assert [task.name for task in stream] == ["tshirt-trouser", "pullover-dress"]
    assert [task.train.labels.bincount().tolist() for task in stream] == [[5, 5]] * 2
    assert all(task.valid is task.train for task in stream)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"num_tasks": 6}, "has 5 tasks; 6 cannot"),
        ({"num_tasks": 0}, "at least 1 task"),
        ({"num_tasks": -1}, "at least 1 task"),
        ({"limit": 0}, "at least 1, not 0"),
        ({"validation": 1.5}, "validation share"),
        ({"limit": 2, "validation": 0.15}, "too few for a validation split"),
    ],
)
def test_numbers_out_of_range(arguments: dict[str, Any], fault: str) -> None:
    tasks = arguments.get("num_tasks")
    options = {key: value for key, value in arguments.items() if key != "num_tasks"}
    with pytest.raises(InputError, match=fault):
        build_stream("demo", StreamOptions(seed=0, **options), num_tasks=tasks)


def test_unknown_stream_gets_the_closest_and_all() -> None:
    with pytest.raises(InputError, match="no stream 'permuted-mnits', did you mean 'permuted-mnist'") as caught:
        build_stream("permuted-mnits", StreamOptions(seed=0))
    for name in STREAMS:
        assert name in str(caught.value)


def test_data_folder_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent does not exist"):
        build_stream("split-mnist", StreamOptions(seed=0), data_dir=tmp_path / "absent")


def test_registry_agrees_with_itself() -> None:
    for name, spec in STREAMS.items():
        assert spec.name == name
        assert set(spec.datasets) <= set(DATASETS)
        assert re.fullmatch("[A-Za-z0-9_-]+", name)
        assert spec.description


def blank_cifar(name: str) -> ImageDataset:
    """A set like CIFAR, with twenty black images of every class."""
    spec = DATASETS[name]
    labels = torch.arange(len(spec.class_names)).repeat_interleave(20)
    images = torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8)
    return ImageDataset(name, images, labels, images, labels, spec.class_names, spec.mean, spec.std, "blank")


@pytest.mark.parametrize("seed", [0, 1])
def test_cifar_streams(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load_dataset", lambda name, *_, **__: blank_cifar(name))
    options = StreamOptions(seed, validation=0.15)
    ten, hundred = build_stream("split-cifar10", options), build_stream("split-cifar100", options)
    assert [task.name for task in ten] == [
        "airplane-automobile",
        "bird-cat",
        "deer-dog",
        "frog-horse",
        "ship-truck",
    ]
    assert [task.num_classes for task in hundred] == [20] * 5
    assert [task.name for task in hundred][:2] == ["apple-to-cattle", "chair-to-keyboard"]
    both = build_stream("residual-cifar", options)
    assert len(both) == 10
    assert both.origins in (
        ("cifar10: blank", "cifar100: blank"),
        ("cifar100: blank", "cifar10: blank"),
    )
    sizes = {2: (34, 6, 40), 20: (340, 60, 400)}
    for task in both:
        assert task.num_classes == (2 if task.name.startswith("cifar10-") else 20)
        assert (len(task.train), len(task.valid), len(task.test)) == sizes[task.num_classes]
    assert sorted(task.num_classes for task in both) == [2] * 5 + [20] * 5
    for name in ("cifar10", "cifar100"):
        seen = sorted(label for task in both if task.name.startswith(f"{name}-") for label in task.classes)
        assert seen == sorted(DATASETS[name].class_names)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "names", "sizes"),
    [
        ("split-mnist", ["digits-0-4", "digits-5-9"], [(30596, 30596, 5139), (29404, 29404, 4861)]),
        ("permuted-mnist", [f"permutation-{number}" for number in range(1, 11)], [(60000, 60000, 10000)] * 10),
        (
            "split-fashion-mnist",
            ["tshirt-trouser", "pullover-dress", "coat-sandal", "shirt-sneaker", "bag-ankleboot"],
            [(10200, 1800, 2000)] * 5,
        ),
        ("permuted-fashion-mnist", [f"permutation-{number}" for number in range(1, 11)], [(60000, 60000, 10000)] * 10),
    ],
)
def test_streams_of_the_full_sets(name: str, names: list[str], sizes: list[tuple[int, int, int]]) -> None:
    options = StreamOptions(seed=0, validation=EXPERIMENTS[name].data.validation)
    stream = build_stream(name, options, data_dir=_data_dir(*STREAMS[name].datasets), download=False)
    assert [task.name for task in stream] == names
    assert [(len(task.train), len(task.valid), len(task.test)) for task in stream] == sizes
    x, y = stream[-1].train.load()
    assert x.shape == (len(y), 1, 28, 28)
    assert abs(x.mean()) < 0.3
    assert set(y.tolist()) == set(range(stream[-1].num_classes))


def _data_dir(dataset: str) -> Path | None:
    """A folder that holds the data set, None if the system has it; otherwise skip the test."""
    for root in (os.environ.get("HATRACK_DATA"), Path(__file__).parents[3] / "shared" / "data"):
        if root and (Path(root) / dataset).is_dir():
            return Path(root)
    if not Path(f"/usr/share/datasets/{dataset}").is_dir():
        pytest.skip(f"{dataset} is not on this machine")
    return None
