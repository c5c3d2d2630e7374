"""Extraction of one task as a plain, smaller module, without the units that the task does not use.

See :mod:`hatrack.compact.extract` for masks of units. Masks of weights are written into the weights as zeros, and units
that are dead then are cut out: see :mod:`hatrack.compact.baked`.
"""

from hatrack.compact.baked import bake, extract_baked
from hatrack.compact.extract import TaskParts, cut_task, extract_task
from hatrack.compact.modules import (
    AxisLinear,
    Clear,
    CompactAttention,
    CompactGroupNorm,
    CompactLayerNorm,
    CompactNetwork,
    CompactRMSNorm,
    OwnHead,
    Summary,
)

__all__ = [
    "AxisLinear",
    "Clear",
    "CompactAttention",
    "CompactGroupNorm",
    "CompactLayerNorm",
    "CompactNetwork",
    "CompactRMSNorm",
    "OwnHead",
    "Summary",
    "TaskParts",
    "bake",
    "cut_task",
    "extract_baked",
    "extract_task",
]
