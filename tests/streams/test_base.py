from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from hatrack.errors import InputError
from hatrack.objectives import TargetKind
from hatrack.streams import Normalise, Split, Task, TaskStream

X = torch.arange(24.0).reshape(8, 3)
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def make(name: str = "mine", **changes: Any) -> Task:
    arguments = {"x_train": X, "y_train": Y, "x_test": X[:4], "y_test": Y[:4]} | changes
    return Task.from_tensors(name, **arguments)


# --- splits


def test_loading_takes_the_rows_and_transforms_them() -> None:
    source = torch.arange(12, dtype=torch.uint8).reshape(3, 1, 2, 2)
    split = Split(source, torch.tensor([2, 0, 2]), torch.tensor([1, 0, 1]), Normalise((0.0,), (1.0,)))
    x, y = split.load()
    torch.testing.assert_close(x, source[[2, 0, 2]].float() / 255)
    assert y.tolist() == [1, 0, 1]
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert x.is_contiguous()
    assert len(split) == 3
    assert split.shape == (1, 2, 2)


def test_shape_is_that_after_the_transform() -> None:
    split = Split(X, torch.tensor([0]), torch.tensor([0]), lambda x: x.repeat(1, 2).unsqueeze(1))
    assert split.shape == (1, 6) == split.load()[0].shape[1:]


def test_result_of_loading_belongs_to_the_caller() -> None:
    split = Split(X.clone(), torch.arange(8), Y.clone(), None)
    x, y = split.load()
    x.zero_()
    y.zero_()
    again_x, again_y = split.load()
    assert torch.equal(again_x, X)
    assert torch.equal(again_y, Y)


@pytest.mark.parametrize(
    ("rows", "labels", "fault"),
    [
        ([0, 1], [0], "as many labels as rows"),
        ([0, 8], [0, 0], "within its source of 8"),
        ([0, -1], [0, 0], "within its source of 8"),
        ([0, 1], [0, -1], "labels of a split must be 0 or more"),
        ([[0], [1]], [0, 0], r"rows of a split must be int64 \(N,\)"),
        ([0, 1], [0.0, 1.0], "labels of a split must be int64"),
    ],
)
def test_split_that_does_not_fit_is_refused(rows: list[Any], labels: list[Any], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        Split(X, torch.tensor(rows), torch.tensor(labels))


def test_empty_split_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        Split(X, torch.arange(0), torch.arange(0))


# --- tasks


def test_own_tensors() -> None:
    task = make()
    assert task.classes == ("0", "1", "2")
    assert task.num_classes == 3
    assert task.input_shape == (3,)
    assert torch.equal(task.train.load()[0], X)
    assert torch.equal(task.train.load()[1], Y)
    assert torch.equal(task.test.load()[0], X[:4])
    assert task.valid is task.train, "without a share the training samples serve as validation samples"


def test_own_tensors_share_memory_and_take_a_transform() -> None:
    task = make(transform=lambda x: x + 1, validation=0.4)
    assert task.train.source.data_ptr() == task.valid.source.data_ptr() == X.data_ptr()
    assert torch.equal(task.test.load()[0], X[:4] + 1)


def test_own_validation_is_stratified_disjoint_and_repeatable() -> None:
    task = make(validation=0.4)
    assert sorted(task.train.rows.tolist() + task.valid.rows.tolist()) == list(range(8))
    assert task.valid.labels.bincount().tolist() == [1, 1, 1]
    assert torch.equal(task.valid.labels, Y[task.valid.rows])
    assert torch.equal(task.valid.rows, make(validation=0.4).valid.rows)
    drawn = {
        tuple(make(validation=0.4, generator=torch.Generator().manual_seed(seed)).valid.rows.tolist())
        for seed in range(8)
    }
    assert len(drawn) > 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    assert make(y_train=Y.to(dtype)).train.load()[1].dtype == torch.int64


def test_gradients_are_left_behind() -> None:
    assert not make(x_train=X.clone().requires_grad_()).train.load()[0].requires_grad


def test_a_named_class_may_have_no_sample() -> None:
    assert make(classes=["a", "b", "c", "never seen"]).num_classes == 4


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"y_train": Y[:5]}, r"8 training samples need labels of shape \(8,\), not \(5,\)"),
        ({"y_test": Y}, "4 test samples need labels"),
        ({"y_train": Y + 0.5, "target": TargetKind.CLASSES}, "training labels must be integers, not torch.float32"),
        ({"y_test": Y[:4] > 0}, "test labels must be integers, not torch.bool"),
        ({"y_train": Y - 1}, "training labels must be integers 0..C-1, not negative"),
        ({"y_train": Y + 3}, "renumber or name the classes"),
        ({"y_train": Y * 2}, "renumber or name the classes"),
        ({"y_test": Y[:4] + 1}, r"test labels must be integers 0\.\.2"),
        ({"classes": ["a", "b"]}, r"training labels must be integers 0\.\.1"),
        ({"x_train": X / 0}, "training samples hold infinite values or NaN"),
        ({"x_test": X[:4].double() + 1e300}, "test samples hold infinite values or NaN"),
        ({"x_test": X[:4, :2]}, r"test samples are \(2,\), training ones \(3,\)"),
        ({"x_train": X[:, 0]}, "training samples must be real"),
        ({"x_train": X.to(torch.complex64)}, "training samples must be real"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "training samples must be real"),
        ({"name": "über"}, "letters, digits"),
        ({"name": "a/b"}, "letters, digits"),
        ({"name": ""}, "letters, digits"),
        ({"validation": 1.0}, "validation share"),
        ({"validation": -0.5}, "validation share"),
    ],
)
def test_unusable_tensors_are_refused_in_one_line(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError, match=fault) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)


# --- streams


def test_stream_is_a_sequence_of_tasks() -> None:
    first, second = make("first"), make("second", classes=["a", "b", "c", "d"])
    stream = TaskStream("mine", [first, second])  # type: ignore[arg-type]
    assert list(stream) == [first, second]
    assert stream[-1] is second
    assert stream[:1] == (first,)
    assert stream.index(second) == 1
    assert stream.tasks == (first, second)
    assert stream.input_shape == (3,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stream.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "tasks", "fault"),
    [
        ("mine", [], "at least one task"),
        ("mine", [make("twin"), make("twin")], "two tasks are named 'twin'"),
        ("mine", [make("a"), make("b", x_train=X[:, :2], x_test=X[:4, :2])], r"b are \(2,\), those of a \(3,\)"),
        ("not a name", [make()], "letters, digits"),
    ],
)
def test_unusable_stream_is_refused(name: str, tasks: list[Task], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        TaskStream(name, tuple(tasks))
