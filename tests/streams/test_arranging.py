from __future__ import annotations

import dataclasses

import pytest
import torch

from hatrack.data import ImageDataset
from hatrack.errors import InputError
from hatrack.streams import (
    ClassGroup,
    StreamOptions,
    TaskStream,
    concatenated,
    consecutive_groups,
    drawn_angles,
    in_portions,
    incremental_stream,
    interleaved,
    mixture_stream,
    repeated,
    rotated_stream,
    shuffled,
    split_stream,
    transfer_stream,
)
from hatrack.streams.base import Split

OPTIONS = StreamOptions(seed=0, validation=0.2, limit=40)


def names(stream: TaskStream) -> list[str]:
    return [task.name for task in stream]


def contents(stream: TaskStream) -> list[torch.Tensor]:
    return [part for task in stream for split in (task.train, task.valid, task.test) for part in split.load()]


def same(left: TaskStream, right: TaskStream) -> bool:
    pairs = list(zip(contents(left), contents(right), strict=True))
    return names(left) == names(right) and all(torch.equal(a, b) for a, b in pairs)


def other(tiny: ImageDataset, name: str = "other") -> ImageDataset:
    return dataclasses.replace(tiny, name=name, x_train=tiny.x_train.flip(0), y_train=tiny.y_train.flip(0))


@pytest.fixture
def stream(tiny: ImageDataset) -> TaskStream:
    return split_stream(tiny, consecutive_groups(tiny.class_names, 2)[:2], OPTIONS)


# --- groups of unequal size


def test_sizes_of_groups_may_differ(tiny: ImageDataset) -> None:
    groups = consecutive_groups(tiny.class_names, (1, 3), prefix="tiny")
    assert groups == (ClassGroup("tiny-ant", (0,)), ClassGroup("tiny-bee-cat-dog", (1, 2, 3)))
    with pytest.raises(InputError, match="groups of 3, 3 classes need 6; there are 5"):
        consecutive_groups(tiny.class_names, (3, 3))
    with pytest.raises(InputError, match="at least 1 class, not 0"):
        consecutive_groups(tiny.class_names, (3, 0))


def test_incremental_stream_has_tasks_of_unequal_numbers_of_classes(tiny: ImageDataset) -> None:
    for seed in range(5):
        stream = incremental_stream([tiny, other(tiny)], (2, (1, 4)), StreamOptions(seed))
        assert sorted((task.name, task.num_classes) for task in stream) == [
            ("other-ant", 1),
            ("other-bee-to-bigeel", 4),
            ("tiny-ant-bee", 2),
            ("tiny-bigeel", 1),
            ("tiny-cat-dog", 2),
        ]
        for task in stream:
            assert set(task.train.labels.tolist()) == set(range(task.num_classes)), "labels begin at 0 in each task"


@pytest.mark.parametrize("what", ["incremental", "mixture"])
def test_the_seed_draws_the_order_and_nothing_else_does(what: str, tiny: ImageDataset) -> None:
    def make(seed: int, num_tasks: int | None = None) -> TaskStream:
        if what == "mixture":
            sets = [tiny, *(other(tiny, name) for name in "abcd")]
            return mixture_stream(sets, StreamOptions(seed, 0.2, 40), num_tasks=num_tasks)
        sets = [tiny, other(tiny)]
        return incremental_stream(sets, (2, 2), StreamOptions(seed, 0.2, 40), num_tasks=num_tasks)

    torch.manual_seed(1)
    first = make(3)
    torch.manual_seed(2)
    assert same(first, make(3))
    orders = {tuple(names(make(seed))) for seed in range(10)}
    assert len(orders) > 5
    assert len({tuple(sorted(order)) for order in orders}) == 1, "the tasks themselves are the same for all seeds"
    assert same(TaskStream(first.name, first[:2]), make(3, 2)), "a shorter stream begins the longer"
    with pytest.raises(InputError, match="cannot be made"):
        make(3, 7)


def test_mixture_has_a_task_of_every_data_set(tiny: ImageDataset) -> None:
    stream = mixture_stream([tiny, other(tiny)], StreamOptions(0))
    assert sorted(names(stream)) == ["other", "tiny"]
    assert [task.num_classes for task in stream] == [5, 5]
    assert sorted(stream.origins) == ["other: unknown", "tiny: unknown"]


