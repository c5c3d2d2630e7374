"""Parts of methods with masks of weights.

A source makes a task's mask (:class:`Embedding`, :class:`Scores`, :class:`Magnitude`), and a conditioning says which
weights later tasks may still change (:class:`FreeWeights`, :class:`NoWeights`, :class:`ElasticWeights`);
:class:`hatrack.WeightMaskedNetwork` puts one of each around a backbone.
"""

from hatrack.masks.carried import CarriedValues
from hatrack.masks.conditioning import (
    ElasticWeights,
    FreeWeights,
    NoWeights,
    QuadraticPenalty,
    WeightConditioning,
    union,
)
from hatrack.masks.described import conditioning_from, describe, source_from
from hatrack.masks.layout import Unmasked, WeightLayout, WeightRole, count_features, lay_out
from hatrack.masks.packing import CostCache, bytes_for, pack, unpack
from hatrack.masks.sources import (
    Embedding,
    Magnitude,
    MaskSource,
    Passed,
    Scores,
    apply_mask,
    largest,
    signed_constant,
    straight_through,
)
from hatrack.masks.tasks import WeightTask
from hatrack.state.twins import twin

__all__ = [
    "CarriedValues",
    "CostCache",
    "ElasticWeights",
    "Embedding",
    "FreeWeights",
    "Magnitude",
    "MaskSource",
    "NoWeights",
    "Passed",
    "QuadraticPenalty",
    "Scores",
    "Unmasked",
    "WeightConditioning",
    "WeightLayout",
    "WeightRole",
    "WeightTask",
    "apply_mask",
    "bytes_for",
    "conditioning_from",
    "count_features",
    "describe",
    "largest",
    "lay_out",
    "pack",
    "signed_constant",
    "source_from",
    "straight_through",
    "twin",
    "union",
    "unpack",
]
