from __future__ import annotations

from pathlib import Path

import pytest

from hatrack.cli import main
from hatrack.experiments.results import write_result
from support.synthetic import synthetic


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a finished run of sgd, an empty one, and one whose run is damaged."""
    write_result(tmp_path / "one" / "run.json", synthetic("sgd", 0, 2))
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text('{"schema": 1')
    (tmp_path / "list.json").write_text("[]")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("report none", "none does not exist; give the folder"),
        ("report empty", "empty holds no run.json; give the folder"),
        ("report damaged", "run.json is damaged"),
        ("report list.json", "list.json is damaged, or not a result of hatrack"),
        ("report one none", "none does not exist"),
        ("report one one", "two runs of sgd with seed 0"),
        ("report one -o empty", "empty is a folder; give a file as --out"),
        ("report one --format csv --table forgetting-ratios", "run the methods joint and random"),
        ("report one --format csv --table reuse", "methods with masks"),
        ("report one --format csv --table differences", "several methods"),
        ("report one --format csv --table nothing", "Choose from"),
        ("figure nothing one", "Choose from"),
        ("figure accuracy none", "none does not exist"),
        ("figure accuracy damaged", "run.json is damaged"),
        ("figure accuracy one -o a.gif", "as .svg, .pdf or .png"),
        ("figure accuracy one -o list.json/a.svg", "list.json"),
        ("figure matrix one --method hat", "no such data of 'hat' here; choose one of: sgd"),
        ("figure layers one", "methods with masks"),
        ("figure forgetting-ratio one", "joint and random"),
        ("analyse nothing", "Choose from"),
        ("analyse gradient -o list.json", "list.json is a file; give a folder as --out"),
        ("analyse sensitivity-c --seeds 0 -o new", "--seeds must be at least 1"),
        ("analyse sensitivity-c --set nothing=1 -o new", "no setting 'nothing'"),
        ("compare demo --methods sgd --out list.json", "list.json is a file; give a folder as --out"),
    ],
)
def test_one_line_says_what_is_wrong(
    command: str, message: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(command.split()) != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.slow
def test_folders_that_are_not_there_yet_are_made(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(["figure", "accuracy", "one", "-o", "a/b/c.svg"]) == 0
    assert main(["report", "one", "-o", "d/e/f.html"]) == 0
    assert capsys.readouterr().err == ""
    assert (place / "a" / "b" / "c.csv").exists()
    assert (place / "d" / "e" / "f.html").exists()
