"""Recognition of the task of a sample that nobody named.

:func:`infer_task` asks all tasks, by scores of a task's own features and logits or by :class:`RidgeRecogniser`, a ridge
regression on features that all tasks share (:class:`FeatureMap`), solved from sums that every task keeps.
"""

from hatrack.masks.sums import TaskSums
from hatrack.recognition.confusion import Confusion, auroc, measure_confusion
from hatrack.recognition.feature_maps import (
    FeatureMap,
    RandomFilters,
    RandomUnits,
    UntrainedPart,
    default_feature_map,
    feature_map_from,
)
from hatrack.recognition.infer import (
    IncrementalAccuracy,
    Inferred,
    InferringNetwork,
    choose_scorer,
    infer_by_sums,
    infer_task,
    measure_inference,
    require_vectors,
)
from hatrack.recognition.strangeness import ClassSums, strangeness
from hatrack.recognition.sums import (
    RecogniserCache,
    RidgeRecogniser,
    TaskDensities,
    finite_features,
    gather_sums,
    solve_ridge,
)

__all__ = [
    "ClassSums",
    "Confusion",
    "FeatureMap",
    "IncrementalAccuracy",
    "Inferred",
    "InferringNetwork",
    "RandomFilters",
    "RandomUnits",
    "RecogniserCache",
    "RidgeRecogniser",
    "TaskDensities",
    "TaskSums",
    "UntrainedPart",
    "auroc",
    "choose_scorer",
    "default_feature_map",
    "feature_map_from",
    "finite_features",
    "gather_sums",
    "infer_by_sums",
    "infer_task",
    "measure_confusion",
    "measure_inference",
    "require_vectors",
    "solve_ridge",
    "strangeness",
]
