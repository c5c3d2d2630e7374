from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hatrack.experiments import RunResult, Status
from hatrack.experiments.results import TaskSummary
from hatrack.objectives.metrics import evenly
from hatrack.report import accuracy_table, forgetting_line
from hatrack.train import Score


def result(tasks: int, *, constant: bool = True) -> RunResult:
    def cell(row: int, task: int) -> Score:
        return Score(0.1, 0.987 - (0.0 if constant else 0.2 * (row - task)), f"{task}" if constant else f"{row} {task}")

    return RunResult(
        experiment="permuted-mnist",
        method="hat",
        seed=3,
        command="hatrack run",
        config={},
        tasks=tuple(TaskSummary(f"permutation-{index + 1}", 10, 1, 1, 1) for index in range(tasks)),
        scores=tuple(tuple(cell(row, task) for task in range(row + 1)) for row in range(tasks)),
        capacity={"groups": {}, "units": 0.421, "weights": 0.3},
        epochs=(1,) * tasks,
        seconds=(1.0,) * tasks,
        environment={},
        status=Status.FINISHED,
    )


def shown(renderable: object, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_ten_tasks_fit_a_terminal_of_eighty_columns() -> None:
    text = shown(accuracy_table(result(10)))
    assert "…" not in text
    assert text.count("98.7") == 55
    assert "10 permutation-10" in text
    assert text.count("same") == 9
    assert text.count("new") == 1


def test_what_changed_is_said() -> None:
    text = shown(accuracy_table(result(3, constant=False)))
    assert text.count("diff") == 2
    assert "same" not in text


def test_the_line_below() -> None:
    line = "average accuracy 98.70%, forgetting 0.00 points"
    assert forgetting_line(result(3)) == f"{line}, 42% of the units in use"
    without_units = replace(result(3), capacity={"groups": {}, "units": None, "weights": 0.3})
    assert forgetting_line(without_units) == f"{line}, 30% of the weights in use"
    assert forgetting_line(replace(result(3), capacity=None)) == line


@given(st.floats(-1e8, 1e8), st.floats(0.0, 1e8))
def test_a_mean_and_its_deviation_have_equally_many_decimals(mean: float, deviation: float) -> None:
    """And lose nothing that four digits of the larger one say."""
    said = evenly(mean, deviation)
    size = max(abs(mean), deviation)
    if 1e-4 <= size < 1e7:
        assert len({len(text.partition(".")[2]) for text in said}) == 1
    for text, value in zip(said, (mean, deviation), strict=True):
        assert float(text) == pytest.approx(value, abs=size * 5.1e-4 + 1e-300)
    assert evenly(42.67, 0.4708) == ("42.67", "0.47")
    assert evenly(-0.00001, 20.0) == ("0.00", "20.00")
