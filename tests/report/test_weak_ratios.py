"""Notes on ρ, in whatever shows it, when joint training is hardly better than guessing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hatrack.experiments import RunResult
from hatrack.objectives.metrics import ACCURACY, MEAN_ABSOLUTE_ERROR, R_SQUARED, Metric
from hatrack.report import tables
from hatrack.report.figures import FIGURES
from hatrack.report.runs import Runs
from hatrack.report.verdict import differences
from hatrack.report.weak_ratios import hardly_better
from hatrack.report.writers import to_latex, to_markdown
from hatrack.train import Score
from support.synthetic import synthetic


def of(method: str, *rows: list[float]) -> RunResult:
    scores = tuple(tuple(Score(0.0, value, f"{method}{value}") for value in row) for row in rows)
    return replace(synthetic(method, 0, len(rows)), scores=scores)


@pytest.mark.parametrize(
    ("joint", "random", "samples", "metric", "hardly"),
    [
        (0.54, 0.5, 10**6, ACCURACY, True),  # a point of accuracy would be 0.25 of ρ
        (0.56, 0.5, 10**6, ACCURACY, False),
        (0.6, 0.5, 50, ACCURACY, True),  # two standard errors are 0.198
        (0.75, 0.5, 50, ACCURACY, False),
        (0.4, 0.5, 10**6, ACCURACY, True),  # worse than guessing: the sign of ρ is turned
        (0.04, 0.0, 100, R_SQUARED, True),
        (0.06, 0.0, 100, R_SQUARED, False),
        (96.0, 100.0, 100, MEAN_ABSOLUTE_ERROR, True),
        (94.0, 100.0, 100, MEAN_ABSOLUTE_ERROR, False),
        (104.0, 100.0, 100, MEAN_ABSOLUTE_ERROR, True),
    ],
)
def test_a_lead_that_is_hardly_one(joint: float, random: float, samples: int, metric: Metric, hardly: bool) -> None:
    assert hardly_better(joint, random, samples, metric) is hardly


def test_tables_and_the_figure_say_so_and_hide_nothing() -> None:
    random, hat = of("random", [0.5], [0.5, 0.5]), of("hat", [0.9], [0.9, 0.9])
    weak = Runs.of([hat, random, of("joint", [0.51], [0.9, 0.9])])
    words = "on task 1 joint training is hardly better than guessing"
    for table in (tables.forgetting_ratios(weak), tables.curves(weak)):
        assert table.note.startswith(words)
        assert table.rows
        assert f"\n\nO{words[1:]}" in to_markdown(table)
        assert f"% O{words[1:]}" in to_latex(table)
    assert weak.forgetting_ratio("hat", 0, 0) == pytest.approx(39.0)
    assert FIGURES["forgetting-ratio"].draw(weak).note.startswith(words)
    assert not FIGURES["accuracy"].draw(weak).note
    assert not tables.summary(weak).note, "after the last task joint training is good"
    strong = Runs.of([hat, random, of("joint", [0.9], [0.9, 0.9])])
    assert not tables.curves(strong).note
    assert to_markdown(tables.curves(strong)).endswith("|\n")


def test_differences_name_what_they_are_from() -> None:
    pairs = [replace(synthetic(method, seed, 2), seed=seed) for method in ("hat", "sgd") for seed in (0, 1, 2)]
    table = differences(Runs.of(pairs))
    assert {row["against"] for row in table.rows} == {"hat"}
    assert "Differences from hat, with 95 % intervals." in to_markdown(table)