def test_transfer_is_source_then_target(tiny: ImageDataset) -> None:
    there, back = (transfer_stream(*pair, OPTIONS) for pair in ((tiny, other(tiny)), (other(tiny), tiny)))
    assert (there.name, names(there)) == ("tiny-to-other", ["tiny", "other"])
    assert (back.name, names(back)) == ("other-to-tiny", ["other", "tiny"])


# --- rotations


def test_rotated_tasks_hold_the_same_images_turned(tiny: ImageDataset) -> None:
    plain, upside_down, turned = rotated_stream(tiny, (0.0, 180.0, 30.0), StreamOptions(0))
    x = plain.train.load()[0]
    assert torch.equal(upside_down.train.load()[0], x.flip(-1, -2))
    assert turned.train.load()[0].shape == x.shape
    assert not torch.equal(turned.train.load()[0], x)
    assert plain.train.source is turned.train.source


def test_angles_are_drawn_by_the_seed() -> None:
    angles = drawn_angles(20, seed=3)
    assert angles[:5] == drawn_angles(5, seed=3)
    assert angles != drawn_angles(20, seed=4)
    assert 0 <= min(angles) < 40
    assert 140 < max(angles) < 180
    assert max(drawn_angles(20, seed=3, largest=90)) < 90


# --- streams of streams


def test_shuffled_streams_hold_the_same_tasks(tiny: ImageDataset) -> None:
    stream = split_stream(tiny, consecutive_groups(tiny.class_names, 1), OPTIONS)
    orders = {tuple(names(shuffled(stream, seed))) for seed in range(10)}
    assert len(orders) > 5
    assert all(sorted(order) == sorted(names(stream)) for order in orders)
    assert same(shuffled(stream, 3), shuffled(stream, 3))


def test_concatenated_and_interleaved(tiny: ImageDataset) -> None:
    short = split_stream(tiny, consecutive_groups(tiny.class_names, 4, prefix="a"), OPTIONS)
    long = split_stream(other(tiny), consecutive_groups(tiny.class_names, 2, prefix="b"), OPTIONS)
    one_by_one = concatenated([short, long], name="both")
    taking_turns = interleaved([short, long], name="both")
    assert names(one_by_one) == [*names(short), *names(long)]
    assert names(taking_turns) == ["a-ant-to-dog", "b-ant-bee", "a-bigeel", "b-cat-dog", "b-bigeel"]
    assert one_by_one.origins == taking_turns.origins == ("tiny: unknown", "other: unknown")
    with pytest.raises(InputError, match="two tasks are named"):
        concatenated([short, short], name="twice")


def test_repeated_tasks_come_back_under_a_new_name(stream: TaskStream) -> None:
    twice = repeated(stream, 2)
    assert names(twice) == ["ant-bee", "cat-dog", "ant-bee-2", "cat-dog-2"]
    assert twice[0].train is twice[2].train
    assert same(repeated(stream, 1), stream)
    with pytest.raises(InputError, match="at least once, not 0 times"):
        repeated(stream, 0)


def test_portions_divide_a_tasks_samples_class_by_class(stream: TaskStream) -> None:
    divided = in_portions(stream, 3, seed=0)
    assert names(divided) == names(repeated(stream, 3))
    assert same(divided, in_portions(stream, 3, seed=0))
    assert not same(divided, in_portions(stream, 3, seed=1))
    for index, task in enumerate(stream):
        visits = [divided[index + 2 * visit] for visit in range(3)]
        for part in ("train", "valid"):
            whole: Split = getattr(task, part)
            splits: list[Split] = [getattr(visit, part) for visit in visits]
            assert sorted(row for split in splits for row in split.rows.tolist()) == sorted(whole.rows.tolist())
            counts = torch.stack([split.labels.bincount(minlength=2) for split in splits])
            assert (counts.amax(0) - counts.amin(0)).max() <= 1
        assert all(visit.test is task.test for visit in visits)
    with pytest.raises(InputError, match="cannot be divided into 30 portions"):
        in_portions(stream, 30, seed=0)


def test_portions_of_a_task_that_validates_on_its_training_samples(tiny: ImageDataset) -> None:
    stream = split_stream(tiny, consecutive_groups(tiny.class_names, 2)[:1], StreamOptions(0))
    assert all(task.valid is task.train for task in in_portions(stream, 2, seed=0))
