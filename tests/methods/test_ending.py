"""The end of a task is all or nothing: cut off anywhere and called again, it counts the task once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from hatrack.methods import METHODS, Method
from hatrack.methods.proximal import Penalty
from hatrack.methods.wsn import InitialScores
from hatrack.train import TrainingSettings, fit
from support.interrupting import chosen, interrupt, points_of
from support.marks import examples, slow_unless
from support.toys import learn, make, tasks

SCHEDULE = TrainingSettings(epochs=2, batch_size=16)
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"generations": 2} if name == "pathnet" else {}) for name, kind in METHODS.items() if kind.trains),
    # settings by which a task ends in another way
    ("pmask", {"ewc": 5.0}),
    ("pmask", {"ewc": 5.0, "ewc_penalty": Penalty.EXPLICIT}),
    ("wsn", {"scores": InitialScores.CARRIED}),
]


def everything(method: Method, path: Path) -> bytes:
    method.save(path)
    return path.read_bytes()


@pytest.mark.parametrize(("name", "settings"), slow_unless(lambda name, settings: name in ("er", "imm-mode"), CASES))
def test_an_end_that_was_cut_off_and_called_again_is_as_one_that_was_not(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    seen = tasks("mlp", 2, samples=48)
    method = make(name, "mlp", **settings)
    learn(method, seen[:1], epochs=2)
    method.begin_task(seen[1])
    for _ in fit(method, seen, SCHEDULE):
        pass
    whole = copy.deepcopy(method)
    points = points_of(lambda: whole.end_task(seen[1]))
    wanted = everything(whole, tmp_path / "whole.hat")
    for point in (*chosen(points, examples(24)), *points[-8:]):  # at last, where all is done
        again = copy.deepcopy(method)
        if interrupt(lambda again=again: again.end_task(seen[1]), point):
            again.end_task(seen[1])
        assert everything(again, tmp_path / "again.hat") == wanted, point


def test_an_interrupt_just_behind_the_last_call_leaves_importance_to_be_measured_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = tasks("mlp", 1, samples=48)
    method = make("pmask", "mlp", ewc=5.0)
    method.begin_task(seen[0])
    whole = copy.deepcopy(method)
    whole.end_task(seen[0])
    anchor = method.network.anchor

    def anchor_and_stop(importance: Any) -> None:
        anchor(importance)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(method.network, "anchor", anchor_and_stop)
        with pytest.raises(KeyboardInterrupt):
            method.end_task(seen[0])
    method.end_task(seen[0])
    wanted = whole.network.quadratic_penalty.importance
    assert any(value.any() for value in wanted.values())
    assert all(torch.equal(value, wanted[name]) for name, value in method.network.quadratic_penalty.importance.items())
