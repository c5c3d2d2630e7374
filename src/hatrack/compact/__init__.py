"""One task's part of a network as a plain, smaller module: units that the task does not use are cut out.

:meth:`hatrack.HATNetwork.extract` makes it; see :mod:`hatrack.compact.extract` for how. Masks of weights are written
into the weights as zeros, and cut out what units are dead then: see :mod:`hatrack.compact.baked`.
"""

from hatrack.compact.baked import bake, extract_baked
from hatrack.compact.extract import TaskParts, cut_task, extract_task
from hatrack.compact.modules import (
    Clear,
    CompactAttention,
    CompactGroupNorm,
    CompactLayerNorm,
    CompactNetwork,
    CompactRMSNorm,
    Summary,
)

__all__ = [
    "Clear",
    "CompactAttention",
    "CompactGroupNorm",
    "CompactLayerNorm",
    "CompactNetwork",
    "CompactRMSNorm",
    "Summary",
    "TaskParts",
    "bake",
    "cut_task",
    "extract_baked",
    "extract_task",
]
