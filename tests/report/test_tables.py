from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from hatrack.cli import main
from hatrack.errors import InputError
from hatrack.experiments import Comparison, RunResult, Status, read_result
from hatrack.experiments.comparison import write_failure
from hatrack.experiments.metrics import forward_transfer, learning_accuracy
from hatrack.experiments.plan import ComparisonPlan, run_folder, write_plan
from hatrack.experiments.results import write_result
from hatrack.report import inside, recognition, tables
from hatrack.report.figures import FIGURES, TABLES
from hatrack.report.runs import Runs, read_runs
from hatrack.report.table import Row, Table
from hatrack.report.verdict import differences, timing, verdict
from hatrack.report.writers import WRITERS, to_csv, to_json, to_latex, to_markdown
from hatrack.train import Score
from support.marks import slow_but
from support.synthetic import METHODS, recognised, synthetic


def by_hand(method: str, rows: list[list[float]], seed: int = 0) -> RunResult:
    scores = tuple(tuple(Score(0.0, value, f"{method}{value}") for value in row) for row in rows)
    return replace(synthetic(method, seed, len(rows)), scores=scores)


HAND = Runs.of(
    [
        by_hand("sgd", [[0.9], [0.7, 0.8]]),
        by_hand("hat", [[0.8], [0.8, 0.9]]),
        by_hand("joint", [[0.9], [1.0, 0.9]]),
        by_hand("random", [[0.5], [0.5, 0.5]]),
        by_hand("independent", [[0.9], [0.9, 0.7]]),
    ]
)


def row_of(table: Table, method: str, **where: object) -> Row:
    wanted = {"method": method, **where}
    (row,) = [row for row in table.rows if all(row[key] == value for key, value in wanted.items())]
    return row


def test_summary_by_hand() -> None:
    sgd, hat = (row_of(tables.summary(HAND), method) for method in ("sgd", "hat"))
    assert sgd["average_accuracy"] == pytest.approx(0.75)
    assert sgd["forgetting"] == pytest.approx(0.2)
    assert sgd["learning_accuracy"] == pytest.approx(0.85)
    assert sgd["forward_transfer"] == pytest.approx(0.1)
    # (0.7 − 0.5) / (1.0 − 0.5) − 1 and (0.8 − 0.5) / (0.9 − 0.5) − 1
    assert sgd["forgetting_ratio"] == pytest.approx((-0.6 - 0.25) / 2)
    assert (sgd["unchanged"], hat["unchanged"], hat["seeds"]) == (0, 1, 1)
    assert hat["average_accuracy_sd"] is None, "one seed has no spread"
    assert [row["method"] for row in tables.summary(HAND).rows] == ["joint", "hat", "independent", "sgd", "random"]


def test_curves_by_hand() -> None:
    first, second = (row_of(tables.curves(HAND), "sgd", after=after) for after in (1, 2))
    assert (first["average_accuracy"], first["forgetting"]) == (0.9, 0.0)
    assert first["forgetting_ratio"] == pytest.approx(0.0)
    assert second["average_accuracy"] == pytest.approx(0.75)


def test_ratios_need_joint_and_random() -> None:
    alone = Runs.of([by_hand("sgd", [[0.9], [0.7, 0.8]])])
    assert tables.forgetting_ratios(alone).rows == ()
    assert "ρ" not in to_markdown(tables.summary(alone))
    assert row_of(tables.forgetting_ratios(HAND), "joint")["after_2"] == pytest.approx(0.0)


def test_usage_of_seeds_that_stop_after_other_numbers_of_epochs() -> None:
    first, second = synthetic("hat", 0, 1), synthetic("hat", 1, 1)
    first = replace(first, history=(replace(first.history[0], used=(0.6, 0.4)),))
    second = replace(second, history=(replace(second.history[0], used=(0.9, 0.7, 0.5, 0.3)),))
    rows = inside.mean_usage(Runs.of([first, second]), points=4).rows
    assert [row["progress"] for row in rows] == [0.25, 0.5, 0.75, 1.0]
    assert [row["used"] for row in rows] == pytest.approx([0.75, 0.65, 0.45, 0.35])


