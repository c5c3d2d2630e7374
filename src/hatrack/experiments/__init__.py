"""Experiments: presets, running them, their results, and verifying these."""

from hatrack.experiments.opening import PicturePrediction, export_run, open_run, predict_pictures
from hatrack.experiments.presets import EXPERIMENTS, Experiment, find_experiment
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
    "PicturePrediction",
    "Prepared",
    "RunRequest",
    "RunResult",
    "Status",
    "TaskBegun",
    "TaskLearned",
    "Verification",
    "export_run",
    "find_experiment",
    "finished_result",
    "open_run",
    "predict_pictures",
    "prepare",
    "read_result",
    "run",
    "verify",
]
