"""The README and the guide to networks are true."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import hatrack
from hatrack.cli import main
from hatrack.data import DATASETS
from hatrack.methods import METHODS

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


@pytest.mark.slow
def test_the_guide_to_networks_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (README.parent / "docs" / "networks.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    names: dict[str, object] = {"loader": [(x, y)]}
    programs = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    assert len(programs) == 10
    shown = io.StringIO()
    for program in programs:
        with contextlib.redirect_stdout(shown):
            exec(program, names)
    tables = re.findall(r"```text\n(.*?)```", guide, flags=re.DOTALL)
    assert shown.getvalue() == "".join(tables)


def test_the_guide_to_methods_names_every_method_and_only_settings_that_there_are() -> None:
    guide = (README.parent / "docs" / "methods.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z][a-z0-9-]*)`", guide))
    assert set(METHODS) <= named, f"say what these are: {set(METHODS) - named}"
    known = {field.name for method in METHODS.values() for field in dataclasses.fields(method.settings_type)}
    settings = set(re.findall(r"`([a-z_]+)=[^`]*`", guide)) - {"key"}
    assert settings
    assert settings <= known, f"there are no such settings: {settings - known}"
    masks_of_weights, in_turns = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(in_turns, names)
    assert names["logits"].shape == (8, 4, 8)
    assert names["answers"].shape == (8, 2)
    names["loss"].backward()
    exec(masks_of_weights, names)
    net = names["net"]
    net.anneal(1.0)
    assert net(torch.zeros(3, 1, 28, 28), "shoes").shape == (3, 2)
    net.consolidate("shoes")
    assert float(net.masks("shoes")["1.weight"].float().mean()) == pytest.approx(0.3, abs=0.01)


def test_the_guide_to_data_runs() -> None:
    guide = (README.parent / "docs" / "data.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    shown = io.StringIO()
    for program in re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL):
        with contextlib.redirect_stdout(shown):
            exec(program, names)
    (printed,) = re.findall(r"```text\n(.*?)```", guide, flags=re.DOTALL)
    assert shown.getvalue() == printed
    assert names["mine"].class_names == ("red", "green", "blue")  # type: ignore[attr-defined]


def test_the_guide_to_data_names_every_data_set_and_its_constants() -> None:
    guide = (README.parent / "docs" / "data.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in guide.splitlines() if row.startswith("| `")}
    assert rows.keys() == DATASETS.keys()
    for name, spec in DATASETS.items():
        if "those of" not in rows[name]:
            stated = re.findall(r"(?<=[ /])\.\d+", rows[name])
            assert [float(value) for value in stated] == pytest.approx([*spec.mean, *spec.std], abs=5e-5), name


def test_every_command_in_the_readme_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"\$ hatrack ([^#\n]+)", README.read_text(encoding="utf-8"))
    assert len(commands) >= 4
    for command in commands:
        words = command.split()
        assert main([words[0], "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in words if word.startswith("--")), command


def test_all_installation_commands_use_the_constraints() -> None:
    commands = re.findall(r"^\$ (pip install.*?)(?: +#.*)?$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert commands == [
        "pip install -c constraints.txt -e '.[report]'",
        "pip install -c constraints.txt -e '.[onnx,report]'",
        "pip install -c constraints.txt -e '.[dev]' && pytest",
    ]
    run = (README.parent / ".ci" / "run").read_text(encoding="utf-8").replace(" --quiet", "").splitlines()
    assert all(part in run for part in commands[-1].split(" && "))
    assert ".ci/readme" in run


def readme_script() -> dict[str, Any]:
    """What .ci/readme defines."""
    return runpy.run_path(str(README.parent / ".ci" / "readme"))


def test_ci_runs_the_commands_as_they_stand() -> None:
    script = readme_script()
    blocks = script["blocks"](README.read_text(encoding="utf-8"))
    assert blocks[0] == [
        "pip install -c constraints.txt -e '.[report]'",
        "hatrack demo --out runs/demo",
        "hatrack report runs/demo",
    ]
    commands = [command for block in blocks for command in block]
    assert len(commands) == len(re.findall(r"^\$ ", README.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert not [command for command in commands if "#" in command]
    trains = [command for command in commands if script["shortened"](command) != command]
    assert len(trains) == 3
    for command in trains:
        short = script["shortened"](command)
        assert short.endswith(" --limit 200 --epochs 1")
        assert short.count("--epochs") == 1
    wheel = Path("a.whl")
    assert script["from_wheel"]("pip install -c constraints.txt -e '.[onnx,report]'", wheel) == (
        "pip install 'a.whl[onnx,report]'"
    )
    assert script["from_wheel"]("pip install -c constraints.txt -e '.'", wheel) == "pip install 'a.whl'"
