from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatrack.experiments.metrics import Matrix, average_accuracy, backward_transfer, forgetting

MATRIX = [[0.9, None, None], [0.7, 0.8, None], [0.6, 0.9, 1.0]]


def test_hand_worked() -> None:
    assert average_accuracy(MATRIX) == pytest.approx((0.6 + 0.9 + 1.0) / 3)
    assert forgetting(MATRIX) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.9)) / 2)
    assert backward_transfer(MATRIX) == pytest.approx(-((0.9 - 0.6) + (0.8 - 0.9)) / 2)


def test_a_single_task_forgets_nothing() -> None:
    assert forgetting([[0.5]]) == 0.0
    assert str(backward_transfer([[0.5]])) == "0.0"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_a_method_that_keeps_everything_forgets_exactly_nothing(accuracies: list[float]) -> None:
    size = len(accuracies)
    matrix = [[accuracies[task] if task <= row else None for task in range(size)] for row in range(size)]
    assert forgetting(matrix) == 0.0
    assert average_accuracy(matrix) == pytest.approx(sum(accuracies) / size)


@pytest.mark.parametrize("figure", [average_accuracy, forgetting, backward_transfer])
@pytest.mark.parametrize("matrix", [[], [[0.5, None], [None, None]], [[None]]])
def test_missing_values_are_refused(figure: Callable[[Matrix], float], matrix: Matrix) -> None:
    with pytest.raises(ValueError, match=r"missing|no rows"):
        figure(matrix)
