"""Experiments: presets, running them, their results, and verifying these."""

from hatrack.experiments.comparison import Comparison, compare, jobs_of
from hatrack.experiments.costs import CostPlan, Costs, StepCosts, measure_costs, measuring_costs
from hatrack.experiments.executors import DaskExecutor, Executor, LocalExecutor, SlurmExecutor
from hatrack.experiments.experiment import EXPERIMENTS, Experiment, describe, find_experiment, own_experiment
from hatrack.experiments.forgetting import RunForgotten, forget_in_run
from hatrack.experiments.jobs import Job, JobAdvanced, JobBegun, JobDone, JobEvent, JobFailed
from hatrack.experiments.opening import (
    TaskSize,
    export_run,
    measure_sizes,
    open_run,
)
from hatrack.experiments.plan import ComparisonPlan
from hatrack.experiments.predicting import SamplePrediction, predict_files
from hatrack.experiments.preparing import Run, finished_result, prepare
from hatrack.experiments.recorded import Reproduction, Verification, recorded_run, verify
from hatrack.experiments.request import RunRequest
from hatrack.experiments.results import RunResult, Status, TaskHistory, TaskSummary, read_result
from hatrack.experiments.running import Event, TaskBegun, TaskLearned, run
from hatrack.experiments.settings import Config

__all__ = [
    "EXPERIMENTS",
    "Comparison",
    "ComparisonPlan",
    "Config",
    "CostPlan",
    "Costs",
    "DaskExecutor",
    "Event",
    "Executor",
    "Experiment",
    "Job",
    "JobAdvanced",
    "JobBegun",
    "JobDone",
    "JobEvent",
    "JobFailed",
    "LocalExecutor",
    "Reproduction",
    "Run",
    "RunForgotten",
    "RunRequest",
    "RunResult",
    "SamplePrediction",
    "SlurmExecutor",
    "Status",
    "StepCosts",
    "TaskBegun",
    "TaskHistory",
    "TaskLearned",
    "TaskSize",
    "TaskSummary",
    "Verification",
    "compare",
    "describe",
    "export_run",
    "find_experiment",
    "finished_result",
    "forget_in_run",
    "jobs_of",
    "measure_costs",
    "measure_sizes",
    "measuring_costs",
    "open_run",
    "own_experiment",
    "predict_files",
    "prepare",
    "read_result",
    "recorded_run",
    "run",
    "verify",
]