def test_metrics_by_hand() -> None:
    matrix = [[0.9, None], [0.7, 0.8]]
    assert learning_accuracy(matrix) == pytest.approx(0.85)
    assert forward_transfer(matrix, [0.9, 0.7]) == pytest.approx(0.1)
    assert forward_transfer([[0.5]], [0.4]) == 0.0


def test_references_do_not_win_and_luck_is_told_from_more() -> None:
    def pair(method: str, values: tuple[float, ...]) -> list[RunResult]:
        runs = [by_hand(method, [[value]], seed) for seed, value in enumerate(values)]
        return [replace(run, tasks=(replace(run.tasks[0], test=1000),)) for run in runs]

    clear = Runs.of([*pair("hat", (0.90, 0.91, 0.92)), *pair("sgd", (0.80, 0.81, 0.83)), *pair("joint", (1.0,) * 3)])
    outcome = verdict(clear)
    assert (outcome.best, outcome.second) == ("hat", "sgd")
    assert outcome.lead is not None
    assert outcome.lead.is_significant
    assert row_of(differences(clear), "sgd")["average_accuracy"] == pytest.approx(-0.29 / 3)
    luck = Runs.of([*pair("hat", (0.90, 0.70, 0.92)), *pair("sgd", (0.80, 0.81, 0.83))])
    lead = verdict(luck).lead
    assert lead is not None
    assert lead.is_significant is False
    assert verdict(Runs.of(pair("hat", (0.9,)))).second is None


def test_what_does_not_belong_together_is_refused_or_left_out() -> None:
    run = synthetic("hat", 0, 3)
    with pytest.raises(InputError, match="different experiments: demo, split-mnist"):
        Runs.of([run, replace(run, experiment="demo")])
    with pytest.raises(InputError, match="different numbers of tasks"):
        Runs.of([run, synthetic("sgd", 0, 2)])
    own = [
        replace(
            each, sources=("a.toml",), data=tuple(f"{task.name}: npz, SHA-256 {str(n) * 64}" for task in each.tasks)
        )
        for n, each in enumerate((run, synthetic("sgd", 0, 3), synthetic("sgd", 0, 2)))
    ]
    with pytest.raises(InputError, match=r"of different numbers of tasks: 2 tasks, 3 tasks$"):
        Runs.of([own[0], own[2]])
    digests = r"task-1: npz, SHA-256 0{12}…, task-1: npz, SHA-256 1{12}…$"
    with pytest.raises(InputError, match=rf"of different data: {digests}"):
        Runs.of(own[:2])
    with pytest.raises(InputError, match="two runs of hat with seed 0"):
        Runs.of([run, run])
    with pytest.raises(InputError, match="no run in which a task has been learned"):
        Runs.of([replace(run, scores=())])
    behind = replace(synthetic("sgd", 1, 3), scores=run.scores[:2], status=Status.RUNNING)
    runs = Runs.of([run, behind])
    assert runs.labels == ("hat",)
    assert runs.left_out == ("sgd, seed 1: 2 of 3 tasks learned",)


def test_runs_of_a_method_with_other_settings_get_labels_of_their_own() -> None:
    run = synthetic("hat", 0, 2)
    runs = Runs.of([replace(run, config={**run.config, "s_max": value}) for value in (50.0, 400.0)])
    assert set(runs.labels) == {"hat (s_max=50)", "hat (s_max=400)"}
    assert [row["s_max"] for row in tables.sensitivity(runs).rows] == [50.0, 400.0]
    with pytest.raises(InputError, match="these do not differ"):
        tables.sensitivity(Runs.of([run]))


def test_a_comparison_is_read_with_its_failures(tmp_path: Path) -> None:
    plan = ComparisonPlan("split-mnist", ("hat", "sgd", "joint", "random"), (0,))
    write_plan(tmp_path, plan, {})
    for method in ("hat", "joint", "random"):
        write_result(run_folder(tmp_path, method, 0) / "run.json", synthetic(method, 0, 3))
    write_failure(run_folder(tmp_path, "sgd", 0), "out of memory")
    runs = read_runs(tmp_path)
    assert set(runs.labels) == {"hat", "joint", "random"}
    assert runs.left_out == ("sgd, seed 0, failed: out of memory",)
    ratios = Comparison.read(tmp_path).forgetting_ratio("hat", 0)
    assert ratios is not None
    assert [runs.forgetting_ratio("hat", 0, after) for after in range(3)] == pytest.approx(list(ratios))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run\.json"):
        read_runs(tmp_path)


