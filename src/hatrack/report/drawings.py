"""The figures of :mod:`hatrack.report.figures`, drawn from runs with altair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from hatrack.errors import InputError
from hatrack.objectives import ACCURACY, Metric
from hatrack.report import charts, inside, over_time, recognition, tables
from hatrack.report.literature import published
from hatrack.report.runs import Runs
from hatrack.report.table import Drawing, Kind, Row, Table, capitalized, kinds_of, means
from hatrack.report.verdict import timing
from hatrack.support.names import joined_with_and

__all__ = ["DRAWINGS", "DRAWINGS_OF_ONE"]


def _average(runs: Runs) -> Drawing:
    return _curve(runs.average, f"Average {runs.require_metric().name}")(runs)


_NEEDS_RHO = "ρ needs the runs of joint and random with the same seeds; run these methods too"
_NEEDS_TASKS = "nothing is learned after a single task, by which it could be forgotten; take runs of several tasks"
_NEEDS_INFER = "no run here has such data; it is kept by methods with masks, such as hat, with `infer=true`"


def _curve(key: str, title: str, lacks: str = _NEEDS_RHO) -> Callable[[Runs], Drawing]:
    def draw(runs: Runs) -> Drawing:
        runs.require_metric()
        table = tables.curves(runs)
        column = next((column for column in table.columns if column.key == key), None)
        rows = [row for row in table.rows if row["method"] in _but_guessing(runs) and row[key] is not None]
        if not rows or column is None:
            raise InputError(lacks)
        shown = [label for label in runs.labels if any(row["method"] == label for row in rows)]
        note = table.note if key == "forgetting_ratio" else ""
        return Drawing(charts.curves(rows, column, shown), title, table, note)

    return draw


def _usage(runs: Runs) -> Drawing:
    table = _require(inside.mean_usage(runs), "methods with masks, such as hat or pmask")
    known = [label for label in runs.labels if any(row["method"] == label for row in table.rows)]
    return Drawing(charts.usage(table.rows, runs.learned, known), "Network in use during training", table)


def _layers(runs: Runs, method: str) -> Drawing:
    table = _of(inside.capacity(runs), method)
    return Drawing(charts.layers(table.rows, method), f"Layers in use, {method}", table)


def _reuse(runs: Runs, method: str) -> Drawing:
    table = _of(inside.reuse(runs), method)
    of, by, share = table.columns[1:]
    return Drawing(charts.heat_map(table.rows, by, of, share), f"Reuse of weights, {method}", table)


def _matrix(runs: Runs, method: str) -> Drawing:
    table = _of(tables.accuracy(runs), method)
    key = _key(runs)
    cells = means(table.rows, ("after", "task"), key)
    column = {column.key: column for column in table.columns}
    panels = []
    for metric in runs.metrics:  # each with colours of its own
        tasks = runs.tasks_of(metric)
        rows = [{"after": after, "task": task, key: mean} for (after, task), mean in cells.items() if task in tasks]
        value = replace(column[key], kind=kinds_of(metric)[0], title=_heading(metric))
        panels.append(charts.heat_map(rows, column["task"], column["after"], value))
    return Drawing(charts.side_by_side(panels), f"{_names(runs)} on every task after every task, {method}", table)


def _task_confusion(runs: Runs, method: str) -> Drawing:
    table = _of(recognition.task_confusion(runs), method, _NEEDS_INFER)
    cells = means(table.rows, ("task", "taken_for"), "share")
    rows = [{"task": task, "taken_for": other, "share": mean} for (task, other), mean in cells.items()]
    column = {column.key: column for column in table.columns}
    chart = charts.heat_map(rows, column["taken_for"], column["task"], column["share"], bottom=0.0)
    return Drawing(chart, f"Tasks that test samples are taken for, {method}", table)


def _class_confusion(runs: Runs, method: str) -> Drawing:
    table = _of(recognition.class_confusion(runs), method, _NEEDS_INFER)
    shares = recognition.mean_class_shares(runs, method)
    names = [f"{number:02d} {name}" for number, (_, name) in enumerate(shares.classes, 1)]
    rows = [
        {"class": names[row], "taken": f"{column + 1:02d}", "share": share}
        for row, of in enumerate(shares.rows)
        for column, share in enumerate(of)
    ]
    taken, of = Kind.TEXT.column("taken", "taken for class"), Kind.TEXT.column("class")
    chart = charts.heat_map(rows, taken, of, Kind.PERCENT.column("share"), bottom=0.0)
    return Drawing(chart, f"Classes that test samples are taken for, {method}", table)


def _key(runs: Runs) -> str:
    return "accuracy" if runs.metric == ACCURACY else "score"


def _names(runs: Runs) -> str:
    """Return the names of the metrics of all tasks, as they begin a heading."""
    return capitalized(joined_with_and(metric.name for metric in runs.metrics))


def _heading(metric: Metric) -> str:
    """Return the name of a metric, with its direction where that could be doubted."""
    return metric.name if metric.is_share else f"{metric.name}, {metric.direction}"


def _tasks(runs: Runs, method: str) -> Drawing:
    table = _of(tables.accuracy(runs), method)
    panels = []
    for metric in runs.metrics:  # each with an axis of its own
        tasks = runs.tasks_of(metric)
        rows = [row for row in table.rows if row["task"] in tasks]
        value = kinds_of(metric)[0].column(_key(runs), _heading(metric))
        panels.append(charts.lines_per_task(rows, method, runs.task_names, value))
    return Drawing(charts.side_by_side(panels), f"{_names(runs)} on every task, {method}", table)


def _time(runs: Runs) -> Drawing:
    table = timing(runs)
    return Drawing(charts.bars(table.rows, table.columns[1]), "Training and testing time", table, table.note)


def _sensitivity(runs: Runs) -> Drawing:
    table = tables.sensitivity(runs)
    key = table.columns[1].key
    metric = runs.require_metric()
    value = kinds_of(metric)[0].column(runs.average, f"average {_heading(metric)}")
    rows = [{**row, "place": place} for place, row in enumerate(table.rows)]
    by_factors = all(isinstance(row[key], int | float) and row[key] > 0 for row in rows)
    chart = charts.scatter(rows, key, value, key, "method", order="place", log_x=by_factors)
    return Drawing(chart, f"Sensitivity to {key}", table)


def _compression(runs: Runs, method: str) -> Drawing:
    table = _of(inside.compression(runs), method)
    rows = [{**row, "percent": 100 * row["used"]} for row in table.rows]
    metric = runs.any.tasks[0].metric
    value = kinds_of(metric)[0].column(table.columns[-1].key, f"validation {_heading(metric)}")
    chart = charts.scatter(rows, "percent", value, "in use (%)", "seed", order="epoch")
    return Drawing(chart, f"Compression of a single task, epoch by epoch, {method}", table)


def _published(runs: Runs) -> Drawing:
    table = published(runs)
    column = [column for column in table.columns if column.kind in (Kind.PERCENT, Kind.RATIO)][-1]
    return Drawing(charts.ranking(table.rows, column, "by"), table.title, table)


def _transfer(runs: Runs) -> Drawing:
    runs.require_metric()
    table = tables.summary(runs)
    shown = (runs.learning, "backward_transfer", "forward_transfer")
    rows = [row for row in table.rows if row["method"] != "random"] or table.rows
    columns = [column for column in table.columns if column.key in shown]
    return Drawing(charts.bars_side_by_side(rows, columns), "Learning and transfer", table)


def _time_by_task(runs: Runs) -> Drawing:
    table = over_time.by_task(runs)
    shown, column = _but_guessing(runs), {column.key: column for column in table.columns}
    rows = [row for row in table.rows if row["method"] in shown]
    chart = charts.curves(rows, column["seconds"], shown, over=column["task"])
    return Drawing(chart, "Time for training on each task and testing all so far", table, table.note)


def _learning(runs: Runs) -> Drawing:
    table = _require(over_time.mean_learning(runs), "runs of which no epoch is missing")
    rows = [row for row in table.rows if row["method"] in _but_guessing(runs)]
    shown = [label for label in runs.labels if any(row["method"] == label for row in rows)]
    panels = []
    for metric in runs.metrics:
        tasks = runs.tasks_of(metric)
        _, loss, score = over_time.figures_of(table, metric)
        panel = charts.epochs_side_by_side([row for row in rows if row["task"] in tasks], (loss, score), shown)
        panels.append(panel if len(runs.metrics) == 1 else panel.properties(title=over_time.tasks_named(runs, metric)))
    return Drawing(charts.below_each_other(panels), "Learning curves", table, table.note)


def _but_guessing(runs: Runs) -> list[str]:
    """Return the labels of all methods but guessing, beside which the others could not be told apart."""
    return [label for label in runs.labels if label != "random"] or list(runs.labels)


_NEEDS_MASKS = "no run here has such data; it is kept by methods with masks, such as hat or pmask"


def _of(table: Table, method: str, lacks: str = _NEEDS_MASKS) -> Table:
    rows: list[Row] = [row for row in table.rows if row["method"] == method]
    if not rows:
        known = sorted({row["method"] for row in table.rows})
        raise InputError(
            f"there is no such data of {method!r} here; choose one of: {', '.join(known)}" if known else lacks
        )
    return Table(table.name, table.title, table.columns, tuple(rows))


def _require(table: Table, who: str) -> Table:
    if not table.rows:
        raise InputError(f"no run here has such data; it is kept by {who}")
    return table


DRAWINGS: Mapping[str, Callable[[Runs], Drawing]] = MappingProxyType(
    {
        "accuracy": _average,
        "forgetting": _curve("forgetting", "Forgetting", _NEEDS_TASKS),
        "forgetting-ratio": _curve("forgetting_ratio", "Forgetting ratio"),
        "sensitivity": _sensitivity,
        "usage": _usage,
        "class-incremental": _curve("class_incremental_accuracy", "Accuracy with no task named", _NEEDS_INFER),
        "transfer": _transfer,
        "published": _published,
        "time": _time,
        "time-by-task": _time_by_task,
        "learning": _learning,
    }
)
"""Draws every figure about all methods, by its name, from runs."""

DRAWINGS_OF_ONE: Mapping[str, Callable[[Runs, str], Drawing]] = MappingProxyType(
    {
        "reuse": _reuse,
        "compression": _compression,
        "layers": _layers,
        "tasks": _tasks,
        "matrix": _matrix,
        "task-confusion": _task_confusion,
        "class-confusion": _class_confusion,
    }
)
"""Draws every figure about one method, by its name, from runs and the label of the method."""
