"""Steps to be captured where they cannot be: refused before anything is written; and what a GPU has made is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hatrack.cli import main
from hatrack.storage.checked_json import read_checked_json, write_checked_json

QUICK = ["--set", "limit=20", "--set", "epochs=1", "--set", "hidden=8"]


@pytest.mark.parametrize(
    ("method", "why"),
    [("sgd", "this run is on a cpu device.*--device cuda"), ("wsn", "the steps of wsn with these settings differ")],
)
def test_a_run_is_refused_before_anything_is_written(
    method: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["run", "demo", "--method", method, "--out", str(out), "--device", "cpu", *QUICK]
    assert main([*words, "--set", "captured=true"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(why, error)
    assert not out.exists()


def test_a_run_that_a_gpu_has_made_is_verified_without_one(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["run", "demo", "--method", "sgd", "--out", str(out), "--device", "cpu", *QUICK]
    assert main(words) == 0
    record = read_checked_json(out / "run.json")
    record["config"]["captured"] = True
    write_checked_json(out / "run.json", record)
    assert main(["verify", str(out)]) == 0
    assert main([*words, "--set", "captured=true"]) == 0
