"""What the README and the guide to networks say is true."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

import hatrack
from hatrack.cli import main

README = Path(__file__).parents[1] / "README.md"


def test_the_program_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 1, 28, 28, generator=generator), torch.arange(8) % 2
    names = {"loader": [(x[:4], y[:4]), (x[4:], y[4:])]}
    exec(program, names)
    net = names["net"]
    assert isinstance(net, hatrack.HATNetwork)
    assert net.task_names == ("shoes", "bags")
    assert (tmp_path / "net.hat").exists()
    for call in ('net.masks("shoes")', "net.capacity()", "net.reuse()", "net.protected()", "net.check()", "net.units"):
        assert call in README.read_text(encoding="utf-8")
        eval(call, names)


def test_the_guide_to_networks_runs() -> None:
    guide = (README.parent / "docs" / "networks.md").read_text(encoding="utf-8")
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    names: dict[str, object] = {"loader": [(x, y)]}
    programs = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    assert len(programs) == 6
    shown = io.StringIO()
    for program in programs:
        with contextlib.redirect_stdout(shown):
            exec(program, names)
    (table,) = re.findall(r"```text\n(.*?)```", guide, flags=re.DOTALL)
    assert shown.getvalue() == table


def test_every_command_in_the_readme_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"\$ hatrack ([^#\n]+)", README.read_text(encoding="utf-8"))
    assert len(commands) >= 4
    for command in commands:
        words = command.split()
        assert main([words[0], "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in words if word.startswith("--")), command


def test_both_installation_commands_use_the_constraints() -> None:
    commands = re.findall(r"^\$ (pip install.*)$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert commands == [
        "pip install -c constraints.txt -e . && hatrack demo",
        "pip install -c constraints.txt -e '.[dev]' && pytest",
    ]
    run = (README.parent / ".ci" / "run").read_text(encoding="utf-8").replace(" --quiet", "").splitlines()
    assert all(part in run for command in commands for part in command.split(" && "))
