"""Rules: what each operation does to units. One file per family; importing this package registers them all."""

from hatrack.units.rules import (
    attention,
    elementwise,
    functional,
    mixing,
    normalization,
    pooling,
    products,
    recurrent,
    reshaping,
)
from hatrack.units.rules.attention import heads_always_on
from hatrack.units.rules.by_hand import shared_layer, unit_by_unit
from hatrack.units.rules.registry import RuleBook, rule, same_on_every_path, takes_parameters

__all__ = [
    "RuleBook",
    "attention",
    "elementwise",
    "functional",
    "heads_always_on",
    "mixing",
    "normalization",
    "pooling",
    "products",
    "recurrent",
    "reshaping",
    "rule",
    "same_on_every_path",
    "shared_layer",
    "takes_parameters",
    "unit_by_unit",
]
