"""Processes that carry out runs and die in any way: every run ends with an event that says what came of it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from hatrack.errors import InputError
from hatrack.experiments import ComparisonPlan, JobFailed, SlurmExecutor, executors, jobs_of
from hatrack.experiments.jobs import Job

ADVANCED = '{"event": "advanced", '
"""Beginning of what a process says, up to where it dies."""


def job(folder: Path) -> Job:
    return jobs_of(ComparisonPlan.make("demo", ["sgd"], [0]), folder)[0]


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize(
    ("death", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed (SIGKILL)"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 3)", f"killed (signal {getattr(signal, 'SIGRTMIN', 0) + 3})"),
        ("sys.exit('no memory left')", "ended with code 1: no memory left"),
    ],
)
def test_half_a_line_of_a_process_that_dies_is_the_end_of_its_run_alone(
    death: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport os, signal, sys\nsys.stdin.readline()\n"
        f"sys.stdout.write({ADVANCED!r})\nsys.stdout.flush()\n{death}\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    jobs = [job(tmp_path / str(number)) for number in range(2)]
    ends = [event for event in executors.LocalExecutor(1).execute(jobs) if isinstance(event, JobFailed)]
    assert [event.job for event in ends] == jobs
    assert all(said in event.error for event in ends)


def test_an_engine_that_says_nothing_of_its_error_is_told_by_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        def __getattr__(self, name: str) -> None:
            raise RuntimeError

    monkeypatch.setattr(executors, "optional_module", lambda *_: Silent())
    with pytest.raises(InputError, match="Slurm does not take the jobs: RuntimeError"):
        list(SlurmExecutor(tmp_path).execute([job(tmp_path)]))
