from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hatrack.cli import main
from hatrack.errors import InputError
from hatrack.experiments import EXPERIMENTS, RunResult
from hatrack.experiments.results import write_result
from hatrack.methods import METHODS
from hatrack.report.literature import HERE, PUBLISHED, published
from hatrack.report.page import html_report
from hatrack.report.runs import Runs, read_runs
from hatrack.report.table import Row, Table
from hatrack.streams.registry import STREAMS
from hatrack.train import Score
from support.synthetic import synthetic


def learned(method: str, accuracies: tuple[float, ...], seed: int = 0, **config: object) -> RunResult:
    """A run of split MNIST, as that experiment has it, with the same accuracy on a task ever after."""
    own = EXPERIMENTS["split-mnist"].config(method).flat()
    scores = tuple(tuple(Score(0.1, value, "0" * 64) for value in accuracies[: t + 1]) for t in range(len(accuracies)))
    tasks = synthetic(method, seed, len(accuracies))
    return replace(tasks, experiment="split-mnist", config={**own, **config}, scores=scores)


def ours(table: Table) -> list[Row]:
    return [row for row in table.rows if row["by"] == HERE]


def test_ours_stand_among_those_of_the_literature_by_what_they_reached() -> None:
    table = published(Runs.of([learned("hat", (0.99, 0.96), 0), learned("hat", (0.97, 0.98), 1)]))
    (row,) = ours(table)
    assert row["average_accuracy"] == pytest.approx(0.975)
    assert row["average_accuracy_sd"] == pytest.approx(0.0)
    assert (row["seeds"], row["network"], row["differs"]) == (2, "800-800", None)
    # Published: 99.03 and 99.0 of HAT are above, 94.9 of CAB is below.
    assert [r["method"] for r in table.rows] == ["hat", "hat", "hat", "cab"]
    assert table.rows[2] is row


def test_what_differs_from_the_experiment_is_said() -> None:
    (row,) = ours(published(Runs.of([learned("hat", (0.9, 0.9), epochs=3, limit=500, hidden=[50])])))
    assert row["network"] == "50"
    assert row["differs"] == "limit=500, epochs=3"


def test_a_method_of_another_version_is_shown_all_the_same() -> None:
    (row,) = ours(published(Runs.of([replace(learned("hat", (0.9, 0.8)), method="hat2")])))
    assert (row["method"], row["average_accuracy"], row["differs"]) == ("hat2", pytest.approx(0.85), None)


def test_a_figure_over_two_tasks_says_nothing_of_one() -> None:
    assert ours(published(Runs.of([learned("hat", (0.99,))]))) == []


def test_forgetting_ratios_are_compared_with_those_of_the_mixture() -> None:
    def mixture(method: str, first: float, second: float) -> RunResult:
        return replace(learned(method, (first, second)), experiment="mixture")

    runs = Runs.of([mixture("ewc", 0.7, 0.9), mixture("joint", 1.0, 0.9), mixture("random", 0.5, 0.5)])
    table = published(runs)
    (row,) = [row for row in ours(table) if row["method"] == "ewc"]
    # (0.7 − 0.5) / (1.0 − 0.5) − 1 = −0.6 and (0.9 − 0.5) / (0.9 − 0.5) − 1 = 0; eight tasks were not learned.
    assert row["forgetting_ratio_2"] == pytest.approx(-0.3)
    assert row["forgetting_ratio_8"] is None
    hat = next(row for row in table.rows if row["method"] == "hat")
    assert (hat["forgetting_ratio_8"], hat["forgetting_ratio_8_sd"]) == (-0.06, 0.01)


def test_every_entry_is_about_a_stream_and_says_who_measured() -> None:
    assert set(PUBLISHED) <= set(STREAMS)
    for entries in PUBLISHED.values():
        for entry in entries:
            assert entry.source
            assert entry.method in METHODS
            for measure, value in entry.figures.items():
                assert -1 <= value <= 1
                assert measure.after <= 10


@pytest.mark.slow
def test_what_nobody_published_is_refused_with_what_there_is() -> None:
    runs = Runs.of([replace(synthetic("hat", 0, 2), experiment="demo")])
    with pytest.raises(InputError, match=r"no published figures are known of demo; there are some of .*split-mnist"):
        published(runs)
    assert "What others found" not in html_report(runs)


@pytest.mark.slow
def test_result_files_of_any_name_can_be_read_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / f"split-mnist-hat-seed{seed}.json" for seed in range(2)]
    for seed, path in enumerate(paths):
        write_result(path, learned("hat", (0.99, 0.97), seed))
    assert read_runs(*paths).seeds == (0, 1)
    names = [str(path) for path in paths]
    assert main(["report", *names, "--table", "published", "--format", "markdown"]) == 0
    printed = capsys.readouterr().out
    assert "| hat | these runs | 800-800 | 98.00 (0.00) | 2 | – |" in printed
    assert "| cab | He and Jaeger, ICLR 2018, in table 8 of Serrà et al., ICML 2018 | – | 94.90 | – | – |" in printed
    out = tmp_path / "published.svg"
    assert main(["figure", "published", *names, "-o", str(out)]) == 0
    assert "these runs" in out.read_text()
    page = html_report(read_runs(*paths))
    assert "What others found" in page
    assert "He and Jaeger" in page


def test_older_results_are_told_apart_by_what_was_recorded_only() -> None:
    run = learned("hat", (0.9, 0.9))
    older = replace(run, config={key: value for key, value in run.config.items() if key != "keep"}, seed=1)
    assert Runs.of([run, older]).labels == ("hat",)
    other = replace(older, config={**older.config, "c": 2.0})
    assert set(Runs.of([run, other]).labels) == {"hat (c=0.1)", "hat (c=2)"}
