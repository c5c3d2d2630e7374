"""Panels of the page: charts with their captions, texts in place of pictures, and the tables behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from hatrack.objectives import ACCURACY, Metric
from hatrack.report import charts
from hatrack.report.canvas import Chart
from hatrack.report.inline_svg import inline_svg
from hatrack.report.over_time import figures_of, tasks_named
from hatrack.report.runs import Runs
from hatrack.report.table import AFTER, Row, Table, TableColumn, capitalized
from hatrack.report.writers import number

__all__ = ["WIDTH", "Panel", "epoch_panels", "task_panels"]

WIDTH, HEIGHT = 372, 250
"""Size in pixels of a chart on the narrowest page; wider ones enlarge it."""

_NAMED = 6
"""Number of methods whose figures stand in for a chart; more are in its table."""


@dataclass(frozen=True)
class Panel:
    """A chart on the page.

    Attributes:
        name: name in files and in the page.
        title: the first words of the caption.
        text: the rest of it.
        table: name of the table with its data.
        svg: the chart, an SVG element.
        alt: text for who does not see it.
        series: names of its lines where these are no methods, in the order of the colours.
    """

    name: str
    title: str
    text: str
    table: str
    svg: Markup
    alt: str
    series: tuple[str, ...] = ()


def task_panels(runs: Runs, tables: Mapping[str, Table]) -> list[Panel]:
    """Draw what changed from task to task: score, forgetting, transfer, what of the network is in use, and time.

    Where tasks have different metrics, only the last two.

    Args:
        runs: the runs.
        tables: ``curves``, ``by-task`` and ``mean-usage`` of them.
    """
    metric, names = runs.metric or ACCURACY, runs.task_names
    direction = "" if metric == ACCURACY else f" {metric.direction.capitalize()}."
    lost = "in points lost" if metric.is_share else f"what got worse of {metric.name}"
    bars = " Bars are one standard deviation over seeds." if len(runs.seeds) > 1 else ""
    times = f" {capitalized(runs.note_on_times)}." if runs.note_on_times else ""
    ahead = "in points" if metric.is_share else f"in {metric.name}"
    wanted = (
        ("curves", runs.average, f"Average {metric.name}", f"of all the tasks so far.{direction}{bars}"),
        (
            "curves",
            "class_incremental_accuracy",
            "No task named",
            f"task and class are both right.{bars}",
        ),
        ("curves", "forgetting", "Forgetting", f"{lost} since a task was learned, mean so far. Lower is better.{bars}"),
        ("curves", "forgetting_ratio", "Forgetting ratio ρ", f"0: as good as all tasks at once; −1: guessing.{bars}"),
        ("by-task", "forward_transfer", "Forward transfer", f"{ahead} ahead of learning the task alone.{bars}"),
        ("by-task", "seconds", "Time", f"for training on each task and testing all so far.{times}{bars}"),
    )
    panels = []
    for name, key, title, text in wanted if runs.learned > 1 else ():
        table = tables[name]
        if runs.metric is None and key == "forward_transfer":  # each task's is in the unit of its own metric
            continue
        rows = [row for row in _shown(runs, table.rows) if row[key] is not None]
        rows = [row for row in rows if not (key == "forward_transfer" and row["method"] == "independent")]
        column = next((column for column in table.columns if column.key == key), None)
        if not rows or column is None:
            continue
        if not metric.is_share and key in (runs.average, "forgetting", "forward_transfer"):
            column = replace(column, title=metric.name if key == runs.average else f"{column.title} ({metric.name})")
        over = AFTER if name == "curves" else table.columns[1]
        chart = charts.curves(rows, column, runs.labels, over=over, names=names, legend=False)
        if key == "forgetting_ratio" and table.note:
            text = f"{text} {capitalized(table.note)}."
        panels.append(_panel(runs, key, title, text, name, chart, _alt(title, "tasks", column, rows, runs.labels)))
    used = tables["mean-usage"]
    if used.rows:
        text = "while tasks are in training; dashed lines are switches to the next task."
        chart = charts.usage(used.rows, runs.learned, runs.labels, legend=False)
        alt = _alt("Network in use", "training", used.columns[-1], used.rows, runs.labels)
        panels.append(_panel(runs, "usage", "Network in use", text, used.name, chart, alt))
    return panels


def epoch_panels(runs: Runs, table: Table) -> list[Panel]:
    """Draw learning curves: loss on training and validation samples, and the score on the latter.

    Args:
        runs: the runs.
        table: :func:`hatrack.report.over_time.mean_learning` of them.
    """
    if not table.rows:
        return []
    panels: list[Panel] = []
    for metric in runs.metrics:
        tasks = runs.tasks_of(metric)
        rows = [row for row in _shown(runs, table.rows) if row["task"] in tasks]
        panels += _epoch_panels(runs, replace(table, rows=tuple(rows)), metric)
    return panels


def _epoch_panels(runs: Runs, table: Table, metric: Metric) -> list[Panel]:
    """Draw the learning curves of the tasks that have one metric."""
    loss, valid_loss, score = figures_of(table, metric)
    of, end = "", ""
    if len(runs.metrics) > 1:
        of, end = f" of {tasks_named(runs, metric).partition(': ')[2]}", f"-{runs.metrics.index(metric) + 1}"
    direction = "" if metric == ACCURACY else f" {metric.direction.capitalize()}."
    bands = " Bands are one standard deviation over seeds." if len(runs.seeds) > 1 else ""
    whole = f" {capitalized(table.note)}."
    rows = table.rows
    wanted = [
        (replace(score, title=metric.name), f"Validation {metric.name}{of}", f"by epoch.{direction}{bands}"),
        (loss, f"Training loss{of}", f"by epoch, mean over its batches.{whole}{bands}"),
        (valid_loss, f"Validation loss{of}", f"by epoch; it decides when training stops.{whole}{bands}"),
    ]
    panels = []
    if len(runs.labels) == 1:
        both = {"training": loss, "validation": valid_loss}
        one = TableColumn("loss", "loss", loss.kind)
        split = [
            {**row, "method": name, "loss": row[column.key], "loss_sd": row[f"{column.key}_sd"]}
            for row in rows
            for name, column in both.items()
        ]
        chart = charts.epochs(split, one, [*both], legend=False)
        text = f"by epoch; dashed lines are switches to the next task.{whole}{bands}"
        alt = _alt(f"Loss{of}", "epochs", one, split, [*both])
        panels.append(_panel(runs, f"loss{end}", f"Loss{of}", text, table.name, chart, alt, tuple(both)))
        wanted = wanted[:1]
    for column, title, text in wanted:
        if known := [row for row in rows if row[column.key] is not None]:
            chart = charts.epochs(known, column, runs.labels, legend=False)
            alt = _alt(title, "epochs", column, known, runs.labels)
            panels.append(_panel(runs, f"{column.key}{end}", title, text, table.name, chart, alt))
    return panels


def _panel(
    runs: Runs, name: str, title: str, text: str, table: str, chart: Chart, alt: str, series: tuple[str, ...] = ()
) -> Panel:
    svg = inline_svg(chart, series or runs.labels, width=WIDTH, height=HEIGHT)
    return Panel(name, title, text, table, Markup(svg), alt, series)


def _shown(runs: Runs, rows: Iterable[Row]) -> list[Row]:
    """Return the rows of all methods but guessing, beside which the others could not be told apart."""
    return [row for row in rows if row["method"] != "random" or len(runs.labels) == 1]


def _alt(title: str, over: str, column: TableColumn, rows: Sequence[Row], methods: Sequence[str]) -> str:
    """Say what a chart shows: the first and last value of every line."""
    unit = f" {column.unit}" if column.unit else ""
    said = []
    for method in methods:
        values = [number(row[column.key], column.kind) for row in rows if row["method"] == method]
        if values:
            said.append(f"{method} from {values[0]} to {values[-1]}{unit}")
    more = f"; and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
    return (
        f"Line chart of {title} over {over}: {'; '.join(said[:_NAMED])}{more}. Its data can be shown as a table below."
    )
