"""Objectives: what a task's outputs and targets mean, its loss, its metric, and how a prediction is said."""

from __future__ import annotations

from hatrack.objectives.base import Objective, check_targets, names_as_text, require_different, strata
from hatrack.objectives.batches import joined_loss, joined_targets
from hatrack.objectives.classification import Classification
from hatrack.objectives.described import (
    MetricName,
    TargetKind,
    as_targets,
    kind_of,
    member_named,
    objective_from_json,
    objective_of,
)
from hatrack.objectives.metrics import ACCURACY, METRICS, Metric, common_metric
from hatrack.objectives.multi_label import MultiLabel
from hatrack.objectives.regression import Regression
from hatrack.objectives.weights import ClassWeights

__all__ = [
    "ACCURACY",
    "METRICS",
    "ClassWeights",
    "Classification",
    "Metric",
    "MetricName",
    "MultiLabel",
    "Objective",
    "Regression",
    "TargetKind",
    "as_targets",
    "check_targets",
    "common_metric",
    "joined_loss",
    "joined_targets",
    "kind_of",
    "member_named",
    "names_as_text",
    "objective_from_json",
    "objective_of",
    "require_different",
    "strata",
]
