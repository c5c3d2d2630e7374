"""What a metric cannot tell of some targets is said just where no prediction would change it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hatrack.objectives import Classification, MultiLabel, Objective, Regression
from hatrack.objectives.metrics import EXACT_MATCH, F1, MEAN_ABSOLUTE_ERROR, R_SQUARED
from hatrack.streams import StreamOptions, own_stream
from support.own_sources import RANDOM, archive, pictures


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_classes_are_named_whose_samples_no_mistake_can_be_made_with(labels: list[int]) -> None:
    objective, y = Classification(("a", "b", "c", "d")), torch.tensor(labels)
    right = torch.nn.functional.one_hot(y, 4).double()
    for index, name in enumerate(objective.names):
        wrong = torch.where((y == index).unsqueeze(1), right.roll(1, dims=1), right)
        is_blind = objective.measure(wrong, y) == objective.measure(right, y)
        assert (repr(name) in objective.unmeasured(y)) == is_blind


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=8))
def test_labels_are_named_whose_scores_change_no_mean_average_precision(rows: list[list[bool]]) -> None:
    objective, y = MultiLabel(("x", "y", "z")), torch.tensor(rows)
    scores = y.double()
    for index, name in enumerate(objective.names):
        turned = scores.clone()
        turned[:, index] = 1 - turned[:, index]
        is_blind = objective.measure(turned, y) == objective.measure(scores, y)
        assert (repr(name) in objective.unmeasured(y)) == is_blind


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=1, max_size=6))
def test_columns_are_named_of_which_r_squared_is_all_or_nothing(rows: list[list[int]]) -> None:
    objective, y = Regression(("size", "price"), (0, 0), (1, 1)), torch.tensor(rows, dtype=torch.float64)
    for index, name in enumerate(objective.names):
        scores = []
        for off in (0.5, 5.0):
            values = y.clone()
            values[:, index] += off
            scores.append(objective.measure(values, y))
        assert (repr(name) in objective.unmeasured(y)) == (scores[0] == scores[1])


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (MultiLabel(("x", "y"), metric=F1), "none has label 'y', which is left out of F1 where none is given it"),
        (MultiLabel(("x", "y"), metric=EXACT_MATCH), "none has label 'y', of which the exact match tells only"),
        (MultiLabel(("x", "y")), "average precision; all have label 'x', whose average precision is 1"),
    ],
)
def test_labels_by_metric(objective: Objective, said: str) -> None:
    y = torch.tensor([[True, False]] * 4)
    assert said in objective.unmeasured(y)
    assert objective.unmeasured(torch.tensor([[True, False], [False, True]])) == ""


def test_numbers_that_do_not_vary_have_errors_all_the_same() -> None:
    y = torch.full((4, 1), 7.0, dtype=torch.float64)
    assert Regression(("y",), (0,), (1,), MEAN_ABSOLUTE_ERROR).unmeasured(y) == ""
    assert "does not vary" in Regression(("y",), (0,), (1,), R_SQUARED).unmeasured(y)


def test_a_note_names_task_and_class_of_every_kind_of_file(tmp_path: Path) -> None:
    pictures(tmp_path / "set" / "train", {"a": 4, "b": 4})
    pictures(tmp_path / "set" / "test", {"a": 3})
    (note,) = own_stream([tmp_path / "set"]).build(StreamOptions(0)).notes
    assert note == "task set: of its 3 test samples none is of class 'b', so that the accuracy tells nothing of it"
    prices = RANDOM.normal(100, 20, 30)
    archive(tmp_path / "a.npz", y_train=prices, y_test=np.full(9, prices[0]))
    (tmp_path / "a.toml").write_text('[[task]]\npath = "a.npz"\ntarget = "numbers"\n')
    (note,) = own_stream([tmp_path / "a.toml"]).build(StreamOptions(0)).notes
    assert note.startswith("task a: of its 9 test samples the number to predict does not vary, so that its R²")
    rows = [f"{row},{row * row % 7},{'rare' if row == 3 else 'common'}" for row in range(20)]
    (tmp_path / "one.csv").write_text("\n".join(["a,b,label", *rows]))
    text = '[[task]]\npath = "one.csv"\nlabel = "label"\ntest_share = 0.3\ndrop = ["a"]\n'
    (tmp_path / "t.toml").write_text(text)
    notes = own_stream([tmp_path / "t.toml"]).build(StreamOptions(0)).notes
    assert any("of its 6 test samples none is of class 'rare'" in note for note in notes)
