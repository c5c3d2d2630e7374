"""Verdicts on differences: how many seeds and test samples they take, in tables and on the page."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest

from hatrack.experiments import RunResult
from hatrack.objectives.metrics import (
    ACCURACY,
    BALANCED_ACCURACY,
    EXACT_MATCH,
    F1,
    MEAN_ABSOLUTE_ERROR,
    R_SQUARED,
    Metric,
)
from hatrack.report.runs import Runs
from hatrack.report.sampling import drawn_share
from hatrack.report.sections import cards, forest, sentences
from hatrack.report.verdict import differences, verdict
from hatrack.report.writers import to_markdown
from hatrack.streams.own.streams import READ_WITH
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


def spread(metric: Metric, tasks: dict[str, object], config: dict[str, object] | None = None, seeds: int = 3) -> Runs:
    """Two methods, one always ahead by 5 to 6 points."""
    runs = []
    for method, lead in (("ewc", 0.05), ("hat", 0.0)):
        for seed in range(seeds):
            run = of(method, seed, [[0.7 + 0.01 * seed + lead * (1 + 0.1 * (seed % 3))]], metric=metric)
            each = tuple(replace(task, **tasks) for task in run.tasks)
            runs.append(replace(run, tasks=each, config={**run.config, **(config or {})}))
    return Runs.of(runs)


@pytest.mark.parametrize("metric", [F1, R_SQUARED, BALANCED_ACCURACY])
def test_no_difference_is_more_than_luck_where_the_error_by_the_samples_is_not_known(metric: Metric) -> None:
    runs = spread(metric, {})
    (row,) = differences(runs).rows
    assert row["average_score_low"] < row["average_score_high"] < 0, "the seeds alone would tell"
    assert row["average_score_significant"] is None
    found = forest(differences(runs), "ewc", runs)
    assert found["rows"][0]["word"] == "cannot be told"
    assert "not known" in found["samples"]
    assert "the error by the choice of the test samples is not known" in headline(runs)
    assert f"the error of {metric.name} by the choice" in to_markdown(differences(runs))


def with_errors(runs: Runs, error: float) -> Runs:
    """The same runs with an error of every score by the choice of the test samples."""
    return Runs.of(
        replace(run, scores=tuple(tuple(replace(score, error=error) for score in row) for row in run.scores))
        for _, _, run in runs.each()
    )


@pytest.mark.parametrize("metric", [F1, R_SQUARED, MEAN_ABSOLUTE_ERROR])
def test_errors_that_tests_have_estimated_tell_luck_from_more(metric: Metric) -> None:
    sure, unsure = (with_errors(spread(metric, {"test": 10_000}), error) for error in (0.001, 0.05))
    for runs, is_more in ((sure, True), (unsure, False)):
        (row,) = differences(runs).rows
        assert row["average_score_significant"] is is_more
        assert "not known" not in headline(runs)
    (row,) = differences(unsure).rows
    assert row["average_score_high"] - row["average_score"] == pytest.approx(1.96 * math.hypot(0.05, 0.05), rel=1e-3)


def test_no_share_is_surer_than_an_accuracy_of_as_many_samples() -> None:
    f1 = differences(with_errors(spread(F1, {"test": 100}), 1e-9)).rows[0]
    plain = differences(spread(ACCURACY, {"test": 100})).rows[0]
    assert f1["average_score_high"] == plain["average_accuracy_high"]


def test_a_verdict_needs_the_errors_of_all_runs() -> None:
    runs = [run for _, _, run in spread(R_SQUARED, {}).each()]
    some = [run for _, _, run in with_errors(Runs.of(runs[:-1]), 0.001).each()]
    mixed = Runs.of([*some, runs[-1]])
    assert differences(mixed).rows[0]["average_score_significant"] is None
    assert "not known" in headline(mixed)


@pytest.mark.parametrize("counts", [(50, 50), (90, 10), (1, 33, 66)])
def test_balanced_accuracy_has_no_smaller_error_than_accuracy(counts: tuple[int, ...]) -> None:
    """The metric alone must not make a difference more than luck."""
    plain = differences(spread(ACCURACY, {"test": 100})).rows[0]
    balanced = differences(spread(BALANCED_ACCURACY, {"test": 100, "test_by_class": counts})).rows[0]
    assert plain["average_accuracy_significant"] is balanced["average_score_significant"] is False
    assert balanced["average_score_high"] >= plain["average_accuracy_high"] - 1e-9
    many = tuple(1000 * count for count in counts)
    assert differences(spread(BALANCED_ACCURACY, {"test_by_class": many})).rows[0]["average_score_significant"]


@pytest.mark.parametrize("metric", [ACCURACY, F1])
def test_seeds_that_draw_their_test_samples_show_the_error_by_their_choice(metric: Metric) -> None:
    key = Runs.of([of("ewc", 0, [[0.5]], metric=metric)]).average
    same, drawn = spread(metric, {}, seeds=10), spread(metric, {"test_drawn": 0.2}, seeds=10)
    (row,), (cautious,) = differences(drawn).rows, differences(same).rows
    assert row[f"{key}_significant"] is True
    assert not cautious[f"{key}_significant"]
    runs = [drawn.by_label[label] for label in ("hat", "ewc")]
    leads = [a.scores[0][0].value - b.scores[0][0].value for a, b in zip(*(of.values() for of in runs), strict=True)]
    half = 2.26216 * statistics.stdev(leads) * math.sqrt(1 / 10 + 0.25)
    assert row[f"{key}_high"] - row[key] == pytest.approx(half, rel=1e-4)
    assert "each seed drew its own" in forest(differences(drawn), "ewc", drawn)["samples"]


def test_what_tells_that_seeds_drew_their_test_samples() -> None:
    def share(run: RunResult) -> float | None:
        return drawn_share(run, len(run.scores))

    run = synthetic("sgd", 0, 2)
    assert share(run) is None
    assert share(replace(run, config={"test_share": 0.3})) is None, "the files may have test samples of their own"
    assert share(replace(run, config={"tested_on": "validation"})) == pytest.approx(50 / 150)
    first, second = (replace(task, test_drawn=value) for task, value in zip(run.tasks, (0.2, 0.3), strict=True))
    assert share(replace(run, tasks=(first, second))) == 0.3
    assert share(replace(run, tasks=(first, run.tasks[1]))) is None, "one of both is the same for all seeds"
    lines = tuple(f'{task.name}: npz, SHA-256 0{READ_WITH}{{"test_share": 0.25}}' for task in run.tasks)
    assert share(replace(run, data=lines)) == 0.25
    assert share(replace(run, data=lines, config={"test_share": 0.4})) == 0.4, "a setting wins"
    assert share(replace(run, data=lines[:1])) is None


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
