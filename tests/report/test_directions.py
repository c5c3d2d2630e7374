"""Tables, verdicts and the page where a smaller score is the better one, and where there is no common metric."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hatrack.errors import InputError
from hatrack.experiments import Comparison, RunResult
from hatrack.experiments.metrics import average_score, backward_transfer, forgetting, forward_transfer
from hatrack.experiments.plan import ComparisonPlan
from hatrack.objectives.metrics import ACCURACY, MEAN_ABSOLUTE_ERROR, MEAN_AVERAGE_PRECISION, R_SQUARED, Metric
from hatrack.report import accuracy_table, comparison_table, forgetting_line, inside, tables
from hatrack.report.figures import FIGURES
from hatrack.report.page import html_report
from hatrack.report.runs import Runs
from hatrack.report.table import Kind, capitalized
from hatrack.report.verdict import differences, verdict
from hatrack.train import Score
from support.synthetic import synthetic


def by_hand(method: str, rows: list[list[float]], seed: int = 0, *metrics: Metric) -> RunResult:
    result = synthetic(method, seed, len(rows))
    metrics = metrics or (MEAN_ABSOLUTE_ERROR,) * len(rows)
    tasks = tuple(replace(task, metric=metric) for task, metric in zip(result.tasks, metrics, strict=True))
    scores = tuple(tuple(Score(0.0, value, f"{method}{value}") for value in row) for row in rows)
    return replace(result, scores=scores, tasks=tasks)


ERRORS = Runs.of(
    run
    for seed, more in ((0, 0.0), (1, 0.5), (2, -0.5))
    for run in (
        by_hand("sgd", [[2.0 + more], [7.0 + more, 3.0]], seed),
        by_hand("hat", [[3.0 + more], [3.0 + more, 3.0]], seed),
        by_hand("joint", [[2.0], [2.0, 2.0]], seed),
        by_hand("random", [[10.0], [10.0, 10.0]], seed),
        by_hand("independent", [[2.0], [2.0, 4.0]], seed),
    )
)


def test_figures_of_errors_by_hand() -> None:
    matrix = [[2.0, None], [7.0, 3.0]]
    assert average_score(matrix) == 5.0
    assert forgetting(matrix, larger_is_better=False) == 5.0
    assert backward_transfer(matrix, larger_is_better=False) == -5.0
    assert forward_transfer(matrix, [2.0, 4.0], larger_is_better=False) == 1.0
    assert forgetting(matrix) == -5.0


def test_the_lowest_error_wins() -> None:
    assert ERRORS.labels == ("hat", "sgd", "joint", "independent", "random")
    table = tables.summary(ERRORS)
    assert [row["method"] for row in table.rows] == ["joint", "hat", "independent", "sgd", "random"]
    sgd = next(row for row in table.rows if row["method"] == "sgd")
    assert sgd["average_score"] == pytest.approx(5.0)
    assert sgd["forgetting"] == pytest.approx(5.0)
    assert sgd["backward_transfer"] == pytest.approx(-5.0)
    assert sgd["forward_transfer"] == pytest.approx(1.0), "the second task alone has an error of 4"
    # (7 − 10) / (2 − 10) − 1 and (3 − 10) / (2 − 10) − 1, whichever the direction
    assert ERRORS.forgetting_ratio("sgd", 0, 1) == pytest.approx((3 / 8 - 1 + 7 / 8 - 1) / 2)
    column = next(column for column in table.columns if column.key == "average_score")
    assert (column.title, column.kind) == ("mean absolute error (lower is better)", Kind.SCORE)
    assert next(row for row in table.rows if row["method"] == "random")["forgetting_ratio"] == -1.0


def test_leads_and_differences_know_the_direction() -> None:
    outcome = verdict(ERRORS)
    assert (outcome.best, outcome.second, outcome.points) == ("hat", "sgd", pytest.approx(2.0))
    assert outcome.lead is not None
    assert outcome.lead.mean == pytest.approx(2.0), "above 0 where the best is better"
    assert outcome.most_forgetful == ("sgd", pytest.approx(5.0))
    rows = {row["method"]: row for row in differences(ERRORS).rows}
    assert rows["sgd"]["average_score"] == pytest.approx(2.0), "a difference of errors, as it is"
    assert [row["method"] for row in differences(ERRORS).rows][-1] == "random"


@pytest.mark.slow
def test_the_page_names_metric_and_direction() -> None:
    page = html_report(ERRORS)
    for words in (
        *("lowest mean absolute error after the last task", "ahead of sgd, the next"),
        *("Mean absolute error on every task, after every task", "Average mean absolute error"),
        *("<b>mean absolute error</b>: lower is better", "more mean absolute error than when a task was learned"),
    ):
        assert words in page
    assert "Accuracy" not in page
    assert "right answers" not in page
    forest = page[page.index('id="differences"') :] if 'id="differences"' in page else page
    sgd = forest[forest.index("<small>mean absolute error</small>") :]
    assert "worse" in sgd or "may be luck" in sgd


def test_a_name_keeps_its_capitals_in_headings() -> None:
    assert [capitalized(metric.name) for metric in (MEAN_AVERAGE_PRECISION, R_SQUARED, MEAN_ABSOLUTE_ERROR)] == [
        *("mAP", "R²", "Mean absolute error"),
    ]


def test_a_better_difference_of_errors_is_below_zero() -> None:
    from hatrack.report.sections import forest

    steady = Runs.of(
        run
        for seed in range(3)
        for run in (by_hand("sgd", [[5.0 + seed / 100]], seed), by_hand("joint", [[2.0 + seed / 90]], seed))
    )
    rows = forest(differences(steady), "sgd", steady)["rows"]
    assert [(row["method"], row["word"]) for row in rows] == [("joint", "cannot be told")]
    drawn = Runs.of(
        replace(run, tasks=tuple(replace(task, test_drawn=0.2) for task in run.tasks)) for _, _, run in steady.each()
    )
    rows = forest(differences(drawn), "sgd", drawn)["rows"]
    assert [(row["method"], row["word"]) for row in rows] == [("joint", "better")]


def test_curves_and_matrices_of_errors() -> None:
    (first, second) = [row for row in tables.curves(ERRORS).rows if row["method"] == "sgd"]
    assert (first["average_score"], second["average_score"]) == pytest.approx((2.0, 5.0))
    assert tables.accuracy(ERRORS).rows[0]["metric"] == "mean absolute error"
    assert "score" in tables.accuracy(ERRORS).rows[0]
    assert inside.compression(ERRORS).columns[-1].key == "valid_score"
    assert tables.data(ERRORS).rows[0]["metric"] == "mean absolute error"


def test_the_line_below_has_every_metric() -> None:
    run = by_hand("sgd", [[0.9], [0.7, 0.5]], 0, ACCURACY, R_SQUARED)
    line = forgetting_line(run)
    assert "average accuracy 70.00%, forgetting 20.00 points" in line
    assert "average R² 0.5 (higher is better), forgetting –" in line, "nothing was learned after it"
    assert "accuracy in %, R² (higher is better)" in str(accuracy_table(run).title)


def test_nothing_is_ranked_without_a_common_metric() -> None:
    mixed = Runs.of(
        by_hand(method, [[0.9], [0.7, 0.5]], 0, ACCURACY, R_SQUARED) for method in ("sgd", "hat", "joint", "random")
    )
    averages = [FIGURES[name].draw for name in ("accuracy", "forgetting", "forgetting-ratio", "transfer")]
    for make in (verdict, differences, *averages):
        with pytest.raises(InputError, match=r"\(accuracy, R²\), of which no mean .*`tables.accuracy`"):
            make(mixed)
    table = tables.summary(mixed)
    assert {row["average_score"] for row in table.rows} == {None}
    assert "average_score" not in [column.key for column in table.columns]
    assert mixed.forgetting_ratio("sgd", 0, 1) is None


def test_what_averages_over_no_task_is_shown_of_different_metrics() -> None:
    one = by_hand("sgd", [[0.9], [0.7, 0.5], [0.7, 0.4, 0.8]], 0, ACCURACY, R_SQUARED, ACCURACY)
    runs = Runs.of([one])
    assert [(metric.name, runs.tasks_of(metric)) for metric in runs.metrics] == [("accuracy", (1, 3)), ("R²", (2,))]
    for name, column in (("matrix", "task"), ("tasks", "task"), ("learning", None)):
        drawn = FIGURES[name].draw(runs)
        spec = drawn.chart.to_dict()
        panels = spec.get("hconcat", spec.get("vconcat"))
        assert len(panels) == 2, "one for each metric"
        texts = [str(panel) for panel in panels]
        assert "R²" not in texts[0]
        assert "accuracy" not in texts[1]
        assert column is None or {row[column] for row in drawn.table.rows} == {1, 2, 3}


@pytest.mark.slow
def test_the_page_of_different_metrics_leaves_out_what_averages_and_says_why() -> None:
    page = html_report(Runs.of([by_hand("sgd", [[0.9], [0.7, 0.5]], 0, ACCURACY, R_SQUARED)]))
    assert "different metrics (accuracy, R²), of which no mean means anything: methods are not ranked" in page
    assert "Accuracy and R² on every task, after every task" in page
    assert "<b>R²</b>: higher is better; colours from 0.4 to 0.5" in page
    assert 'title="task 2 (task-2) after task 2 (task-2): 0.5"' in page
    assert 'data-chart="valid_score-1"' in page
    assert 'data-chart="average_score"' not in page


def test_a_comparison_has_the_score_of_every_metric_and_no_dash() -> None:
    runs = {(method, 0): by_hand(method, [[0.9], [0.7, 0.5]], 0, ACCURACY, R_SQUARED) for method in ("sgd", "hat")}
    runs = {key: replace(run, experiment="split-mnist") for key, run in runs.items()}
    table = comparison_table(Comparison(ComparisonPlan.make("split-mnist", ["sgd", "hat"], [0]), runs, {}, {}))
    cells = {str(column.header): next(iter(column.cells)) for column in table.columns}
    assert cells["accuracy, %"] == "70.00"
    assert cells["forgetting of accuracy, points"] == "20.00"
    assert cells["R² (higher is better)"] == "0.5"
    assert "--format markdown --table accuracy" in str(table.caption)


def test_runs_of_different_metrics_are_not_compared() -> None:
    with pytest.raises(InputError, match="of different metrics"):
        Runs.of([by_hand("sgd", [[0.9]], 0, ACCURACY), by_hand("hat", [[0.9]], 0, R_SQUARED)])
    rows = [[0.9], [0.9] * 2, [0.9] * 3]
    with pytest.raises(InputError, match=r"of different metrics: 2 × accuracy \+ R², 3 × accuracy$"):
        Runs.of([by_hand("sgd", rows, 0, *[ACCURACY] * 3), by_hand("hat", rows, 0, ACCURACY, ACCURACY, R_SQUARED)])


@pytest.mark.parametrize("key", ["tested_on", "limit", "validation"])
def test_runs_whose_settings_chose_different_samples_are_not_compared(key: str) -> None:
    """Unless every method has made the same ones, which labels tell apart."""
    usual, value = {"tested_on": ("test", "validation"), "limit": (None, 50), "validation": (0.0, 0.5)}[key]

    def run(method: str, chosen: Any) -> RunResult:
        result = by_hand(method, [[0.9]], 0, ACCURACY)
        return replace(result, config={**result.config, key: chosen})

    plain, other = run("sgd", usual), run("hat", value)
    with pytest.raises(InputError, match=rf"different samples.*{key}={value}"):
        Runs.of([plain, other])
    assert set(Runs.of([other, run("sgd", value)]).labels) == {"hat", "sgd"}
    both = [run(method, chosen) for method in ("hat", "sgd") for chosen in (usual, value)]
    if key == "tested_on":
        with pytest.raises(InputError, match="different samples: tested_on=test, tested_on=validation"):
            Runs.of(both)
    else:
        assert len(Runs.of(both).labels) == 4
