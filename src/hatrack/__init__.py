"""One network, a hat for every task, nothing forgotten.

hatrack learns tasks one after the other with hard attention to the task (HAT), on any network, and guarantees that the
outputs of every task learned before stay bit-identical.
"""

from __future__ import annotations

from importlib import import_module, util
from typing import TYPE_CHECKING, Any

from hatrack.support.moved import keep_old_paths

if TYPE_CHECKING:  # at run time, see _PLACES
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
    from hatrack.methods.hat import HATSettings, InitialEmbedding, MaskSchedule
    from hatrack.models.forgetting import Forgotten
    from hatrack.models.hat import HATNetwork
    from hatrack.models.loading import forget_in_files, load
    from hatrack.models.room import Plan
    from hatrack.models.weight_masked import WeightMaskedNetwork
    from hatrack.protection.conditioning import Adaptive, AdaptiveScaling, Fading
    from hatrack.recognition import IncrementalAccuracy, Inferred, measure_inference
    from hatrack.support.memory import keep_freed_memory
    from hatrack.support.modes import fresh_statistics
    from hatrack.support.progress import with_progress
    from hatrack.train import TrainingSettings

__version__ = "0.2.0"
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
    "HATSettings",
    "HatrackError",
    "IncrementalAccuracy",
    "Inferred",
    "InitialEmbedding",
    "InputError",
    "LabelPrediction",
    "Learner",
    "MaskSchedule",
    "NumberPrediction",
    "Plan",
    "Prediction",
    "Regularization",
    "Scorer",
    "TrainingError",
    "TrainingSettings",
    "UnsupportedError",
    "WeightMaskedNetwork",
    "__version__",
    "forget_in_files",
    "fresh_statistics",
    "functional",
    "keep_freed_memory",
    "load",
    "masks",
    "measure_inference",
    "units",
    "with_progress",
]

_PLACES = {
    "errors": (
        *("CheckpointError", "DataError", "GuaranteeError", "HatrackError", "InputError", "TrainingError"),
        "UnsupportedError",
    ),
    "functional": ("Compensation", "Conditioning", "GateFunction", "Regularization"),
    "gating.norms": ("BatchNorms",),
    "growth.policy": ("Growth",),
    "learning.learner": ("Learner",),
    "learning.predictions": ("LabelPrediction", "NumberPrediction", "Prediction"),
    "masks.calibration": ("Scorer",),
    "methods.hat": ("HATSettings", "InitialEmbedding", "MaskSchedule"),
    "models.forgetting": ("Forgotten",),
    "models.hat": ("HATNetwork",),
    "models.loading": ("forget_in_files", "load"),
    "models.room": ("Plan",),
    "models.weight_masked": ("WeightMaskedNetwork",),
    "protection.conditioning": ("Adaptive", "AdaptiveScaling", "Fading"),
    "recognition": ("IncrementalAccuracy", "Inferred", "measure_inference"),
    "support.memory": ("keep_freed_memory",),
    "support.modes": ("fresh_statistics",),
    "support.progress": ("with_progress",),
    "train": ("TrainingSettings",),
}
"""Names by the module that they are imported from when somebody asks for them.

Importing torch takes seconds, for which the help of the command line need not wait.
"""
_MODULE_OF = {name: f"hatrack.{module}" for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
    elif not name.startswith("_") and util.find_spec(f"hatrack.{name}") is not None:
        value = import_module(f"hatrack.{name}")
    else:
        raise AttributeError(f"module 'hatrack' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
