"""Figures that others published of the same experiments, and a table of them with the runs at hand in between.

Only figures that could be read in a source are here: the HAT paper's tables have more rows than its text quotes, and
these are left out rather than guessed.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from hatrack.errors import InputError
from hatrack.experiments import EXPERIMENTS, RunResult
from hatrack.experiments.metrics import average_accuracy
from hatrack.methods import METHODS
from hatrack.objectives import ACCURACY
from hatrack.report.runs import Runs
from hatrack.report.table import METHOD, Kind, Table, TableColumn, mean_and_sd

__all__ = ["HERE", "PUBLISHED", "Measure", "Published", "has_published", "published"]

HERE = "these runs"
"""Name of the source of the figures that are not out of the literature."""


@dataclass(frozen=True)
class Measure:
    """Quantity that was measured.

    Attributes:
        key: its key in the rows of the table.
        title: title for people.
        kind: way in which it is shown.
        help: its meaning, in one sentence.
        after: number of tasks learned when it was measured.
    """

    key: str
    title: str
    kind: Kind
    help: str
    after: int

    @property
    def lower_is_better(self) -> bool:
        """Return whether a small figure is a good one."""
        return self.key == "weights"


@dataclass(frozen=True)
class Published:
    """Figures of a method in one source.

    Attributes:
        method: its name; that of :data:`hatrack.methods.METHODS` where it is there.
        source: the publication, or the code that was measured.
        figures: means by measure.
        sds: standard deviations by measure, where they are known.
        network: hidden units of its layers, where they are known.
        seeds: number of runs; None if it is not known.
    """

    method: str
    source: str
    figures: Mapping[Measure, float]
    sds: Mapping[Measure, float] = field(default_factory=dict)
    network: str = ""
    seeds: int | None = None


def _measure(name: str, after: int) -> Measure:
    """Return the measure that a row of the table names."""
    match name:
        case "accuracy":
            return Measure("average_accuracy", f"A≤{after}", Kind.PERCENT, f"mean accuracy on all {after} tasks", after)
        case "ratio":
            text = f"forgetting ratio after {after} tasks: 0 is as good as joint training, −1 as guessing"
            return Measure(f"forgetting_ratio_{after}", f"ρ≤{after}", Kind.RATIO, text, after)
        case "size":
            return Measure("weights", "size", Kind.PERCENT, "share of the network's weights that the task needs", after)
    raise ValueError(name)


def _read() -> dict[str, tuple[Published, ...]]:
    """Read ``literature.csv``: a figure a row; neighbours that differ in the figure alone are one entry."""
    text = resources.files("hatrack.report").joinpath("literature.csv").read_text(encoding="utf-8")
    source = itemgetter("stream", "method", "source", "network", "seeds")
    entries: dict[str, tuple[Published, ...]] = {}
    for (stream, method, by, network, seeds), group in groupby(csv.DictReader(text.splitlines()), source):
        rows = [(_measure(row["measure"], int(row["after"])), row) for row in group]
        figures = {measure: float(row["value"]) for measure, row in rows}
        sds = {measure: float(row["sd"]) for measure, row in rows if row["sd"]}
        entry = Published(method, by, figures, sds, network, int(seeds) if seeds else None)
        entries[stream] = (*entries.get(stream, ()), entry)
    return entries


PUBLISHED: Mapping[str, tuple[Published, ...]] = MappingProxyType(_read())
"""Published figures by the name of the stream that they were measured on."""


def has_published(runs: Runs) -> bool:
    """Return whether figures were published of the stream of these runs."""
    return _stream(runs) in PUBLISHED and runs.metric == ACCURACY


def published(runs: Runs) -> Table:
    """Put the literature's figures and ours in one table, the best first (the HAT paper's tables 7 and 8, and others).

    Rows of ours have the number of their seeds, and the settings that differ from the experiment's, since a run with
    fewer epochs or samples is no reproduction. A figure is left empty where so many tasks have not been learned.

    Raises:
        InputError: nothing was published of this experiment, as far as is known here.
    """
    stream = _stream(runs)
    if not has_published(runs):
        names = [name for name, experiment in EXPERIMENTS.items() if experiment.stream in PUBLISHED]
        raise InputError(
            f"no published figures are known of {runs.any.experiment}; there are some of {', '.join(names)}"
        )
    entries = PUBLISHED[stream]
    measures = list(dict.fromkeys(measure for entry in entries for measure in entry.figures))
    rows = [*map(_row_of_literature, entries), *_rows_of_ours(runs, measures)]
    last = measures[-1]
    rows.sort(key=lambda row: _rank(row[last.key], last))
    columns = (
        *(METHOD, Kind.TEXT.column("by", "measured by"), Kind.TEXT.column("network", "hidden units")),
        *(TableColumn(measure.key, measure.title, measure.kind, measure.help) for measure in measures),
        Kind.NUMBER.column("seeds"),
        Kind.TEXT.column("differs", "settings of ours", meaning="those that differ from the experiment's own"),
    )
    return Table("published", "Beside what others published", columns, tuple(rows))


def _stream(runs: Runs) -> str:
    name = runs.any.experiment
    return EXPERIMENTS[name].stream if name in EXPERIMENTS else ""


def _row_of_literature(entry: Published) -> dict[str, Any]:
    row: dict[str, Any] = {"method": entry.method, "by": entry.source, "network": entry.network or None}
    for measure, value in entry.figures.items():
        row |= {measure.key: value, f"{measure.key}_sd": entry.sds.get(measure)}
    return {**row, "seeds": entry.seeds, "differs": None}


def _rows_of_ours(runs: Runs, measures: Iterable[Measure]) -> Iterable[dict[str, Any]]:
    for label in runs.labels:
        of = list(runs.by_label[label].items())
        run = of[0][1]
        row: dict[str, Any] = {"method": run.method, "by": HERE, "network": _network(run)}
        for measure in measures:
            row |= mean_and_sd(measure.key, (_measured(runs, label, seed, measure) for seed, _ in of))
        if any(row[measure.key] is not None for measure in measures):
            yield {**row, "seeds": len(of), "differs": _differing(run)}


def _measured(runs: Runs, label: str, seed: int, measure: Measure) -> float | None:
    run = runs.by_label[label][seed]
    if len(run.scores) < measure.after:
        return None
    if measure.kind is Kind.RATIO:
        return runs.forgetting_ratio(label, seed, measure.after - 1)
    if measure.key == "weights":
        share: float | None = None if run.capacity is None else run.capacity["weights"]
        return share
    return average_accuracy(run.matrix("accuracy")[: measure.after])


def _network(run: RunResult) -> str | None:
    if run.config.get("network") == "mlp":
        return "-".join(map(str, run.config.get("hidden", ())))
    return "AlexNet-like" if run.config.get("network") == "alexnet" else run.config.get("network")


def _differing(run: RunResult) -> str | None:
    """Return the settings that are not the experiment's.

    The number of hidden units has a column, and whether tasks are recognised, too, changes no score.
    """
    if run.method not in METHODS:
        return None  # a method of other versions: its settings are not known
    own = EXPERIMENTS[run.experiment].config(run.method).flat()
    found = [
        f"{key}={_text(value)}"
        for key, value in run.config.items()
        if key not in ("hidden", "network", "infer") and key in own and value != own[key]
    ]
    return ", ".join(found) or None


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rank(value: float | None, measure: Measure) -> tuple[bool, float]:
    """Return the key that sorts the best first, and unknown figures last."""
    if value is None:
        return True, 0.0
    return False, value if measure.lower_is_better else -value
