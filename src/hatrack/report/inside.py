"""Tidy tables of what of the network is used: by layer, over time, by two tasks, for which accuracy, once extracted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from hatrack.experiments import TaskSize
from hatrack.objectives import ACCURACY
from hatrack.report.runs import Runs
from hatrack.report.table import AFTER, METHOD, SEED, Kind, Row, Table, kinds_of, mean_and_sd

__all__ = ["capacity", "compression", "mean_usage", "reuse", "sizes_table", "usage"]


def capacity(runs: Runs) -> Table:
    """Make a row per method, seed, task and layer: the share in use after the task (Fig. 8)."""
    rows = [
        {"method": label, "seed": seed, "after": after + 1, "layer": layer, "used": share}
        for label, seed, run in runs.each()
        for after, history in enumerate(run.history)
        if history.capacity is not None
        for layer, share in history.capacity["groups"].items()
    ]
    columns = (METHOD, SEED, AFTER, Kind.TEXT.column("layer"), Kind.PERCENT.column("used", "in use"))
    return Table("capacity", "Share of every layer in use", columns, tuple(rows))


def usage(runs: Runs) -> Table:
    """Make a row per method, seed and epoch: the share of units or weights in use in training (Fig. 5)."""
    rows = []
    for label, seed, run in runs.each():
        epoch = 0
        for task, history in enumerate(run.history):
            for within, used in enumerate(history.used):
                epoch += 1
                progress = task + (within + 1) / len(history.used)
                rows.append(
                    {
                        "method": label,
                        "seed": seed,
                        "task": task + 1,
                        "epoch": epoch,
                        "progress": round(progress, 4),
                        "used": used,
                    }
                )
    columns = (
        *(METHOD, SEED, Kind.NUMBER.column("task"), Kind.NUMBER.column("epoch")),
        *(Kind.NUMBER.column("progress", "tasks learned"), Kind.PERCENT.column("used", "in use")),
    )
    return Table("usage", "Share of the network in use during training", columns, tuple(rows))


def mean_usage(runs: Runs, points: int = 30) -> Table:
    """Make a row per method and place: the mean of :func:`usage` over seeds, which may stop after different epochs.

    Args:
        runs: the runs.
        points: number of places within every task; at each, a run counts with the epoch that it was in.
    """
    places: dict[tuple[str, int, int], list[float]] = {}
    for label, _, run in runs.each():
        for task, history in enumerate(run.history):
            for place in range(1, points + 1) if history.used else ():
                epoch = math.ceil(place * len(history.used) / points)
                places.setdefault((label, task, place), []).append(history.used[epoch - 1])
    rows = tuple(
        {"method": label, "progress": round(task + place / points, 3), **mean_and_sd("used", of)}
        for (label, task, place), of in places.items()
    )
    columns = (
        METHOD,
        Kind.NUMBER.column("progress", "tasks learned"),
        Kind.PERCENT.column("used", "in use"),
    )
    return Table("mean-usage", "Share of the network in use during training", columns, rows)


def reuse(runs: Runs) -> Table:
    """Make a row per method and pair of tasks: share of the weights of one that the other uses too (Fig. 6)."""
    rows = []
    for label in runs.labels:
        known = [run.reuse for run in runs.by_label[label].values() if run.reuse is not None]
        if known:
            rows += [
                {"method": label, "of": i + 1, "by": j + 1, **mean_and_sd("share", (matrix[i][j] for matrix in known))}
                for i in range(runs.learned)
                for j in range(runs.learned)
            ]
    columns = (
        *(METHOD, Kind.NUMBER.column("of", "weights of task"), Kind.NUMBER.column("by", "used by task")),
        Kind.PERCENT.column("share"),
    )
    return Table("reuse", "Reuse of weights between tasks", columns, tuple(rows))


def compression(runs: Runs) -> Table:
    """Make a row per method, seed and epoch of the first task: the share in use, and the accuracy with it (Fig. 7).

    The metric of another kind of task stands under a key of its own.
    """
    metric = runs.any.tasks[0].metric
    key = "valid_accuracy" if metric == ACCURACY else "valid_score"
    rows = tuple(
        {"method": label, "seed": seed, "epoch": epoch, "used": used, key: right}
        for label, seed, run in runs.each()
        if run.history
        for epoch, (used, right) in enumerate(zip(run.history[0].used, run.history[0].valid_score, strict=False), 1)
    )
    columns = (
        *(METHOD, SEED, Kind.NUMBER.column("epoch")),
        *(
            Kind.PERCENT.column("used", "in use"),
            kinds_of(metric)[0].column(key, f"validation {metric.name}"),
        ),
    )
    return Table("compression", f"Share in use and {metric.name} during the first task", columns, rows)


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
        Kind.RATIO.column("plain_milliseconds", "whole (ms)", "least time of the whole network without gates"),
        Kind.RATIO.column("full_milliseconds", "masked (ms)", "least time of the masked network"),
        Kind.RATIO.column("speedup", "times as fast as the whole", "what compression gives"),
        Kind.RATIO.column("speedup_over_masked", "as the masked", "what compression and the lack of gates give"),
    )
    known = [column for column in columns if any(row[column.key] is not None for row in rows)]
    note = "the whole network has no gates and masks; the masked one computes them in every pass, too"
    return Table("sizes", "Tasks taken out of the network", tuple(known), rows, note)


def _row(size: TaskSize) -> Row:
    return {
        **asdict(size),
        "units_share": size.units / size.full_units if size.full_units else None,
        "parameter_share": size.parameters / size.full_parameters,
        "nonzero_share": size.nonzero / size.full_parameters,
        "flops_share": size.flops / size.full_flops if size.full_flops else None,
        "speedup": size.speedup,
        "speedup_over_masked": size.speedup_over_masked,
        "plain_milliseconds": 1e3 * size.plain_seconds,
        "milliseconds": 1e3 * size.seconds,
        "full_milliseconds": 1e3 * size.full_seconds,
    }
