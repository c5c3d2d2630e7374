"""Conversion of mask sources and conditionings to JSON values for files, and back."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from hatrack.masks.conditioning import ElasticWeights, FreeWeights, NoWeights, WeightConditioning
from hatrack.masks.sources import Embedding, Magnitude, MaskSource, Scores
from hatrack.support.names import look_up

__all__ = ["CONDITIONINGS", "SOURCES", "conditioning_from", "describe", "from_values", "source_from", "to_values"]

PartT = TypeVar("PartT")

SOURCES: Mapping[str, type[MaskSource]] = MappingProxyType({s.kind: s for s in (Embedding, Scores, Magnitude)})
"""Mask sources by their kinds."""

CONDITIONINGS: Mapping[str, type[WeightConditioning]] = MappingProxyType(
    {c.kind: c for c in (FreeWeights, NoWeights, ElasticWeights)}
)
"""Conditionings by their kinds."""


def describe(part: MaskSource | WeightConditioning) -> dict[str, Any]:
    """Convert a source or a conditioning to JSON values."""
    return {"kind": part.kind, **to_values(part)}


def source_from(described: Mapping[str, Any]) -> MaskSource:
    """Make the source that :func:`describe` described."""
    return from_values(look_up("mask source", described["kind"], SOURCES), described)


def conditioning_from(described: Mapping[str, Any]) -> WeightConditioning:
    """Make the conditioning that :func:`describe` described."""
    return from_values(look_up("conditioning", described["kind"], CONDITIONINGS), described)


def to_values(part: Any) -> dict[str, Any]:
    """Convert a dataclass to JSON values by the names of its fields."""
    fields = dataclasses.asdict(part)
    return {key: value.value if isinstance(value, enum.Enum) else value for key, value in fields.items()}


def from_values(kind: type[PartT], described: Mapping[str, Any]) -> PartT:
    """Make a dataclass of the values of its fields; an entry ``kind`` does not matter.

    Args:
        kind: the dataclass.
        described: values by the names of fields, those of enumerations as in JSON.
    """
    hints = typing.get_type_hints(kind)
    values = {key: value for key, value in described.items() if key != "kind"}
    for key, value in values.items():
        if isinstance(hints[key], type) and issubclass(hints[key], enum.Enum):
            values[key] = hints[key](value)
    return kind(**values)
