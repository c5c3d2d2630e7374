"""Streams of one task, after which nothing was learned: forgetting is not 0, but not there."""

from __future__ import annotations

import pytest

from hatrack.errors import InputError
from hatrack.experiments import Comparison
from hatrack.experiments.plan import ComparisonPlan
from hatrack.report import comparison_table, forgetting_line
from hatrack.report.figures import FIGURES, TABLES
from hatrack.report.loggers import task_values
from hatrack.report.page import html_report
from hatrack.report.runs import Runs
from hatrack.report.sections import cards
from hatrack.report.verdict import differences, verdict
from support.synthetic import synthetic

RUNS = Runs.of(synthetic(method, seed, 1) for method in ("hat", "sgd", "independent") for seed in range(3))


def test_a_run_of_one_task_has_no_forgetting() -> None:
    one, two = synthetic("sgd", 0, 1), synthetic("sgd", 0, 2)
    for figure in ("forgetting", "backward_transfer"):
        assert one.metrics()[figure] is None
        assert two.metrics()[figure] is not None
        assert two.first(1).metrics()[figure] is None
    assert forgetting_line(one).endswith("forgetting –")
    assert "forgetting" not in task_values(one)
    assert "Forgetting" not in one._repr_html_()


@pytest.mark.parametrize("name", ["summary", "curves", "differences"])
def test_no_table_has_a_number_for_it(name: str) -> None:
    table = TABLES[name](RUNS)
    assert table.rows
    for row in table.rows:
        assert not [
            key for key, value in row.items() if key.startswith(("forgetting", "backward")) and value is not None
        ]
    assert "same to the bit" not in [column.title for column in table.columns], "there is no earlier task"


def test_neither_the_page_nor_a_figure_has() -> None:
    outcome = verdict(RUNS)
    assert outcome.most_forgetful is None
    assert not [card for card in cards(RUNS, outcome) if "forget" in card["what"] or "old task" in card["what"]]
    assert "no output on an old task ever changed" not in html_report(RUNS)
    assert 'id="differences"' in html_report(RUNS)
    assert len(differences(RUNS).columns) == 7
    with pytest.raises(InputError, match="nothing is learned after a single task"):
        FIGURES["forgetting"].draw(RUNS)
    assert FIGURES["transfer"].draw(RUNS).table.rows


def test_compare_shows_a_dash() -> None:
    results = {("hat", seed): synthetic("hat", seed, 1) for seed in range(3)}
    comparison = Comparison(ComparisonPlan("split-mnist", ("hat", "joint", "random"), (0, 1, 2)), results, {}, {})
    cells = {str(column.header): [*column.cells] for column in comparison_table(comparison).columns}
    assert cells["forgetting, points"][0] == "–"
    assert cells["accuracy, %"][0] != "–"
