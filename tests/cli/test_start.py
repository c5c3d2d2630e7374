"""Help is there at once, for every command and every option; faults of a command line are told without torch, too."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator

import cyclopts
import pytest

import hatrack
from hatrack.cli import main, names
from hatrack.cli.app import app
from hatrack.data import DATASETS
from hatrack.experiments import EXPERIMENTS
from hatrack.methods import METHODS
from hatrack.report.figures import FIGURES, TABLES
from hatrack.report.loggers import LOGGERS
from hatrack.report.studies import STUDIES


def commands(above: cyclopts.App = app, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], cyclopts.App]]:
    for name in above:
        if not name.startswith("-"):
            yield (*path, name), above[name]
            yield from commands(above[name], (*path, name))


WITHOUT_TORCH = """
import sys
import hatrack_start

for line in {lines!r}:
    sys.argv = ["hatrack", *line]
    code = hatrack_start.main()
    assert code == {code}, (line, code)
    loaded = [name for name in ("torch", "numpy") if name in sys.modules]
    assert not loaded, (line, loaded)
"""


@pytest.mark.slow
def test_help_needs_no_torch() -> None:
    lines = [[], ["--help"], ["--version"], *([*path, "--help"] for path, _ in commands())]
    assert len(lines) > 20
    script = WITHOUT_TORCH.format(lines=lines, code=0)
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "--method" in shown.stdout


@pytest.mark.slow
def test_faults_of_a_command_line_need_none_either() -> None:
    lines = [["frobnicate"], ["run", "demo"], ["run", "demo", "--method", "hta"], ["data", "fetch"], ["export", "runs"]]
    script = WITHOUT_TORCH.format(lines=lines, code=2)
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr.count("error: ") == len(lines)


def test_names_are_those_of_the_registries() -> None:
    """A method, figure or table is known to the command line by one more name in ``cli/names.py``."""
    assert tuple(METHODS) == names.METHODS
    assert tuple(FIGURES) == names.FIGURES
    assert tuple(TABLES) == names.TABLES
    assert tuple(EXPERIMENTS) == names.EXPERIMENTS
    assert tuple(DATASETS) == names.DATASETS
    assert tuple(STUDIES) == names.STUDIES
    assert tuple(LOGGERS) == names.LOGGERS


def test_every_option_is_explained() -> None:
    """A word of a docstring that looks like a heading to its reader can make the text of an option disappear."""
    count = 0
    for path, command in commands():
        if command.default_command is None:
            continue
        for argument in command.assemble_argument_collection(parse_docstring=True):
            if argument.show:
                count += 1
                assert argument.parameter.help, f"{' '.join(path)}: {' '.join(argument.names)}"
    assert count > 60


@pytest.mark.parametrize("line", [["rn"], ["frobnicate"], ["data", "chek"]])
def test_an_unknown_command_is_answered_with_all_that_there_are(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line) == 2
    said = capsys.readouterr().err
    of = app if len(line) == 1 else app["data"]
    assert f"Available commands: {', '.join(name for name in of if not name.startswith('-'))}; see hatrack" in said


def test_public_names_are_there_when_they_are_asked_for() -> None:
    for name in hatrack.__all__:
        value = getattr(hatrack, name)
        module = getattr(value, "__module__", None)
        if module is not None:
            assert getattr(importlib.import_module(module), name) is value
        assert name in dir(hatrack)
    assert hatrack.storage.checked_json is importlib.import_module("hatrack.storage.checked_json")
    for absent in ("absent", "_absent", "__absent__"):
        with pytest.raises(AttributeError, match=absent):
            getattr(hatrack, absent)


@pytest.mark.slow
def test_importing_the_package_imports_nothing_else() -> None:
    script = "import sys, hatrack; assert 'torch' not in sys.modules; hatrack.HATNetwork; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
