"""Rules: what each operation does to units. One file per family; importing this package registers them all."""

from hatrack.units.rules import attention, elementwise, mixing, normalization, pooling, reshaping
from hatrack.units.rules.registry import find_rule, rule

__all__ = ["attention", "elementwise", "find_rule", "mixing", "normalization", "pooling", "reshaping", "rule"]
