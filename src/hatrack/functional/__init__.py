"""The equations of hard attention to the task, one pure function each.

Serrà, Surís, Miron and Karatzoglou, *Overcoming catastrophic forgetting with hard attention to the task*, ICML 2018
(called "the paper" below; equation numbers are its own).
The rest of hatrack is wiring around them (`hatrack.protection` does Eq. 2 bit by bit, and is tested against the one
here).

Notation: a *unit* is a neuron of a dense layer or a filter of a convolution; ``e`` is a task's embedding (one real
number per unit), ``a`` its attention or mask (one number in [0, 1] per unit), ``s`` the scale of the gate.
"""

from hatrack.functional.annealing import annealed_scale, batch_progress
from hatrack.functional.chosen_weights import chosen_weight, straight_through
from hatrack.functional.conditioning import (
    Conditioning,
    adaptive_freedom,
    condition_gradient,
    cumulative_attention,
    faded_attention,
)
from hatrack.functional.contrast import supervised_contrast, turned_logits
from hatrack.functional.gated_weights import gated_weight
from hatrack.functional.gates import (
    EMBEDDING_BOUND,
    GATE_FLUSH,
    SATURATION_BOUND,
    Compensation,
    GateFunction,
    compensated_gate,
    compensation_factor,
    gate,
    gate_slope,
    hard_attention,
)
from hatrack.functional.penalties import proximal, quadratic_distance
from hatrack.functional.ratios import forgetting_ratio
from hatrack.functional.regularization import (
    Regularization,
    attention_regularization,
    layer_prices,
    layered_regularization,
    share_taken,
    unweighted_regularization,
)

__all__ = [
    "EMBEDDING_BOUND",
    "GATE_FLUSH",
    "SATURATION_BOUND",
    "Compensation",
    "Conditioning",
    "GateFunction",
    "Regularization",
    "adaptive_freedom",
    "annealed_scale",
    "attention_regularization",
    "batch_progress",
    "chosen_weight",
    "compensated_gate",
    "compensation_factor",
    "condition_gradient",
    "cumulative_attention",
    "faded_attention",
    "forgetting_ratio",
    "gate",
    "gate_slope",
    "gated_weight",
    "hard_attention",
    "layer_prices",
    "layered_regularization",
    "proximal",
    "quadratic_distance",
    "share_taken",
    "straight_through",
    "supervised_contrast",
    "turned_logits",
    "unweighted_regularization",
]
