"""Pictures of docs/report that are drawn from records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support.benchmark_modules import benchmark


@pytest.fixture(scope="module")
def pictures() -> Iterator[ModuleType]:
    with benchmark("pictures") as module:
        yield module


def record(pictures: ModuleType, name: str) -> Any:
    return json.loads((pictures.RESULTS / name).read_text(encoding="utf-8"))


def test_every_line_is_a_mean_over_the_seeds_that_the_record_has(pictures: ModuleType) -> None:
    for picture in pictures.PICTURES.values():
        runs = record(pictures, picture.record)["runs"]
        rows = pictures.rows_of(picture, runs)
        assert {row["method"] for row in rows} == {*picture.lines}
        for row in rows:
            method, chosen = picture.lines[row["method"]]
            of_line = [run for run in runs if (run["method"], run["chosen"]) == (method, chosen)]
            ratios = [run["forgetting_ratios"][row["after"] - 1] for run in of_line]
            assert row["seeds"] == len(of_line) > 0
            assert row["forgetting_ratio"] == pytest.approx(sum(ratios) / len(ratios))


def test_a_line_without_runs_or_without_ratios_is_refused(pictures: ModuleType) -> None:
    picture = pictures.Picture("record.json", "", {"hat": ("hat", "")})
    for runs in ([], [{"method": "hat", "chosen": "", "seed": 0}]):
        with pytest.raises(ValueError, match="no ρ of hat: make its runs"):
            pictures.rows_of(picture, runs)


def test_single_tasks_shrink_from_epoch_to_epoch(pictures: ModuleType) -> None:
    rows = pictures.by_epoch(record(pictures, "compression.json"))
    for name in {row["data"] for row in rows}:
        used = [row["percent"] for row in rows if row["data"] == name]
        assert used[-1] < 50.0 < used[0] <= 100.0


def test_the_pictures_are_drawn(pictures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["pictures.py", "--out", str(tmp_path)])
    pictures.main()
    assert {path.name for path in tmp_path.iterdir()} == {"mixture.svg", "incremental-cifar.svg", "compression.svg"}
    assert all(path.read_text(encoding="utf-8").startswith("<svg") for path in tmp_path.iterdir())
