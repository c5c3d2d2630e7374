"""The method that CONTRIBUTING shows is complete: it is registered as it stands, runs, resumes and forgets less."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hatrack.experiments import preparing, request, running
from hatrack.methods import METHODS, Method
from hatrack.methods.l2 import L2
from hatrack.methods.multi_head import AnchoredMethod

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
QUICK: dict[str, Any] = {"epochs": 5, "hidden": (40, 30), "limit": 120, "num_tasks": 3, "lr": 0.2}


@pytest.fixture
def shown() -> type[Method]:
    """The method, whose file the guide prints whole."""
    (program,) = re.findall(r"```python\n(.*?)```", CONTRIBUTING.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert program == Path(sys.modules[L2.__module__].__file__ or "").read_text(encoding="utf-8")
    assert program.count("\n") <= 45
    assert METHODS["l2"] is L2
    return L2


def run(method: str, out: Path | None = None, tasks: int = 3, **settings: float) -> tuple[preparing.Run, float]:
    """Learn some tasks; also returns how far the logits of the first have moved since it was learned, squared."""
    overrides = {**QUICK, **settings}
    prepared = preparing.prepare(request.RunRequest("demo", method, out=out, overrides=overrides))
    first, moved = prepared.stream[0].name, 0.0
    told: list[torch.Tensor] = []
    for event in running.run(prepared):
        if isinstance(event, running.TaskLearned):
            told.append(running.last_logits(prepared, 1)[first])
            moved = float((told[-1] - told[0]).square().mean())
            if event.index + 1 == tasks:
                break
    return prepared, moved


def test_it_has_all_that_a_method_needs(shown: type[Method]) -> None:
    assert issubclass(shown, AnchoredMethod)
    assert shown.__doc__
    assert shown.description
    assert shown.source
    (values,) = shown.grid.values()
    assert shown.settings_type().strength in values


def test_it_runs_and_forgets_less_than_fine_tuning(shown: type[Method]) -> None:
    (own, moved), (plain, moved_plain) = run("l2", strength=1.0), run("sgd")
    own_hashes, plain_hashes = (prepared.result.matrix("logits_sha256") for prepared in (own, plain))
    assert own_hashes[0] == plain_hashes[0]  # nothing is tied in the first task
    assert plain.result.matrix("accuracy")[0][0] > 0.8
    assert moved < moved_plain / 2


def test_without_strength_it_is_fine_tuning(shown: type[Method]) -> None:
    hashes = [prepared.result.matrix("logits_sha256") for prepared, _ in (run("l2", strength=0.0), run("sgd"))]
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_it_resumes(shown: type[Method], tmp_path: Path) -> None:
    run("l2", tmp_path, tasks=1)
    (resumed, _), (straight, _) = run("l2", tmp_path), run("l2")
    assert len(resumed.result.scores) == 3
    assert resumed.result.matrix("logits_sha256") == straight.result.matrix("logits_sha256")
