"""One network, a hat for every task, nothing forgotten.

hatrack learns tasks one after the other with hard attention to the task (HAT), on any network, and guarantees that the
outputs of every task learned before stay bit-identical.
"""

from hatrack import functional, masks, units
from hatrack.errors import (
    CheckpointError,
    DataError,
    GuaranteeError,
    HatrackError,
    InputError,
    TrainingError,
    UnsupportedError,
)
from hatrack.functional import Compensation, Conditioning, GateFunction, Regularization
from hatrack.gating.norms import BatchNorms
from hatrack.growth.policy import Growth
from hatrack.learning.learner import Learner
from hatrack.learning.predictions import LabelPrediction, NumberPrediction, Prediction
from hatrack.masks.calibration import Scorer
from hatrack.models.forgetting import Forgotten
from hatrack.models.hat import HATNetwork
from hatrack.models.loading import forget_in_files, load
from hatrack.models.room import Plan
from hatrack.models.weight_masked import WeightMaskedNetwork
from hatrack.protection.conditioning import Adaptive, AdaptiveScaling, Fading
from hatrack.recognition import IncrementalAccuracy, Inferred, measure_inference
from hatrack.support.modes import fresh_statistics
from hatrack.support.moved import keep_old_paths
from hatrack.support.progress import with_progress

__version__ = "0.1.0"
"""Version of the package."""

keep_old_paths(
    {
        "hatrack.export": "hatrack.compact.export",
        "hatrack.integrations": "hatrack.learning.integrations",
        "hatrack.learner": "hatrack.learning.learner",
        "hatrack.metrics": "hatrack.experiments.metrics",
        "hatrack.networks": "hatrack.backbones",
        "hatrack.statistics": "hatrack.experiments.statistics",
        "hatrack.unannounced": "hatrack.learning.unannounced",
    }
)

__all__ = [
    "Adaptive",
    "AdaptiveScaling",
    "BatchNorms",
    "CheckpointError",
    "Compensation",
    "Conditioning",
    "DataError",
    "Fading",
    "Forgotten",
    "GateFunction",
    "Growth",
    "GuaranteeError",
    "HATNetwork",
    "HatrackError",
    "IncrementalAccuracy",
    "Inferred",
    "InputError",
    "LabelPrediction",
    "Learner",
    "NumberPrediction",
    "Plan",
    "Prediction",
    "Regularization",
    "Scorer",
    "TrainingError",
    "UnsupportedError",
    "WeightMaskedNetwork",
    "__version__",
    "forget_in_files",
    "fresh_statistics",
    "functional",
    "load",
    "masks",
    "measure_inference",
    "units",
    "with_progress",
]
