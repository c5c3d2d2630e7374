"""Samples that a method keeps of earlier tasks stand beside its accuracy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rich.console import Console

from hatrack.experiments import Comparison, ComparisonPlan, JobDone, jobs_of, read_result
from hatrack.experiments.jobs import carry_out
from hatrack.experiments.plan import write_plan
from hatrack.experiments.results import write_result
from hatrack.report.console import comparison_table, forgetting_line
from hatrack.report.runs import read_runs
from hatrack.report.tables import summary
from support.records import of_a_run


def shown(table: object) -> str:
    console = Console(width=200, record=True, file=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_a_comparison_and_a_table_of_all_methods_have_a_column(tmp_path: Path) -> None:
    plan = ComparisonPlan.make(
        "demo", ["sgd", "er", "gem"], [0], {"hidden": [4], "num_tasks": 2, "limit": 16, "epochs": 1, "er.memory": 10}
    )
    write_plan(tmp_path, plan, {})
    for job in jobs_of(plan, tmp_path):
        if job.request.method != "joint":
            assert [event for event in carry_out(job) if isinstance(event, JobDone)]
    comparison = Comparison.read(tmp_path)
    lines = {line.split()[0]: line for line in shown(comparison_table(comparison)).splitlines() if line.split()}
    assert "samples kept" in lines["method"]
    kept = {method: read_result(tmp_path / method / "seed0" / "run.json").memory for method in ("sgd", "er", "gem")}
    assert kept == {"sgd": None, "er": 10, "gem": 28}  # all that there is: 14 training samples of each task
    assert lines["er"].split()[-4] == "10"
    assert lines["sgd"].split()[-4] == "–"
    table = summary(read_runs(tmp_path))
    assert {row["method"]: row["memory"] for row in table.rows if row["method"] in kept} == kept
    assert "memory" in [column.key for column in table.columns]


def test_a_run_says_how_many_samples_it_keeps(tmp_path: Path) -> None:
    plain, remembering = of_a_run(), dataclasses.replace(of_a_run(), memory=1500)
    assert "kept" not in forgetting_line(dataclasses.replace(plain, capacity=None))
    line = forgetting_line(dataclasses.replace(remembering, capacity=None))
    assert line.endswith(", 1,500 samples of earlier tasks kept")
    for result in (plain, remembering):
        write_result(tmp_path / "run.json", result)
        assert read_result(tmp_path / "run.json").memory == result.memory
        assert ("memory" in json.loads((tmp_path / "run.json").read_text())) is (result.memory is not None)