RUNS = Runs.of(
    recognised(run) if run.method == "hat" else run
    for run in (synthetic(method, seed, 3) for method in METHODS for seed in range(2))
)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_can_be_written_and_read_again(name: str) -> None:
    table = TABLES[name](RUNS)
    assert table.rows
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(rows) == len(table.rows)
    for column in table.columns:
        value = table.rows[0][column.key]
        assert rows[0][column.key] == ("" if value is None else str(value))
    assert json.loads(to_json(table)) == [dict(row) for row in table.rows]
    assert to_markdown(table).count("\n") == len(table.rows) + 2 + 2 * bool(table.note)
    assert to_latex(table).count(r"\\") == len(table.rows) + 1


def test_special_characters_do_not_break_tables() -> None:
    table = tables.data(Runs.of([synthetic("hat", 0, 2, names="a|b_{} & 50% <i>")]))
    assert "a\\|b_1 & 50% &lt;i>" in to_markdown(table)
    assert r"a|b\_1 \& 50\% <i>" in to_latex(table)


def test_missing_figures_are_a_dash_and_minus_zero_is_zero() -> None:
    assert "| –" in to_markdown(tables.summary(RUNS))
    assert "−0.00" not in to_markdown(tables.summary(RUNS))


def test_time_is_compared_with_fine_tuning() -> None:
    assert row_of(timing(RUNS), "hat")["times_sgd"] == 1.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for method in ("hat", "sgd", "joint", "random"):
        result = synthetic(method, 0, 3)
        write_result(tmp_path / "runs" / method / "run.json", recognised(result) if method == "hat" else result)
    return tmp_path


def test_results_with_history_survive_writing(folder: Path) -> None:
    assert read_result(folder / "runs" / "hat" / "run.json") == recognised(synthetic("hat", 0, 3))


@pytest.mark.parametrize("kind", WRITERS)
def test_the_command_prints_tables(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder / "runs"), "--format", kind, "--table", "summary"]) == 0
    assert capsys.readouterr().out == WRITERS[kind](tables.summary(read_runs(folder)))


@pytest.mark.parametrize(
    "name", slow_but(["usage", "heatmap", "forgetting"], [name for name in FIGURES if name != "sensitivity"])
)
def test_every_figure_can_be_drawn(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "out" / f"{name}.svg"
    assert main(["figure", name, str(folder / "runs"), "-o", str(out)]) == 0
    assert capsys.readouterr().err == ""
    text = out.read_text()
    assert text.startswith("<svg")
    assert "NaN" not in text
    if name in ("accuracy", "forgetting", "forgetting-ratio", "usage"):
        assert ">hat</text>" in text, "a legend says which line is which"
    assert out.with_suffix(".csv").read_text().count("\n") > 1


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.5, 50.0, 2.0], [0.5, 2.0, 50.0]),
        ([1.0, 0.0], [0.0, 1.0]),
        ([None, 0.1, True, "auto"], [0.1, "True", "auto", "none"]),
    ],
)
def test_settings_that_are_no_numbers_or_zero_can_be_drawn(values: list[object], shown: list[object]) -> None:
    runs = Runs.of([replace(synthetic("hat", 0, 3), config={"c": value}) for value in values])
    drawn = FIGURES["sensitivity"].draw(runs)
    assert [row["c"] for row in drawn.table.rows] == shown
    axis = drawn.chart.to_dict()["encoding"]["x"]
    assert (axis["type"] == "ordinal") == any(isinstance(value, str) for value in shown)
    assert (axis["type"] == "quantitative" and axis["scale"].get("type") == "log") == (shown[0] == 0.5)


def test_a_legend_names_what_is_drawn_alone() -> None:
    runs = Runs.of([recognised(synthetic("hat", 0, 3)), synthetic("sgd", 0, 3)])
    spec = FIGURES["class-incremental"].draw(runs).chart.to_dict()
    assert spec["layer"][-1]["encoding"]["color"]["scale"]["domain"] == ["hat"]


def test_the_axis_of_time_says_what_it_is_once() -> None:
    spec = str(FIGURES["time"].draw(Runs.of([synthetic("hat", 0, 3)])).chart.to_dict())
    assert "time (seconds)" in spec
    assert "seconds (seconds)" not in spec


