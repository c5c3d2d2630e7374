"""Notes of tables, figures and the page on runs that were made under different conditions, of which none is ahead."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hatrack.cli import main
from hatrack.errors import InputError
from hatrack.experiments import Comparison, RunResult
from hatrack.experiments.own_method import OwnMethod
from hatrack.experiments.plan import ComparisonPlan
from hatrack.experiments.results import read_result, write_result
from hatrack.experiments.settings import SAMPLES, NetworkSettings, StreamSettings
from hatrack.methods import METHODS
from hatrack.report import comparison_table, tables
from hatrack.report.conditions import learned_test_samples
from hatrack.report.figures import FIGURES, TABLES
from hatrack.report.page import html_report
from hatrack.report.panels import task_panels
from hatrack.report.runs import Runs
from hatrack.report.sections import cards, sentences
from hatrack.report.verdict import differences, verdict
from hatrack.report.writers import to_latex, to_markdown
from hatrack.train import TrainingSettings
from support.synthetic import recognised, synthetic

PARTS = (StreamSettings, NetworkSettings, TrainingSettings)
COMMON = [field.name for part in PARTS for field in dataclasses.fields(part) if field.name not in (*SAMPLES, "infer")]
MAY_BE_CHOSEN = {
    *("lr", "optimizer", "momentum", "weight_decay", "clip_norm", "class_weights"),
    *("eval_batch_size", "fresh_statistics", "precision", "captured", "channels_last"),
}
WORDS = "differ in settings that are not a method's own"


def of(method: str, seed: int = 0, **settings: Any) -> RunResult:
    run = synthetic(method, seed, 2)
    return replace(run, config={**run.config, **settings})


def several(one: dict[str, Any], other: dict[str, Any]) -> Runs:
    """Three seeds of hat and of sgd, with settings."""
    both = (("hat", one), ("sgd", other))
    return Runs.of(of(method, seed, **settings) for method, settings in both for seed in range(3))


@pytest.mark.parametrize("key", COMMON)
def test_every_setting_that_methods_have_in_common_is_named_where_it_differs(key: str) -> None:
    """Where one has more to learn with than the other, nobody is ahead; a learning rate may be chosen for each."""
    runs = several({key: 11}, {key: 12})
    assert f"{key}: " in runs.note_on_conditions
    assert "11 for " in runs.note_on_conditions
    assert "12 for sgd" in runs.note_on_conditions
    assert bool(runs.unequal_settings) is (key not in MAY_BE_CHOSEN)
    assert ("no method is called ahead" in runs.note_on_conditions) is bool(runs.unequal_settings)
    if runs.unequal_settings:
        for make in (verdict, differences):
            with pytest.raises(InputError, match=f"{key}: .* report on each alone"):
                make(runs)
        assert [card["what"] for card in cards(runs, None)] == ["no output on an old task ever changed"]
        assert f"{key}: " in sentences(runs, None)[0]
    else:
        assert verdict(runs).second is not None
    assert not several({key: 11}, {key: 11}).note_on_conditions


def test_what_a_method_or_its_preset_sets_for_it_alone_is_its_own() -> None:
    runs = [
        of("sgd", lr=0.05, batch_size=64, clip_norm=10000.0),
        of("ewc", lr=0.05, batch_size=64, clip_norm=100.0),  # as ewc's own defaults
        of("dwa", lr=0.075, batch_size=32, clip_norm=10000.0),  # as the presets of its paper
    ]
    of_preset = [replace(run, experiment="split-cifar10") for run in runs]
    assert not Runs.of(of_preset).note_on_conditions
    assert (
        "batch_size: 32 for dwa, 64 for sgd and ewc"
        in Runs.of(replace(run, experiment="own") for run in runs).unequal_settings
    )


def test_what_a_class_of_one_s_own_sets_is_its_own_as_its_run_says(tmp_path: Path) -> None:
    """It need not be there; a run of before says nothing, and what it set counts with the others."""

    def competing(own: OwnMethod | None, **settings: Any) -> Runs:
        write_result(tmp_path / "run.json", replace(of("absent:Mine", **settings), own_method=own))
        mine = read_result(tmp_path / "run.json")
        assert mine.own_method == own
        return Runs.of([of("hat", batch_size=64), of("sgd", batch_size=64), mine])

    own = OwnMethod({"batch_size": 16}, trains=True, source_sha256="0" * 64)
    assert not competing(own, batch_size=16).note_on_conditions
    assert "32 for absent:Mine" in competing(own, batch_size=32).unequal_settings
    assert "16 for absent:Mine" in competing(None, batch_size=16).unequal_settings
    assert not competing(OwnMethod({}, trains=False, source_sha256=None), batch_size=16, epochs=9).note_on_conditions


def test_settings_of_what_trains_nothing_or_only_refers_rank_nobody_down() -> None:
    assert not Runs.of([of("hat"), of("sgd"), of("random", epochs=11)]).note_on_conditions
    runs = Runs.of([of("hat"), of("sgd"), of("joint", epochs=11)])
    assert "epochs: " in runs.note_on_conditions
    assert not runs.unequal_settings
    assert "11 for joint" in sentences(runs, verdict(runs))[0]


def test_every_table_every_figure_and_the_page_say_so() -> None:
    runs = Runs.of(
        recognised(run) if run.method == "hat" else run
        for run in (of(method, epochs=epochs) for method, epochs in (("hat", 12), ("sgd", 1), ("joint", 12)))
    )
    for name, make in TABLES.items():
        if name in ("data", "differences", "forgetting-ratios", "published"):
            continue  # about the tasks alone, or not to be had here
        table = make(runs)
        assert WORDS in table.note, name
        assert WORDS in to_markdown(table)
        assert next(line for line in to_latex(table).splitlines() if WORDS in line).startswith("% ")
    for name in ("accuracy", "time"):
        assert WORDS in FIGURES[name].draw(runs).note
    page = html_report(runs)
    assert page.count("Runs differ in settings that are not a method&#39;s own") >= 4
    assert "highest accuracy after the last task" not in page
    assert 'id="differences"' not in page


def test_runs_that_are_left_out_are_named_beneath_every_table() -> None:
    run = synthetic("hat", 0, 3)
    gone = replace(run, seed=1, scores=run.scores[:2], tasks=run.tasks[:2], forgotten=1)
    nothing = replace(run, seed=2, scores=(), tasks=(), forgotten=3)
    behind = replace(run, seed=3, scores=run.scores[:1])
    runs = Runs.of([run, gone, nothing, behind, gone])
    assert runs.left_out == (
        "hat, seed 1: a task of it was forgotten",
        "hat, seed 2: all that it learned was forgotten",
        "hat, seed 3: 1 of 3 tasks learned",
    )
    for said in runs.left_out:
        assert said in to_markdown(TABLES["summary"](runs))
        assert said in FIGURES["accuracy"].draw(runs).note
    many = replace(runs, left_out=tuple(f"sgd, seed {seed}, failed: out\nof memory" for seed in range(30)))
    assert "sgd, seed 9, failed: out of memory; 20 more" in TABLES["summary"](many).note


def test_plain_values_have_their_notes_beside_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, epochs in (("hat", 12), ("sgd", 1)):
        write_result(tmp_path / name / "run.json", of(name, epochs=epochs))
    assert main(["report", str(tmp_path), "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("method,")
    assert " ".join(err.split()).startswith(f"warning: Runs {WORDS}")


def test_losses_that_weigh_classes_are_said_to_be_others() -> None:
    words = "class_weights: plain for hat, balanced for sgd"
    runs = several({}, {"class_weights": "balanced"})
    for name in ("accuracy", "learning"):
        assert "not to be compared" in TABLES[name](runs).note
        assert words in TABLES[name](runs).note
    assert "not to be compared" in FIGURES["learning"].draw(runs).note
    assert html_report(runs).count("Losses are of different definitions, and not to be compared") >= 3
    alike = several({"class_weights": "balanced"}, {"class_weights": "balanced"})
    assert tables.accuracy(alike).note == "losses weigh classes (class_weights=balanced)"
    assert not tables.accuracy(several({}, {})).note


def test_times_say_whose_have_recognition_in_them() -> None:
    words = "times of hat have the recognition of tasks in them (infer=true)"
    runs = Runs.of([recognised(synthetic("hat", 0, 2)), synthetic("sgd", 0, 2)])
    for name in ("timing", "summary", "by-task"):
        assert words in TABLES[name](runs).note.replace("Times", "times"), name
    for name in ("time", "time-by-task"):
        assert words in FIGURES[name].draw(runs).note
    panels = task_panels(runs, {name: TABLES[name](runs) for name in ("curves", "by-task", "usage")} | _usage(runs))
    assert words[1:] in next(panel.text for panel in panels if panel.name == "seconds")
    assert "infer" not in TABLES["timing"](Runs.of([synthetic("hat", 0, 2), synthetic("sgd", 0, 2)])).note


def _usage(runs: Runs) -> dict[str, Any]:
    from hatrack.report.inside import mean_usage

    return {"mean-usage": mean_usage(runs)}


def test_the_table_of_compare_says_so_too() -> None:
    results = {(method, 0): of(method, epochs=epochs) for method, epochs in (("hat", 12), ("sgd", 1))}
    comparison = Comparison(ComparisonPlan("split-mnist", ("hat", "sgd", "joint", "random"), (0,)), results, {}, {})
    assert "so that no method is called ahead" in str(comparison_table(comparison).caption)
    alike = replace(comparison, results={("hat", 0): of("hat"), ("sgd", 0): of("sgd")})
    assert WORDS not in str(comparison_table(alike).caption)


def seen(method: str, seed: int, *counts: dict[str, int]) -> RunResult:
    """A run whose tasks have these numbers of test samples that tasks train on."""
    run = synthetic(method, seed, len(counts))
    tasks = (replace(task, test_seen=of) for task, of in zip(run.tasks, counts, strict=True))
    return replace(run, tasks=tuple(tasks))


SEEN = (
    "ome tests are on samples that were learned from (7 of the 50 test samples of task-1 are its own training samples"
)


def test_test_samples_that_were_learned_from_are_said_wherever_scores_are() -> None:
    runs = Runs.of(seen(method, seed, {"task-1": 7}, {}) for method in ("hat", "sgd") for seed in range(2))
    assert runs.note_on_tests[1:] == f"{SEEN})"
    for name, make in TABLES.items():
        if name not in ("published", "forgetting-ratios", "sensitivity"):  # of which these runs have none
            assert SEEN in make(runs).note, name
    assert SEEN in FIGURES["accuracy"].draw(runs).note
    page = html_report(runs)
    assert page.count(SEEN) >= 4
    assert "never learned from" not in page
    results = {("hat", 0): seen("hat", 0, {"task-1": 7}, {})}
    comparison = Comparison(ComparisonPlan("split-mnist", ("hat", "joint", "random"), (0,)), results, {}, {})
    assert SEEN in str(comparison_table(comparison).caption)
    assert SEEN in runs._repr_html_()


def test_where_none_is_known_to_be_learned_from_nothing_is_said() -> None:
    assert not several({}, {}).note_on_tests
    runs = Runs.of([seen("hat", 0, {})])
    assert not runs.note_on_tests
    assert "that it never learned from" in html_report(runs)


def test_which_test_samples_were_learned_from() -> None:
    """Those of tasks that are not learned yet do not count, and where seeds draw, the largest number is said."""
    counts = [{"task-2": 3, "task-3": 9}, {"task-1": 5}, {"task-3": 8}]
    whole = learned_test_samples([seen("hat", 0, *counts)])
    assert "3 of the 50 test samples of task-1 are training samples of task-2, 9 of the 50" in whole
    assert "8 of the 50 test samples of task-3 are its own training samples" in whole
    begun = seen("hat", 0, *counts)
    begun = replace(begun, scores=begun.scores[:2])
    assert "task-3" not in learned_test_samples([begun])
    several_seeds = [seen("hat", seed, {"task-1": count}) for seed, count in enumerate((4, 6, 0))]
    assert "(up to 6 of the 50 test samples of task-1 are its own" in learned_test_samples(several_seeds)
    many = seen("hat", 0, *({f"task-{other}": 1 for other in range(1, 4)} for _ in range(3)))
    assert learned_test_samples([many]).endswith("4 more such pairs of tasks)")


def test_who_made_more_epochs_than_the_setting_says_is_named() -> None:
    """The two paths of PathNet learn for as long as ``epochs`` each."""
    runs = Runs.of([of("hat", epochs=5), replace(of("pathnet", epochs=5), epochs=(10, 8))])
    assert "more epochs of a task are made than `epochs` says (10 of 5 for pathnet)" in runs.note_on_conditions.lower()
    assert not runs.unequal_settings
    assert "epochs" in METHODS["pathnet"].description
