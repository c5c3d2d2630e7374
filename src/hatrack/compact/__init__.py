"""One task's part of a network as a plain, smaller module: units that the task does not use are cut out.

:meth:`hatrack.HATNetwork.extract` makes it; see :mod:`hatrack.compact.extract` for how.
"""

from hatrack.compact.extract import extract_task
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
    "extract_task",
]
