"""Recognition of a sample's task: all tasks answer, and the one that knows the sample best is believed."""

from hatrack.recognition.inference import (
    IncrementalAccuracy,
    Inferred,
    InferringNetwork,
    infer_task,
    measure_inference,
)

__all__ = ["IncrementalAccuracy", "Inferred", "InferringNetwork", "infer_task", "measure_inference"]
