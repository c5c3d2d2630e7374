"""The end of a task is all or nothing: cut off anywhere and called again, it counts the task once."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from hatrack.methods import METHODS, Method
from hatrack.train import TrainingSettings, fit
from support.interrupting import chosen, interrupt, points_of
from support.marks import examples, slow_but
from support.toys import learn, make, tasks

SCHEDULE = TrainingSettings(epochs=2, batch_size=16)
SETTINGS = {"pathnet": {"generations": 2}}


def everything(method: Method, path: Path) -> bytes:
    method.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("name", slow_but(["er", "imm-mode"], [name for name, kind in METHODS.items() if kind.trains]))
def test_an_end_that_was_cut_off_and_called_again_is_as_one_that_was_not(name: str, tmp_path: Path) -> None:
    seen = tasks("mlp", 2, samples=48)
    method = make(name, "mlp", **SETTINGS.get(name, {}))
    learn(method, seen[:1], epochs=2)
    method.begin_task(seen[1])
    for _ in fit(method, seen, SCHEDULE):
        pass
    whole = copy.deepcopy(method)
    points = points_of(lambda: whole.end_task(seen[1]))
    wanted = everything(whole, tmp_path / "whole.hat")
    for point in chosen(points, examples(24)):
        again = copy.deepcopy(method)
        if interrupt(lambda again=again: again.end_task(seen[1]), point):
            again.end_task(seen[1])
        assert everything(again, tmp_path / "again.hat") == wanted, point
