from __future__ import annotations

import csv
from pathlib import Path

import pytest

from hatrack.cli import main
from hatrack.report.drawings import DRAWINGS, DRAWINGS_OF_ONE
from hatrack.report.figures import FIGURES
from hatrack.report.pictures import PICTURES
from hatrack.report.studies import STUDIES, requests

QUICK = ["--set", "epochs=2", "--set", "hidden=20,20", "--set", "limit=100", "--set", "num_tasks=2"]


def test_every_figure_and_study_can_be_drawn() -> None:
    assert set(FIGURES) == {*DRAWINGS, *DRAWINGS_OF_ONE}
    assert {name for name, figure in FIGURES.items() if figure.of_one_method} == set(DRAWINGS_OF_ONE)
    for study in STUDIES.values():
        drawn = [study.figure in FIGURES, study.picture in PICTURES]
        assert sorted(drawn) == [False, True], f"{study.name} draws a figure or a picture"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["input-attention", "weight-masks", "gradient"])
def test_pictures(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyse", name, *(QUICK if STUDIES[name].methods else []), "-o", str(tmp_path)]) == 0
    assert f"wrote {tmp_path / name}.svg" in capsys.readouterr().out.replace("\n", "")
    assert (tmp_path / f"{name}.svg").read_text().startswith("<svg")
    with (tmp_path / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    if name != "gradient":
        pictures = 2 if name == "input-attention" else 3  # the last is of both tasks together
        assert len(rows) == pictures * 28 * 28
        assert all(0.0 <= float(row["share"]) <= 1.0 for row in rows)
        return
    at = {(row["gate"], round(float(row["e"]), 2)): float(row["gradient"]) for row in rows}
    # Without compensation the steps with a large scale count, whose slope s σ'(s e) is 0 but for e near 0.
    assert at["annealed", 1.0] < 0.02 < at["annealed and compensated", 1.0]
    # With s = 1 the slope is σ'(e), 4 σ(e)(1 − σ(e)) of its largest.
    assert at["s = 1 throughout", 1.0] == pytest.approx(4 * 0.7310586 * 0.2689414, abs=1e-6)
    assert all(value == pytest.approx(1.0) for (_, e), value in at.items() if e == 0.0)


@pytest.mark.slow
def test_sensitivity_runs_every_variant_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    command = ["analyse", "sensitivity-c", *QUICK, "-o", str(tmp_path), "--quiet"]
    assert main(command) == 0
    with (tmp_path / "sensitivity-c.csv").open() as file:
        assert [float(row["c"]) for row in csv.DictReader(file)] == [0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 4.0]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert len(times) == 8
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")} == times


@pytest.mark.parametrize("name", STUDIES)
def test_runs_of_a_study_have_folders_of_their_own(name: str, tmp_path: Path) -> None:
    wanted = requests(STUDIES[name], tmp_path, seeds=range(3), overrides={"epochs": 2})
    assert len({request.out for request in wanted}) == len(wanted)
    assert all(request.overrides["epochs"] == 2 for request in wanted)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("gradient --set foo=bar", "trains nothing; leave out --set"),
        ("gradient --experiment demo --set limit=60", "trains nothing; leave out --experiment and --set"),
        ("gradient --seeds 3", "trains nothing; leave out --seeds"),
        ("weight-masks --seeds 2", "weight-masks draws the run of one seed"),
        (
            "sensitivity-c --set c=1",
            "compares runs with c = 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 4.0; leave out",
        ),
        ("compression --set num_tasks=2", "makes its runs with num_tasks = 1; leave out --set num_tasks"),
        ("many-tasks --set c=1", "c is no setting of this method"),
        ("weight-masks --set network=alexnet", "take an experiment with an mlp (--set network=mlp)"),
        ("input-attention --experiment split-cifar10", "the first layer of alexnet does not read them"),
    ],
)
def test_what_an_analysis_would_make_nothing_of_is_refused_before_it_runs(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyse", *words.split(), "-o", str(tmp_path / "new")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_settings_without_effect_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--set", "epochs=1", "--set", "limit=10", "--set", "hidden=5", "--set", "width=0.5", "--set", "num_tasks=1"]
    assert main(["analyse", "weight-masks", *few, "-o", str(tmp_path)]) == 0
    assert capsys.readouterr().err == "warning: width has no effect without network=alexnet or resnet18\n"
