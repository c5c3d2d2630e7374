"""The guide to reports is complete."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hatrack.report.figures import FIGURES, TABLES
from hatrack.report.literature import published
from hatrack.report.runs import Runs, read_runs
from hatrack.report.studies import STUDIES
from hatrack.report.table import Table
from hatrack.report.tables import data
from hatrack.report.writers import to_markdown

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "report.md"
RESULTS = ROOT / "benchmarks" / "results"


def test_every_figure_table_and_analysis_is_named() -> None:
    named = set(re.findall(r"`([a-z][a-z-]*)`", GUIDE.read_text(encoding="utf-8")))
    assert {*FIGURES, *TABLES, *STUDIES} <= named


def test_pictures_are_there_described_small_and_used() -> None:
    pictures = re.findall(r"!\[([^\]]+)\]\((report/[^)]+)\)", GUIDE.read_text(encoding="utf-8"))
    shown = {GUIDE.parent / path for _, path in pictures}
    assert shown == set((GUIDE.parent / "report").iterdir())
    assert all(path.stat().st_size < 200_000 for path in shown)
    drawn = {path.stem for path in shown}
    assert {name for name in STUDIES if name not in drawn} == set(), "every analysis has its picture"
    others = {"sensitivity"}  # shown by the analyses that make its runs
    assert {name for name in FIGURES if name not in drawn} == others, "every figure has its picture"


def test_every_command_and_function_of_the_guide_exists() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for kind, names in (("hatrack figure", FIGURES), ("hatrack analyse", STUDIES), ("--table", TABLES)):
        used = {name for name in re.findall(rf"{kind} ([a-zA-Z-]+)", text) if name != "NAME"}
        assert used, kind
        assert used <= set(names)
    functions = re.findall(r"`report\.(\w+)\.(\w+)`", text)
    assert len(functions) > 10
    for module, function in functions:
        assert callable(getattr(importlib.import_module(f"hatrack.report.{module}"), function))


def test_the_program_for_loggers_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(program, "docs/report.md", "exec"), {})
    assert f"```text\n{capsys.readouterr().out}```" in text


@pytest.mark.parametrize(
    ("pattern", "table"),
    [("permuted-mnist-*", published), ("split-mnist-*", published), ("mixture-open-*", data)],
)
def test_tables_of_recorded_results_are_what_the_command_prints(pattern: str, table: Callable[[Runs], Table]) -> None:
    runs = read_runs(*sorted(RESULTS.glob(f"{pattern}.json")))
    assert to_markdown(table(runs)) in GUIDE.read_text(encoding="utf-8")
