"""Recognition of a sample's task: all tasks score the sample, and the likeliest one is chosen."""

from hatrack.recognition.inference import (
    IncrementalAccuracy,
    Inferred,
    InferringNetwork,
    infer_task,
    measure_inference,
    require_vectors,
)

__all__ = [
    "IncrementalAccuracy",
    "Inferred",
    "InferringNetwork",
    "infer_task",
    "measure_inference",
    "require_vectors",
]
