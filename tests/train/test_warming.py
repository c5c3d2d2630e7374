"""The first step of a process that counts is one like all others, and what comes before it changes nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from hatrack.train import OptimizerKind, TrainingSettings, warm_up

FIRST_STEP = """
import sys
from hatrack.experiments import RunRequest, TaskBegun, prepare, run
quick = {"epochs": 1, "limit": 100, "num_tasks": 1, "hidden": (10,), "optimizer": "adam"}
for event in run(prepare(RunRequest("demo", "hat", overrides=quick))):
    if isinstance(event, TaskBegun):
        before = set(sys.modules)
print(len(before), sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize("kind", OptimizerKind)
def test_warming_up_draws_nothing_and_leaves_nothing(kind: OptimizerKind) -> None:
    before = torch.get_rng_state()
    with torch.no_grad():
        warm_up(TrainingSettings(optimizer=kind))
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_nothing_is_imported_while_the_clock_runs() -> None:
    """Importing torch's compiler alone takes longer than a small task."""
    program = [sys.executable, "-c", FIRST_STEP]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    count, _, imported = done.stdout.partition(" ")
    assert imported == "[]\n"
    assert int(count) > 1000
