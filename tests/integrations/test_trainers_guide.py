"""The programs of the guide to trainers, each with the packages that it needs."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

import hatrack

# What these packages warn of is not about this one.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]

GUIDE = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL))
PACKAGES = {
    "Lightning": "lightning",
    "Hugging Face transformers": "transformers",
    "accelerate": "accelerate",
    "skorch": "skorch",
    "Avalanche": "avalanche",
}


def programs(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_trainer_has_a_program() -> None:
    assert {title for title, text in SECTIONS.items() if programs(text)} == set(PACKAGES)


@pytest.mark.parametrize("title", PACKAGES)
def test_its_program_learns_three_tasks(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # here they would be errors, as everywhere else
            __import__(PACKAGES[title])
    except Exception as error:  # torchvision's is a RuntimeError, where that was built for another torch
        pytest.skip(f"{title} does not import here: {error}")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (start,) = programs(GUIDE.partition("## ")[0])
    (program,) = programs(SECTIONS[title])
    names: dict[str, object] = {}
    exec(compile(start + "\n" + program, f"docs/trainers.md, {title}", "exec"), names)
    net, points, tasks = names["net"], names["points"], names["tasks"]
    assert isinstance(net, hatrack.HATNetwork)
    assert isinstance(points, torch.Tensor)
    assert isinstance(tasks, dict)
    assert net.task_in_training is None
    assert len(net.task_names) == 3
    net.check()
    for name, y in zip(net.task_names, tasks.values(), strict=True):
        share = float((net.eval()(points, name).argmax(1) == y).double().mean())
        assert share > 0.85, f"{name}: {share}"
    assert (tmp_path / "net.hat").exists()
