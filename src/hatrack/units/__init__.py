"""Analysis of the units of a network: rules of operations, the labelled run, and the graph of units."""

from hatrack.units.analysis import analyze, are_same, follow, resolve, why_not_extended
from hatrack.units.graph import OUTPUT, Group, ParameterUse, Reader, Role, UnitGraph, warn_of_collapse
from hatrack.units.paths import Path, path_of, stray_parameters
from hatrack.units.rules import heads_always_on, rule, same_on_every_path, shared_layer, unit_by_unit
from hatrack.units.trace import Call, Rule, Trace
from hatrack.units.untrained import warn_of_nothing_to_learn

__all__ = [
    "OUTPUT",
    "Call",
    "Group",
    "ParameterUse",
    "Path",
    "Reader",
    "Role",
    "Rule",
    "Trace",
    "UnitGraph",
    "analyze",
    "are_same",
    "follow",
    "heads_always_on",
    "path_of",
    "resolve",
    "rule",
    "same_on_every_path",
    "shared_layer",
    "stray_parameters",
    "unit_by_unit",
    "warn_of_collapse",
    "warn_of_nothing_to_learn",
    "why_not_extended",
]
