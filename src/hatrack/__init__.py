"""One network, a hat for every task, nothing forgotten.

hatrack learns tasks one after the other with hard attention to the task (HAT), on any network, and guarantees that the
outputs of every task learned before stay bit-identical.
"""

from hatrack import functional, masks, units
from hatrack.calibration import Scorer
from hatrack.conditioning import Adaptive, Fading
from hatrack.errors import (
    CheckpointError,
    DataError,
    GuaranteeError,
    HatrackError,
    InputError,
    TrainingError,
    UnsupportedError,
)
from hatrack.forgetting import Forgotten
from hatrack.functional import Compensation, Conditioning, GateFunction, Regularization
from hatrack.growth import Growth
from hatrack.learner import Learner, Prediction
from hatrack.models.hat import HATNetwork
from hatrack.models.loading import forget_in_files, load
from hatrack.models.weight_masked import WeightMaskedNetwork
from hatrack.modes import fresh_statistics
from hatrack.norm import BatchNorms
from hatrack.plan import Plan
from hatrack.progress import with_progress
from hatrack.recognition import IncrementalAccuracy, Inferred, measure_inference

__version__ = "0.1.0"
"""Version of the package."""

__all__ = [
    "Adaptive",
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
    "Learner",
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
