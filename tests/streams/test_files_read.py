"""The record of the files of a task, in words and in JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hatrack.streams import Chain, FilesRead, Normalise, Permute, Rotate, Scaling, Split, Standardise, Task
from hatrack.streams.transforms import scaling_of

COUNTS = st.dictionaries(st.text(min_size=1), st.integers(1, 10**6), max_size=3)


@given(st.builds(FilesRead, st.integers(0, 10**6), COUNTS, COUNTS))
def test_json_and_back(files: FilesRead) -> None:
    content = json.loads(json.dumps(files.to_json()))
    assert FilesRead.from_json(content) == files
    assert content["read"] == files.read
    assert content["passed_over"] == sum(files.passed_over.values())


@pytest.mark.parametrize(
    "content",
    [
        {"read": 3},
        {"read": -1, "passed_over": 0},
        {"read": True, "passed_over": 0},
        {"read": 3, "passed_over": 2},
        {"read": 3, "passed_over": 2, "reasons": {"hidden": 1}},
        {"read": 3, "passed_over": 1, "reasons": {"hidden": "1"}},
        [],
    ],
)
def test_other_json_is_refused(content: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        FilesRead.from_json(content)


def test_words() -> None:
    assert FilesRead(1).say() == "1 file read, 0 passed over"
    files = FilesRead(1200, {"hidden": 3, "of other kinds": 1}, {"turned": 7})
    assert files.say() == "1,200 files read (7 turned), 4 passed over (3 hidden, 1 of other kinds)"


@pytest.mark.parametrize(
    ("transform", "scaling"),
    [
        (None, Scaling.NONE),
        (Normalise((0.5,), (0.1,)), Scaling.CHANNELS),
        (Standardise(torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)), Scaling.CHANNELS),
        (Standardise(torch.zeros(1, 3), torch.ones(1, 3)), Scaling.FEATURES),
        (Standardise(torch.zeros(1, 3, 5), torch.ones(1, 3, 5)), Scaling.FEATURES),
        (Chain((Rotate(90.0), Normalise((0.5,), (0.1,)), Permute(torch.arange(4)))), Scaling.CHANNELS),
        (Chain((Permute(torch.arange(4)),)), Scaling.NONE),
        (torch.nn.Identity(), Scaling.OTHER),
    ],
)
def test_kinds_of_scaling(transform: Any, scaling: Scaling) -> None:
    assert scaling_of(transform) is scaling


def test_range_of_the_samples_of_a_split_alone() -> None:
    source = torch.arange(10000, dtype=torch.int16)[:, None]
    rows = torch.tensor([5, 9000, 300])
    assert Split(source, rows, torch.zeros(3, dtype=torch.int64)).value_range == (5, 9000)
    x = {"a": torch.zeros(4, 2)}
    y = torch.tensor([0, 1, 0, 1])
    assert Task.from_tensors("t", x, y, x, y).train.value_range is None
