"""What the guide to reports says is complete."""

from __future__ import annotations

import re
from pathlib import Path

from hatrack.report.figures import FIGURES, TABLES
from hatrack.report.studies import STUDIES

GUIDE = Path(__file__).parents[2] / "docs" / "report.md"


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
