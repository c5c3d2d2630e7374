"""Verdicts on differences: how many seeds and test samples they take, in tables and on the page."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hatrack.experiments import RunResult
from hatrack.objectives.metrics import ACCURACY, EXACT_MATCH, F1, R_SQUARED, Metric
from hatrack.report.runs import Runs
from hatrack.report.sections import cards, forest, sentences
from hatrack.report.verdict import differences, verdict
from hatrack.report.writers import to_markdown
from hatrack.train import Score
from support.synthetic import synthetic


def of(
    method: str,
    seed: int,
    rows: list[list[float]],
    *,
    samples: int = 100,
    metric: Metric = ACCURACY,
    kept: bool = False,
) -> RunResult:
    """A run with these scores; ``kept`` gives every task one hash for all of the run."""
    result = synthetic(method, seed, len(rows))
    tasks = tuple(replace(task, test=samples, metric=metric) for task in result.tasks)
    scores = tuple(
        tuple(Score(0.0, value, f"{method}{seed}{task}{0 if kept else after}") for task, value in enumerate(row))
        for after, row in enumerate(rows)
    )
    return replace(result, tasks=tasks, scores=scores)


def pair(best: float, second: float, seeds: int, **more: object) -> Runs:
    """Two methods of one task, the same in every seed."""
    return Runs.of(
        of(method, seed, [[value]], **more)  # type: ignore[arg-type]
        for method, value in (("ewc", best), ("hat", second))
        for seed in range(seeds)
    )


def headline(runs: Runs) -> str:
    outcome = verdict(runs)
    ahead = next(card for card in cards(runs, outcome) if card["what"].endswith(", the next"))
    return " ".join([ahead["text"], *sentences(runs, outcome)])


def test_two_seeds_are_no_verdict() -> None:
    runs = pair(0.99, 0.5, 2, samples=100_000)
    (row,) = differences(runs).rows
    assert row["average_accuracy_significant"] is None
    assert row["average_accuracy_low"] < row["average_accuracy"] < row["average_accuracy_high"]
    assert "two seeds are too few" in headline(runs)
    assert "fewer than 3 seeds in common" in headline(runs)
    assert "fewer than 3 seeds in common" in to_markdown(differences(runs))
    assert forest(differences(runs), "ewc", runs)["rows"][0]["word"] == "too few seeds"


def test_seeds_that_agree_are_more_than_luck_only_if_the_samples_allow_it() -> None:
    few, many = pair(0.52, 0.50, 3), pair(0.52, 0.50, 3, samples=10_000)
    assert "may well be luck" in headline(few)
    assert "more than luck" in headline(many)
    for runs, word in ((few, "may be luck"), (many, "worse")):
        assert forest(differences(runs), "ewc", runs)["rows"][0]["word"] == word
    (row,) = differences(few).rows
    # x̃ of 102 samples: 53 and 51 are right; a pencil's standard error
    error = math.sqrt(sum(x * (102 - x) / 102 / 100**2 for x in (53, 51)))
    assert row["average_accuracy_high"] - row["average_accuracy"] == pytest.approx(1.95996 * error, abs=1e-5)


@pytest.mark.parametrize(
    ("metric", "word"), [(EXACT_MATCH, "may be luck"), (F1, "no spread"), (R_SQUARED, "no spread")]
)
def test_metrics_that_are_no_share_of_samples_say_that_there_is_no_spread(metric: Metric, word: str) -> None:
    runs = pair(0.52, 0.50, 3, metric=metric)
    (row,) = forest(differences(runs), "ewc", runs)["rows"]
    assert row["word"] == word
    assert "more than luck" not in headline(runs)


def test_forgetting_has_the_error_of_what_changed() -> None:
    """Tasks whose outputs stayed the same to the bit have forgotten nothing, which is certain."""
    lost = [of("sgd", seed, [[0.9], [0.8, 0.9]]) for seed in range(3)]
    kept = [of("hat", seed, [[0.9], [0.9, 0.95]], kept=True) for seed in range(3)]
    joint = [of("joint", seed, [[0.9], [0.9, 0.95]], kept=True) for seed in range(3)]
    rows = {row["method"]: row for row in differences(Runs.of([*lost, *kept, *joint])).rows}
    error = math.sqrt(sum(x * (102 - x) / 102 / 100**2 for x in (91, 81)))
    half = rows["sgd"]["forgetting_high"] - rows["sgd"]["forgetting"]
    assert rows["sgd"]["forgetting"] == pytest.approx(0.1)
    assert half == pytest.approx(1.95996 * error, abs=1e-5)
    assert rows["joint"]["forgetting_low"] == rows["joint"]["forgetting_high"] == 0.0


def test_methods_that_are_level_are_not_called_ahead() -> None:
    runs = Runs.of(of(method, seed, [[0.5]]) for method in ("ewc", "hat", "sgd") for seed in range(3))
    found = {card["what"]: card["figure"] for card in cards(runs, verdict(runs))}
    assert found["highest accuracy after the last task"] == "ewc, hat, sgd 50.00 %"
    assert "level with hat, the next" in found
    assert "ahead" not in " ".join(found)


def test_the_lead_over_the_seeds_that_both_have_stands_beside_that_of_all() -> None:
    """The interval is around the former, which may even have the other sign."""
    best = [of("ewc", seed, [[value]]) for seed, value in enumerate((0.5, 0.51, 0.52, 0.9))]
    second = [of("hat", seed, [[value]]) for seed, value in enumerate((0.52, 0.53, 0.54))]
    runs = Runs.of([*best, *second])
    outcome = verdict(runs)
    assert outcome.points == pytest.approx(0.0775)
    assert outcome.lead is not None
    assert outcome.lead.mean == pytest.approx(-0.02)
    assert "−2.00 points over the 3 seeds that both have, 95 % interval" in headline(runs)
    assert "seeds that both have" not in headline(pair(0.52, 0.50, 3))