@pytest.mark.parametrize("name", FIGURES)
def test_a_method_is_refused_where_all_are_shown_and_followed_where_one_is(name: str) -> None:
    runs = Runs.of([recognised(synthetic(method, seed, 3)) for method in ("hat", "pmask") for seed in (0, 1)])
    figure = FIGURES[name]
    if figure.of_one_method:
        drawn, usual = figure.draw(runs, "pmask"), figure.draw(runs)
        assert [{row["method"] for row in one.table.rows} for one in (drawn, usual)] == [{"pmask"}, {"hat"}]
        assert drawn.title.endswith(", pmask"), "a picture says whose it is"
        with pytest.raises(InputError, match="no such data of 'nobody' here; choose one of: hat, pmask"):
            figure.draw(runs, "nobody")
    else:
        with pytest.raises(InputError, match=f"the figure {name} shows all methods; one can be chosen for: reuse, "):
            figure.draw(runs, "pmask")


@pytest.mark.slow
def test_figures_in_other_forms(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = str(folder / "runs")
    assert main(["figure", "accuracy", runs, "-o", str(folder / "a.pdf")]) == 0
    assert (folder / "a.pdf").read_bytes().startswith(b"%PDF")
    assert main(["figure", "accuracy", runs, "-o", str(folder / "a.gif")]) == 2
    assert "as .svg, .pdf or .png" in capsys.readouterr().err
    assert main(["figure", "reuse", runs, "--method", "sgd", "-o", str(folder / "a.svg")]) == 2
    assert "hat" in capsys.readouterr().err
    assert main(["figure", "sensitivity", runs]) == 2
    assert "these do not differ" in capsys.readouterr().err


def test_recognition_by_hand() -> None:
    runs = Runs.of([recognised(synthetic("hat", seed, 3)) for seed in (0, 1)] + [synthetic("sgd", 0, 3)])
    hat, sgd = (row_of(tables.summary(runs), method) for method in ("hat", "sgd"))
    # Every class has 50 samples, of which 10 are taken for the next class: of two classes of a task one leaves it.
    assert (hat["class_incremental_accuracy"], hat["task_recognised"]) == pytest.approx((0.8, 0.9))
    assert hat["task_recognised_sd"] == pytest.approx(0.0)
    assert sgd["class_incremental_accuracy"] is None
    after = [row for row in tables.curves(runs).rows if row["method"] == "hat"]
    assert [row["task_recognised"] for row in after] == pytest.approx([1.0, 0.9, 0.9])
    rows = recognition.recognition(runs).rows
    assert len(rows) == 2 * (1 + 2 + 3)
    last = rows[5]
    assert (last["after"], last["task"], last["class_incremental"], last["auroc"]) == (3, 3, 0.8, pytest.approx(0.92))
    assert rows[0]["auroc"] is None
    of_tasks = {(row["task"], row["taken_for"]): row["count"] for row in recognition.task_confusion(runs).rows}
    assert (of_tasks[1, 1], of_tasks[1, 2], of_tasks[1, 3], of_tasks[3, 1]) == (90, 10, 0, 10)
    of_classes = recognition.class_confusion(runs).rows
    assert len(of_classes) == 2 * 6 * 2, "pairs that never happen are left out"
    assert {row["share"] for row in of_classes} == {0.8, 0.2}
    shares = recognition.mean_class_shares(runs, "hat")
    assert (shares.classes[2], shares.rows[2][3], shares.seeds) == ((2, "class 1"), 0.2, (0, 1))
    assert recognition.mean_class_shares(runs, "sgd").rows == ()
    without = Runs.of([synthetic("hat", 0, 3)])
    assert "task_recognised" not in [column.key for column in tables.summary(without).columns]
    assert not recognition.recognition(without).rows


def test_class_confusion_is_the_mean_of_seeds_with_the_same_classes_alone() -> None:
    other = recognised(synthetic("hat", 1, 2))
    first, second = (replace(task, class_names=(f"{task.name}-a", f"{task.name}-b")) for task in other.tasks)
    moved = [replace(other, tasks=(first, second)), replace(other, seed=2, tasks=(second, first))]
    assert recognition.mean_class_shares(Runs.of(moved), "hat").seeds == (1,)
