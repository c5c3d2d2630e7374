"""How large and how fast extracted tasks are, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from hatrack.experiments import TaskSize
from hatrack.report.table import Column, Kind, Row, Table

__all__ = ["sizes_table"]


def sizes_table(sizes: Sequence[TaskSize]) -> Table:
    """A row per task: its share of units, parameters and operations, its file, its time, and against the whole."""
    rows = tuple(_row(size) for size in sizes)
    columns = (
        Column("task", "task"),
        Column("units_share", "units", Kind.PERCENT, "share of the network's units"),
        Column("parameter_share", "parameters", Kind.PERCENT, "share of the network's parameters"),
        Column("nonzero_share", "not 0", Kind.PERCENT, "parameters that are not 0, as a share of the network's"),
        Column("flops_share", "operations", Kind.PERCENT, "share of the network's operations per sample"),
        Column("file_bytes", "file (bytes)", Kind.NUMBER, "size of the task's .safetensors file"),
        Column("full_file_bytes", "whole (bytes)", Kind.NUMBER, "size of the whole network's"),
        Column("milliseconds", "ms per batch", Kind.RATIO, "least time of the extracted task"),
        Column("full_milliseconds", "whole (ms)", Kind.RATIO, "least time of the masked network"),
        Column("speedup", "times as fast", Kind.RATIO, "the quotient of these"),
    )
    known = [column for column in columns if any(row[column.key] is not None for row in rows)]
    return Table("sizes", "Tasks taken out of the network", tuple(known), rows)


def _row(size: TaskSize) -> Row:
    return {
        **asdict(size),
        "units_share": size.units / size.full_units if size.full_units else None,
        "parameter_share": size.parameters / size.full_parameters,
        "nonzero_share": size.nonzero / size.full_parameters,
        "flops_share": size.flops / size.full_flops if size.full_flops else None,
        "speedup": size.speedup,
        "milliseconds": 1e3 * size.seconds,
        "full_milliseconds": 1e3 * size.full_seconds,
    }
