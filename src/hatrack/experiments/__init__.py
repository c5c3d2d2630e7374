"""Experiments: presets, running them, their results, and verifying these."""

from hatrack.experiments.experiment import Experiment
from hatrack.experiments.own import own_experiment
from hatrack.experiments.presets import EXPERIMENTS, find_experiment
from hatrack.experiments.results import RunResult, Status, read_result
from hatrack.experiments.running import (
    Event,
    Prepared,
    RunRequest,
    TaskBegun,
    TaskLearned,
    finished_result,
    prepare,
    run,
)
from hatrack.experiments.settings import Config
from hatrack.experiments.verify import Verification, verify

__all__ = [
    "EXPERIMENTS",
    "Config",
    "Event",
    "Experiment",
    "Prepared",
    "RunRequest",
    "RunResult",
    "Status",
    "TaskBegun",
    "TaskLearned",
    "Verification",
    "find_experiment",
    "finished_result",
    "own_experiment",
    "prepare",
    "read_result",
    "run",
    "verify",
]
