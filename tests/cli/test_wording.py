"""Messages of the library name arguments and settings; the command line says its own options."""

from __future__ import annotations

import doctest
import re
from dataclasses import replace
from pathlib import Path

import pytest

import hatrack
from hatrack.cli import main, options
from hatrack.cli.options import with_options
from hatrack.errors import CheckpointError
from hatrack.experiments import read_result
from hatrack.experiments.folder import require_whole

ROOT = Path(hatrack.__file__).parent


def test_the_examples() -> None:
    assert doctest.testmod(options).failed == 0


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("give it as `data_dir` or X=DIR", "give it as --data DIR or X=DIR"),
        ("fewer at a time (`workers=1`)", "fewer at a time (--workers 1)"),
        ("a share of 0 (`validation=0`)", "a share of 0 (--set validation=0)"),
        ("say of which: `ewc.strength`", "say of which: --set ewc.strength=..."),
        ("in (`tables.accuracy`)", "in (hatrack report FOLDER --format markdown --table accuracy)"),
        ("`nobody` knows `net.protect`", "`nobody` knows `net.protect`"),
        ("finish it: `forget_in_run('a b', \"it's\")`", "finish it: hatrack forget 'a b' --task 'it'\"'\"'s'"),
    ],
)
def test_names_become_options(said: str, shown: str) -> None:
    assert with_options(said) == shown


def test_the_library_speaks_of_no_options() -> None:
    """But for the command that a run records."""
    others = ("torchrun", "``tensorboard", "``mlflow ui")
    option = re.compile(r"(?<!\bvar)[\s\"'(]--[a-z][a-z-]*")  # `var(--ink)` is a colour of the page
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("cli/") or name in ("experiments/request.py", "report/page.py", "report/console.py"):
            continue
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if option.search(line)]
        assert not [line for line in lines if not any(other in line for other in others)], name


def test_what_was_interrupted_is_finished_by_the_command_that_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "a run"
    words = ["--set=epochs=1", "--set=hidden=8", "--set=limit=40", "--set=num_tasks=2", "--quiet"]
    assert main(["run", "demo", "--method", "hat", *words, "--out", str(run)]) == 0
    recorded = read_result(run / "run.json")
    with pytest.raises(CheckpointError, match="forget_in_run") as caught:
        require_whole(run, replace(recorded, forgetting=recorded.tasks[0].name))
    assert with_options(str(caught.value)).endswith(f"hatrack forget '{run}' --task {recorded.tasks[0].name}")
    (run / "net.hat").write_bytes(b"")
    assert main(["verify", str(run)]) == 1
    assert f" --out '{run}'" in " ".join(capsys.readouterr().err.split())
