"""Table of the size and speed of extracted tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from hatrack.experiments import TaskSize
from hatrack.report.table import Kind, Row, Table

__all__ = ["sizes_table"]


def sizes_table(sizes: Sequence[TaskSize]) -> Table:
    """Make a row per task: its share of units, parameters and operations, its file, its time, and against the whole."""
    rows = tuple(_row(size) for size in sizes)
    columns = (
        Kind.TEXT.column("task"),
        Kind.PERCENT.column("units_share", "units", "share of the network's units"),
        Kind.PERCENT.column("parameter_share", "parameters", "share of the network's parameters"),
        Kind.PERCENT.column("nonzero_share", "not 0", "parameters that are not 0, as a share of the network's"),
        Kind.PERCENT.column("flops_share", "operations", "share of the network's operations per sample"),
        Kind.NUMBER.column("file_bytes", "file (bytes)", "size of the task's .safetensors file"),
        Kind.NUMBER.column("full_file_bytes", "whole (bytes)", "size of the whole network's"),
        Kind.RATIO.column("milliseconds", "ms per batch", "least time of the extracted task"),
        Kind.RATIO.column("full_milliseconds", "whole (ms)", "least time of the masked network"),
        Kind.RATIO.column("speedup", "times as fast", "the quotient of these"),
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
