"""The one training loop, and the tests that follow it."""

from hatrack.train.loop import BatchDone, EpochDone, Training, fit
from hatrack.train.scoring import Score, predict_split, predict_splits, require_finite, score
from hatrack.train.settings import LearningRateDecay, OptimizerKind, Precision, TrainingSettings
from hatrack.train.warming import warm_up

__all__ = [
    "BatchDone",
    "EpochDone",
    "LearningRateDecay",
    "OptimizerKind",
    "Precision",
    "Score",
    "Training",
    "TrainingSettings",
    "fit",
    "predict_split",
    "predict_splits",
    "require_finite",
    "score",
    "warm_up",
]
