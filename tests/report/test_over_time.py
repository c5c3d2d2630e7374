"""Learning itself, epoch by epoch and task by task, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hatrack.experiments import RunResult
from hatrack.objectives.metrics import ACCURACY, MEAN_ABSOLUTE_ERROR, R_SQUARED, Metric
from hatrack.report import over_time, tables
from hatrack.report.runs import Runs
from hatrack.report.table import Kind
from hatrack.train import Score
from support.synthetic import synthetic


def by_hand(
    method: str,
    rows: list[list[float]],
    seed: int = 0,
    *,
    seconds: tuple[float, ...] = (2.0, 2.0),
    metrics: tuple[Metric, ...] = (ACCURACY, ACCURACY),
) -> RunResult:
    result = synthetic(method, seed, len(rows))
    tasks = tuple(replace(task, metric=metric) for task, metric in zip(result.tasks, metrics, strict=True))
    scores = tuple(tuple(Score(0.0, value, f"{method}{seed}{value}") for value in row) for row in rows)
    return replace(result, scores=scores, seconds=seconds, tasks=tasks)


def learned(method: str, seed: int, *losses: tuple[float, ...]) -> RunResult:
    """A run with these validation losses by task; training losses are twice, accuracies a tenth of them."""
    result = synthetic(method, seed, len(losses))
    history = tuple(
        replace(
            one,
            valid_loss=of,
            train_loss=tuple(2 * value for value in of),
            valid_score=tuple(value / 10 for value in of),
        )
        for one, of in zip(result.history, losses, strict=True)
    )
    return replace(result, history=history)


def test_tasks_by_hand() -> None:
    runs = Runs.of(
        [
            by_hand("sgd", [[0.9], [0.7, 0.8]], 0, seconds=(3.0, 1.0)),
            by_hand("sgd", [[0.8], [0.8, 0.9]], 1, seconds=(5.0, 2.0)),
            by_hand("independent", [[0.9], [0.9, 0.6]], 0),
            by_hand("independent", [[0.9], [0.9, 0.8]], 1),
        ]
    )
    first, second = (row for row in over_time.by_task(runs).rows if row["method"] == "sgd")
    assert (first["seconds"], first["seconds_sd"]) == pytest.approx((4.0, 2**0.5))
    assert first["forward_transfer"] is None, "no task came before"
    assert first["backward_transfer"] == pytest.approx(-0.1)
    assert second["forward_transfer"] == pytest.approx(0.15)
    assert second["backward_transfer"] is None, "no task came after"
    assert second["learning_accuracy"] == pytest.approx(0.85)


@pytest.mark.parametrize("metric", [ACCURACY, MEAN_ABSOLUTE_ERROR, R_SQUARED])
def test_means_over_tasks_are_the_figures_of_the_summary(metric: Metric) -> None:
    results = []
    for method in ("hat", "sgd", "independent"):
        for seed in range(3):
            result = synthetic(method, seed, 5)
            tasks = tuple(replace(task, metric=metric) for task in result.tasks)
            results.append(replace(result, tasks=tasks))
    runs = Runs.of(results)
    rows = over_time.by_task(runs).rows
    for summary in tables.summary(runs).rows:
        of = [row for row in rows if row["method"] == summary["method"]]
        assert sum(row["seconds"] for row in of) == pytest.approx(summary["seconds"])
        for key in (runs.learning, "forward_transfer", "backward_transfer"):
            known = [row[key] for row in of if row[key] is not None]
            assert sum(known) / len(known) == pytest.approx(summary[key])


def test_transfer_is_not_made_up() -> None:
    runs = Runs.of([by_hand("sgd", [[0.9], [0.7, 0.8]])])
    table = over_time.by_task(runs)
    assert {row["forward_transfer"] for row in table.rows} == {None}
    assert "forward_transfer" not in [column.key for column in table.columns]
    half = Runs.of(
        [by_hand("sgd", [[0.9], [0.7, 0.8]], seed) for seed in (0, 1)] + [by_hand("independent", [[0.9], [0.9, 0.6]])]
    )
    assert {row["forward_transfer"] for row in over_time.by_task(half).rows if row["method"] == "sgd"} == {None}


def test_scores_of_tasks_of_different_metrics_are_as_they_are() -> None:
    runs = Runs.of([by_hand("sgd", [[0.9], [0.7, 25.0]], metrics=(ACCURACY, MEAN_ABSOLUTE_ERROR))])
    table = over_time.by_task(runs)
    assert [row["metric"] for row in table.rows] == ["accuracy", "mean absolute error"]
    kinds = {column.key: column.kind for column in table.columns}
    assert kinds["learning_score"] is Kind.SCORE
    assert over_time.learning(runs).columns[-1].kind is Kind.SCORE


def test_epochs_are_themselves_where_all_runs_took_as_many() -> None:
    runs = Runs.of([learned("hat", 0, (4.0, 2.0), (3.0, 1.0, 0.5)), learned("hat", 1, (6.0, 2.0), (3.0, 1.0, 0.7))])
    rows = over_time.mean_learning(runs).rows
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["progress"] for row in rows] == [0.5, 1.0, 1.3333, 1.6667, 2.0]
    assert [row["valid_loss"] for row in rows] == pytest.approx([5.0, 2.0, 3.0, 1.0, 0.6])
    assert rows[0]["valid_loss_sd"] == pytest.approx(2**0.5)
    assert rows[0]["train_loss"] == pytest.approx(10.0)
    assert rows[0]["valid_accuracy"] == pytest.approx(0.5)
    single = over_time.learning(runs).rows
    assert [row["valid_loss"] for row in single if row["seed"] == 1] == [6.0, 2.0, 3.0, 1.0, 0.7]
    assert [row["epoch"] for row in single if row["seed"] == 1] == [1, 2, 1, 2, 3]


def test_seeds_that_stopped_at_other_epochs_are_compared_at_places() -> None:
    runs = Runs.of([learned("hat", 0, (4.0, 2.0)), learned("hat", 1, (8.0, 6.0, 4.0, 2.0))])
    rows = over_time.mean_learning(runs).rows
    assert {row["epoch"] for row in rows} == {None}
    assert [row["progress"] for row in rows] == [0.25, 0.5, 0.75, 1.0]
    assert [row["valid_loss"] for row in rows] == pytest.approx([6.0, 5.0, 3.0, 2.0])


def test_long_trainings_are_thinned_and_end_with_their_last_epoch() -> None:
    losses = tuple(float(200 - epoch) for epoch in range(200))
    rows = over_time.mean_learning(Runs.of([learned("hat", 0, losses)]), points=30).rows
    assert len(rows) == 30
    assert rows[-1]["epoch"] == 200
    assert [row["valid_loss"] for row in rows] == [losses[row["epoch"] - 1] for row in rows]


def test_what_was_not_recorded_is_not_drawn() -> None:
    run = synthetic("hat", 0, 2)
    bare = replace(
        run, history=tuple(replace(one, valid_loss=(), train_loss=(), valid_score=()) for one in run.history)
    )
    assert over_time.mean_learning(Runs.of([bare])).rows == ()
    assert over_time.mean_learning(Runs.of([replace(run, history=())])).rows == ()
    scoreless = replace(run, history=tuple(replace(one, valid_score=()) for one in run.history))
    assert {row["valid_accuracy"] for row in over_time.mean_learning(Runs.of([scoreless])).rows} == {None}
