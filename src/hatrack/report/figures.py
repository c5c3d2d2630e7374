"""The papers' figures by name: each from a folder of runs, as a chart with its title and its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hatrack.errors import InputError
from hatrack.report import inside, tables
from hatrack.report.literature import published
from hatrack.report.runs import Runs
from hatrack.report.table import Kind, Row, Table
from hatrack.report.verdict import differences, timing

__all__ = ["FIGURES", "TABLES", "Drawing", "Figure"]


@dataclass(frozen=True)
class Drawing:
    """A figure that was drawn.

    Attributes:
        chart: an altair chart.
        title: above it.
        table: the data behind it.
    """

    chart: Any
    title: str
    table: Table


@dataclass(frozen=True)
class Figure:
    """A figure that can be drawn from runs.

    Attributes:
        name: what the command line calls it.
        description: what it shows.
        source: which figure of which paper it follows.
        draw: draws it from runs, for the label of a method where it is about one.
    """

    name: str
    description: str
    source: str
    draw: Callable[[Runs, str], Drawing]


_HAT = "Serrà et al., ICML 2018"


def _curve(key: str, title: str) -> Callable[[Runs, str], Drawing]:
    def draw(runs: Runs, method: str) -> Drawing:
        from hatrack.report import charts

        table = tables.curves(runs)
        column = next(column for column in table.columns if column.key == key)
        shown = [label for label in runs.labels if label != "random"] or list(runs.labels)
        rows = [row for row in table.rows if row["method"] in shown and row[key] is not None]
        if not rows:
            raise InputError("ρ needs the runs of joint and random with the same seeds; run these methods too")
        return Drawing(charts.curves(rows, column, shown), title, table)

    return draw


def _usage(runs: Runs, method: str) -> Drawing:
    from hatrack.report import charts

    table = _require(inside.mean_usage(runs), "methods with masks, such as hat or pmask")
    known = [label for label in runs.labels if any(row["method"] == label for row in table.rows)]
    return Drawing(charts.usage(table.rows, runs.learned, known), "Network in use during training", table)


def _layers(runs: Runs, method: str) -> Drawing:
    from hatrack.report import charts

    table = _of(inside.capacity(runs), method)
    return Drawing(charts.layers(table.rows, method), f"Layers in use, {method}", table)


def _reuse(runs: Runs, method: str) -> Drawing:
    from hatrack.report import grids

    table = _of(inside.reuse(runs), method)
    of, by, share = table.columns[1:]
    return Drawing(grids.heat_map(table.rows, by, of, share), f"Reuse of weights, {method}", table)


def _matrix(runs: Runs, method: str) -> Drawing:
    from hatrack.report import grids

    table = _of(tables.accuracy(runs), method)
    cells: dict[tuple[int, int], list[float]] = {}
    for row in table.rows:
        cells.setdefault((row["after"], row["task"]), []).append(row["accuracy"])
    means = [{"after": after, "task": task, "accuracy": sum(of) / len(of)} for (after, task), of in cells.items()]
    column = {column.key: column for column in table.columns}
    chart = grids.heat_map(means, column["task"], column["after"], column["accuracy"])
    return Drawing(chart, f"Accuracy on every task after every task, {method}", table)


def _tasks(runs: Runs, method: str) -> Drawing:
    from hatrack.report import charts

    table = _of(tables.accuracy(runs), method)
    return Drawing(
        charts.lines_per_task(table.rows, method, runs.task_names), f"Accuracy on every task, {method}", table
    )


def _time(runs: Runs, method: str) -> Drawing:
    from hatrack.report import charts

    table = timing(runs)
    return Drawing(charts.bars(table.rows, table.columns[1]), "Training and testing time", table)


def _sensitivity(runs: Runs, method: str) -> Drawing:
    from hatrack.report import charts

    table = tables.sensitivity(runs)
    key = table.columns[1].key
    chart = charts.scatter(
        table.rows, key, "average_accuracy", (key, "average accuracy (%)"), "method", order=key, log_x=True
    )
    return Drawing(chart, f"Sensitivity to {key}", table)


def _compression(runs: Runs, method: str) -> Drawing:
    from hatrack.report import charts

    table = _require(inside.compression(runs), "methods with masks, such as hat")
    rows = [{**row, "percent": 100 * row["used"]} for row in table.rows]
    titles = ("units in use (%)", "validation accuracy (%)")
    chart = charts.scatter(rows, "percent", "valid_accuracy", titles, "seed", order="epoch")
    return Drawing(chart, "Compression of a single task, epoch by epoch", table)


def _published(runs: Runs, method: str) -> Drawing:
    from hatrack.report import charts

    table = published(runs)
    column = [column for column in table.columns if column.kind in (Kind.PERCENT, Kind.RATIO)][-1]
    return Drawing(charts.ranking(table.rows, column, "by"), table.title, table)


def _transfer(runs: Runs, method: str) -> Drawing:
    from hatrack.report import charts

    table = tables.summary(runs)
    shown = ("learning_accuracy", "backward_transfer", "forward_transfer")
    rows = [row for row in table.rows if row["method"] != "random"] or table.rows
    columns = [column for column in table.columns if column.key in shown]
    return Drawing(charts.bars_side_by_side(rows, columns), "Learning and transfer", table)


def _of(table: Table, method: str) -> Table:
    rows: list[Row] = [row for row in table.rows if row["method"] == method]
    if not rows:
        known = sorted({row["method"] for row in table.rows})
        raise InputError(
            f"there is no such data of {method!r} here; choose one of: {', '.join(known)}"
            if known
            else "no run here has such data; it is kept by methods with masks, such as hat or pmask"
        )
    return Table(table.name, table.title, table.columns, tuple(rows))


def _require(table: Table, who: str) -> Table:
    if not table.rows:
        raise InputError(f"no run here has such data; it is kept by {who}")
    return table


FIGURES: Mapping[str, Figure] = MappingProxyType(
    {
        figure.name: figure
        for figure in (
            Figure(
                "accuracy",
                "average accuracy of the tasks so far",
                "Lopez-Paz and Ranzato, 2017",
                _curve("average_accuracy", "Average accuracy"),
            ),
            Figure(
                "forgetting",
                "forgetting of the tasks so far",
                "Chaudhry et al., 2018",
                _curve("forgetting", "Forgetting"),
            ),
            Figure(
                "forgetting-ratio",
                "ρ of the tasks so far; needs joint and random",
                f"{_HAT}, Fig. 3",
                _curve("forgetting_ratio", "Forgetting ratio"),
            ),
            Figure("sensitivity", "accuracy by a setting, of runs that differ in it", f"{_HAT}, Fig. 4", _sensitivity),
            Figure("usage", "share of the network in use during training", f"{_HAT}, Fig. 5", _usage),
            Figure("reuse", "weights of a task that another uses too; one method", f"{_HAT}, Fig. 6", _reuse),
            Figure("compression", "accuracy against size during a first task", f"{_HAT}, Fig. 7", _compression),
            Figure("layers", "share of every layer in use after every task; one method", f"{_HAT}, Fig. 8", _layers),
            Figure("tasks", "accuracy on every task while others follow; one method", f"{_HAT}, Fig. 9", _tasks),
            Figure("matrix", "accuracy on every task after every task; one method", "", _matrix),
            Figure(
                "transfer",
                "accuracy right after learning, backward and forward transfer, by method",
                "Lopez-Paz and Ranzato, 2017",
                _transfer,
            ),
            Figure(
                "published",
                "the literature's figures beside these runs'",
                f"{_HAT}, Tables 3, 4, 6, 7 and 8",
                _published,
            ),
            Figure("time", "time for training and testing", f"{_HAT}, Table 5", _time),
        )
    }
)
"""Every figure by its name."""

TABLES: Mapping[str, Callable[[Runs], Table]] = MappingProxyType(
    {
        "summary": tables.summary,
        "forgetting-ratios": tables.forgetting_ratios,
        "differences": differences,
        "curves": tables.curves,
        "accuracy": tables.accuracy,
        "capacity": inside.capacity,
        "usage": inside.usage,
        "reuse": inside.reuse,
        "compression": inside.compression,
        "timing": timing,
        "published": published,
        "data": tables.data,
    }
)
"""Every table by its name."""
