"""Streams of tasks: the ones of the literature by name, or a user's own tensors."""

from __future__ import annotations

from hatrack.streams.arranging import concatenated, in_portions, interleaved, repeated, shuffled
from hatrack.streams.base import Split, Task, TaskStream
from hatrack.streams.boundaries import DetectorSettings, LossDetector, Surprise, Unannounced, usual_limit
from hatrack.streams.files_read import FilesRead
from hatrack.streams.groups import ClassGroup, all_classes, consecutive_groups, shuffled_groups
from hatrack.streams.image_streams import (
    class_stream,
    class_task,
    drawn_angles,
    incremental_stream,
    mixture_stream,
    permuted_stream,
    rotated_stream,
    shuffled_class_stream,
    split_stream,
    transfer_stream,
)
from hatrack.streams.own import CellFormat, DecimalMark, OwnStream, OwnTask, TargetChoice, own_stream
from hatrack.streams.registry import STREAMS, StreamSpec, build_stream, find_origins
from hatrack.streams.sampling import EvaluationPart, StreamOptions
from hatrack.streams.seeding import derive_seed, seeded_generator
from hatrack.streams.transforms import Chain, Normalise, Permute, Rotate, Scaling, Standardise, Transform

__all__ = [
    "STREAMS",
    "CellFormat",
    "Chain",
    "ClassGroup",
    "DecimalMark",
    "DetectorSettings",
    "EvaluationPart",
    "FilesRead",
    "LossDetector",
    "Normalise",
    "OwnStream",
    "OwnTask",
    "Permute",
    "Rotate",
    "Scaling",
    "Split",
    "Standardise",
    "StreamOptions",
    "StreamSpec",
    "Surprise",
    "TargetChoice",
    "Task",
    "TaskStream",
    "Transform",
    "Unannounced",
    "all_classes",
    "build_stream",
    "class_stream",
    "class_task",
    "concatenated",
    "consecutive_groups",
    "derive_seed",
    "drawn_angles",
    "find_origins",
    "in_portions",
    "incremental_stream",
    "interleaved",
    "mixture_stream",
    "own_stream",
    "permuted_stream",
    "repeated",
    "rotated_stream",
    "seeded_generator",
    "shuffled",
    "shuffled_class_stream",
    "shuffled_groups",
    "split_stream",
    "transfer_stream",
    "usual_limit",
]
