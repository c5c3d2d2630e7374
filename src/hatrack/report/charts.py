"""Charts of tidy tables, with altair, for the HTML report, and as SVG, PDF or PNG for papers: lines, bars, heat maps.

All of them tell methods apart by colour and by dashes, from a palette for any colour vision.
"""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hatrack.report.canvas import (
    LIGHT,
    MOST_ROWS,
    PAPER,
    Chart,
    alt,
    chart_of,
    color,
    dark_cell,
    dash,
    dashes,
    digits,
    line_legend,
    span,
)
from hatrack.report.table import AFTER, Kind, Row, TableColumn, means
from hatrack.report.writers import number

__all__ = [
    "bars",
    "bars_side_by_side",
    "below_each_other",
    "curves",
    "epochs",
    "epochs_side_by_side",
    "heat_map",
    "layers",
    "lines_per_task",
    "pictures",
    "ranking",
    "scatter",
    "side_by_side",
    "usage",
]

LEARNED = alt.X("after:O", title="tasks learned", axis=alt.Axis(labelAngle=0))
IN_USE = alt.Y("value:Q", title="in use (%)", scale=alt.Scale(domain=[0, 100]))
BAR_STEP = alt.Step(22)
_SCALES = {Kind.PERCENT: (100.0, " (%)"), Kind.POINTS: (100.0, " (points)"), Kind.SECONDS: (1.0, " (seconds)")}
"""Factor and unit with which columns are drawn; 1 and none for others."""
ENDS = (("low", -1), ("high", 1))
"""Ends of a spread, one standard deviation below and above."""
_LEAST = {Kind.PERCENT: 5.0, Kind.POINTS: 1.0, Kind.RATIO: 0.1, Kind.SECONDS: 0.1}
"""Smallest width of a scale, as drawn; of scores it depends on them."""
_BOUNDS = {Kind.PERCENT: (0.0, 100.0), Kind.SECONDS: (0.0, math.inf)}
"""Bounds of what is drawn, beyond which no spread is shown."""
_MOST_DOTS = 160
"""Largest number of dots in a chart whose lines are still seen."""


def curves(
    rows: Sequence[Row],
    figure: TableColumn,
    methods: Sequence[str],
    *,
    over: TableColumn = AFTER,
    names: Sequence[str] = (),
    legend: bool = True,
) -> Chart:
    """Draw a line per method over tasks, with error bars of one standard deviation.

    The dots of methods stand a little beside each other, so that their bars can be told apart.

    Args:
        rows: rows of :func:`hatrack.report.tables.curves`, or of :func:`hatrack.report.over_time.by_task`.
        figure: the column that is drawn.
        methods: all of them, whose places give colours and dashes.
        over: the column that goes to the right: the number of tasks learned, or the task.
        names: names of the tasks, for tooltips.
        legend: False where the page has one for all charts.
    """
    values = _spreads(rows, figure, "method", over.key)
    tasks = sorted({row[over.key] for row in rows})
    step = min(0.08, 0.3 / len(methods)) if any(value["sd"] for value in values) else 0.0
    for value in values:
        value["place"] = value[over.key] + step * (methods.index(value["method"]) - (len(methods) - 1) / 2)
        name = f" {names[value[over.key] - 1]}" if names else ""
        value["tip"] = f"{value['method']}: {value['said']}, {over.title} {value[over.key]}{name}"
    axis = alt.Axis(values=_ticks(1, max(tasks)), format="d", grid=False)
    x = alt.X(
        "place:Q",
        title="tasks learned" if over == AFTER else over.title,
        scale=alt.Scale(domain=[min(tasks) - 0.4, max(tasks) + 0.4], nice=False),
        axis=axis,
    )
    title, scale = _axis_title(figure), _scale(figure, values, zero=figure.kind is Kind.SECONDS)
    base = chart_of(values).encode(x=x, color=color(methods, legend))
    y = alt.Y("value:Q", title=title, scale=scale)
    spread = base.mark_rule(strokeWidth=1.4, opacity=0.75).encode(
        y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q"
    )
    line = base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash(methods, legend))
    shown = (f"{over.key}:O", over.title), ("value:Q", _title(figure)), ("sd:Q", "standard deviation")
    tooltip = _tooltip("method:N", *shown)
    dots = base.mark_circle(size=46, opacity=1).encode(y=y, tooltip=tooltip, description="tip:N")
    named = (spread.encode(description="method:N"), line.encode(description="method:N"), dots)
    return alt.layer(*_zero(values), *named)


def epochs(rows: Sequence[Row], figure: TableColumn, methods: Sequence[str], *, legend: bool = True) -> Chart:
    """Draw a line per method and task over epochs, with a band of one standard deviation; tasks are marked.

    Args:
        rows: rows of :func:`hatrack.report.over_time.mean_learning`; they lie over tasks where they have no epoch.
        figure: the column that is drawn, a score or a loss, which is not below zero.
        methods: all of them, whose places give colours and dashes.
        legend: False where the page has one for all charts.
    """
    key = "progress" if any(row["epoch"] is None for row in rows) else "epoch"
    values = _spreads(rows, figure, "method", "task", key, floor=0.0 if figure.kind is Kind.RATIO else -math.inf)
    for value in values if len(values) <= _MOST_DOTS else ():
        where = f", epoch {value[key]}" if key == "epoch" else ""
        value["tip"] = f"{value['method']}: {value['said']}, task {value['task']}{where}"
    ends: dict[int, float] = {}
    for row in rows:
        ends[row["task"]] = max(ends.get(row["task"], 0.0), row[key])
    half = 0.5 if key == "epoch" else 0.0
    last = max(ends.values(), default=1.0)
    switches = [{"at": end + half} for end in sorted(ends.values())[:-1]]
    x = alt.X(
        f"{key}:Q",
        title="epoch" if key == "epoch" else "tasks learned",
        scale=alt.Scale(domain=[half, last + half], nice=False),
        axis=alt.Axis(values=_ticks(1 if half else 0, last), format="d", grid=False),
    )
    title, scale = _axis_title(figure), _scale(figure, values)
    base = chart_of(values).encode(x=x, color=color(methods, legend), detail="task:N")
    y = alt.Y("value:Q", title=title, scale=scale)
    line = base.mark_line(strokeWidth=1.8).encode(y=y, strokeDash=dash(methods, legend), description="method:N")
    layers = [*_switches(switches), line]
    if any(value["sd"] for value in values):
        band = base.mark_area(opacity=0.14 if len(methods) <= len(LIGHT) else 0.07)
        low = alt.Y("low:Q", title=title, scale=scale)
        layers.insert(0, band.encode(y=low, y2="high:Q", description="method:N"))
    if len(values) <= _MOST_DOTS:
        tooltip = _tooltip("method:N", "task:O", f"{key}:Q", ("value:Q", _title(figure)))
        layers.append(base.mark_circle(size=30, opacity=1).encode(y=y, tooltip=tooltip, description="tip:N"))
    return alt.layer(*layers)


def epochs_side_by_side(rows: Sequence[Row], figures: Sequence[TableColumn], methods: Sequence[str]) -> Chart:
    """Draw a panel of :func:`epochs` per figure, with one legend."""
    known = [(figure, [row for row in rows if row[figure.key] is not None]) for figure in figures]
    return alt.hconcat(*(epochs(of, figure, methods) for figure, of in known if of), spacing=24)


def _ticks(first: int, last: float) -> list[int]:
    """Return the places of at most about ten labels: whole numbers from 0 or 1 on."""
    step = next((step for step in (1, 2, 5, 10, 20, 50, 100) if last / step <= 10), math.ceil(last / 10))
    return [*range(step if first else 0, math.floor(last) + 1, step)]


def _zero(values: Sequence[Row]) -> list[Chart]:
    """Return a line at zero where values lie on both sides of it."""
    if any(value["low"] < 0 for value in values) and any(value["high"] > 0 for value in values):
        return [chart_of([{"zero": 0}]).mark_rule(aria=False).encode(y="zero:Q")]
    return []


def _switches(places: Sequence[dict[str, Any]]) -> list[Chart]:
    """Return a dashed line at every switch to the next task."""
    if not places:
        return []
    return [chart_of(places).mark_rule(strokeDash=[3, 3], opacity=0.6, aria=False).encode(x="at:Q")]


def _scale(figure: TableColumn, values: Sequence[Row], *, zero: bool = False) -> Any:
    """Return a scale for the values of a column and their spreads, never so narrow that its axis has a single tick."""
    ends = [value[end] for value in values for end, _ in ENDS] + [0.0] * zero
    largest = max(map(abs, ends), default=0.0)
    least = _LEAST.get(figure.kind, largest / 100 or 1.0)
    floor = 0.0 if min(ends, default=0.0) >= 0 else None
    return span(ends, least, floor, 100.0 if figure.kind is Kind.PERCENT else None)


def lines_per_task(rows: Sequence[Row], method: str, names: Sequence[str], figure: TableColumn) -> Chart:
    """Draw the accuracy, or another score, on every task while others follow, a line per task (Fig. 9).

    Args:
        rows: rows of :func:`hatrack.report.tables.accuracy`, averaged over seeds here.
        method: label of the runs that are drawn.
        names: names of the tasks.
        figure: the column that is drawn.
    """
    cells = means((row for row in rows if row["method"] == method), ("task", "after"), figure.key)
    scale, title = _SCALES.get(figure.kind, (1.0, ""))[0], _title(figure)
    values: list[dict[str, Any]] = [
        {"task": f"{task} {names[task - 1]}", "after": after, "value": digits(scale * mean)}
        for (task, after), mean in sorted(cells.items())
    ]
    tasks = list(dict.fromkeys(value["task"] for value in values))
    drawn = _scale(figure, [{end: value["value"] for end, _ in ENDS} for value in values])
    legend = line_legend("task", len(tasks))
    return (
        chart_of(values)
        .mark_line(point=alt.OverlayMarkDef(size=40), strokeWidth=2)
        .encode(
            x=LEARNED,
            y=alt.Y("value:Q", title=_axis_title(figure), scale=drawn),
            color=alt.Color("task:N", scale=alt.Scale(domain=tasks), legend=legend),
            strokeDash=alt.StrokeDash("task:N", scale=dashes(tasks), legend=legend),
            tooltip=_tooltip("task:N", ("after:O", "tasks learned"), ("value:Q", title)),
        )
    )


def usage(rows: Sequence[Row], tasks: int, methods: Sequence[str], *, legend: bool = True) -> Chart:
    """Draw the share of the network in use during training, with the switches from task to task marked (Fig. 5)."""
    values = [
        {"method": method, "progress": progress, "value": digits(100 * mean)}
        for (method, progress), mean in sorted(means(rows, ("method", "progress"), "used").items())
    ]
    switches = _switches([{"at": at} for at in range(1, tasks)])
    lines = (
        chart_of(values)
        .mark_line(strokeWidth=2.2)
        .encode(
            x=alt.X(
                "progress:Q",
                title="tasks learned",
                scale=alt.Scale(domain=[0, tasks]),
                axis=alt.Axis(values=_ticks(0, tasks), format="d", grid=False),
            ),
            y=IN_USE,
            color=color(methods, legend),
            strokeDash=dash(methods, legend),
            tooltip=_tooltip("method:N", ("progress:Q", "tasks learned"), ("value:Q", "in use (%)")),
            description="method:N",
        )
    )
    return alt.layer(*switches, lines)


def layers(rows: Sequence[Row], method: str) -> Chart:
    """Draw the share of every layer in use after every task, for one method (Fig. 8)."""
    shares = means((row for row in rows if row["method"] == method), ("layer", "after"), "used")
    order = list(dict.fromkeys(layer for layer, _ in shares))
    values = [{"layer": layer, "after": after, "value": digits(100 * mean)} for (layer, after), mean in shares.items()]
    # More layers than there are colours get those of one scale, from the first to the last.
    colours = alt.Scale(domain=order, scheme="viridis" if len(order) > len(LIGHT) else alt.Undefined)
    legend = alt.Legend(columns=1 + (len(order) - 1) // MOST_ROWS)
    return (
        chart_of(values)
        .mark_bar()
        .encode(
            x=LEARNED,
            xOffset=alt.XOffset("layer:N", sort=order),
            y=IN_USE,
            color=alt.Color("layer:N", sort=order, title="layer", scale=colours, legend=legend),
            tooltip=_tooltip("layer:N", ("after:O", "tasks learned"), ("value:Q", "in use (%)")),
        )
    )


def bars(rows: Sequence[Row], figure: TableColumn) -> Chart:
    """Draw a bar per method with its standard deviation, in the order of the rows."""
    values, title = _spreads(rows, figure, "method"), _title(figure)
    x = alt.X("value:Q", title=_axis_title(figure), scale=_scale(figure, values, zero=True))
    y = alt.Y("method:N", sort=[value["method"] for value in values], title=None)
    body = (
        chart_of(values)
        .mark_bar(color=LIGHT[0], height={"band": 0.7})
        .encode(x=x, y=y, tooltip=_tooltip("method:N", ("value:Q", title)))
    )
    spread = chart_of(values).mark_rule(strokeWidth=1.5).encode(x="low:Q", x2="high:Q", y=y)
    return alt.layer(body, spread).properties(height=BAR_STEP)


def bars_side_by_side(rows: Sequence[Row], figures: Sequence[TableColumn]) -> Chart:
    """Draw a panel of bars per figure, with the methods in the order of the rows in all of them."""
    return alt.hconcat(*(bars(rows, figure).properties(width=190) for figure in figures), spacing=24)


def side_by_side(panels: Sequence[Chart]) -> Chart:
    """Put charts beside each other, each with colours and a legend of its own; a single one stays as it is."""
    if len(panels) == 1:
        return panels[0]
    return alt.hconcat(*panels, spacing=24).resolve_scale(color="independent", strokeDash="independent")


def below_each_other(panels: Sequence[Chart]) -> Chart:
    """Put charts below each other, with one legend; a single one stays as it is."""
    return panels[0] if len(panels) == 1 else alt.vconcat(*panels, spacing=24)


def ranking(rows: Sequence[Row], figure: TableColumn, group: str) -> Chart:
    """Draw a dot per row with its standard deviation, the rows below each other in their order.

    Args:
        rows: with a method and the hidden units of its network.
        figure: the column that goes to the right.
        group: key of the name beside the method: who measured it.
    """
    kinds = ("these runs", "others")
    named = [
        {
            **row,
            "name": " · ".join(filter(None, (row["method"], row.get("network"), row[group], row.get("differs")))),
            "kind": kinds[row[group] != kinds[0]],
        }
        for row in rows
    ]
    values = _spreads(named, figure, "name", "kind")
    base = chart_of(values).encode(
        y=alt.Y("name:N", sort=[value["name"] for value in values], title=None, axis=alt.Axis(labelLimit=560)),
        color=alt.Color("kind:N", title=None, scale=alt.Scale(domain=kinds)),
    )
    scale = _scale(figure, values)
    x = alt.X("value:Q", title=_title(figure), scale=scale)
    spread_of = base.mark_rule(strokeWidth=1.5).encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
    shape = alt.Shape("kind:N", title=None, scale=alt.Scale(domain=kinds))
    tooltip = _tooltip("name:N", ("value:Q", figure.title))
    dots = base.mark_point(size=90, filled=True, opacity=1).encode(x=x, shape=shape, tooltip=tooltip)
    return alt.layer(spread_of, dots).properties(height=BAR_STEP)


def scatter(
    rows: Sequence[Row],
    x: str,
    y: TableColumn,
    title: str,
    group: str,
    *,
    order: str,
    log_x: bool = False,
    points: bool = True,
) -> Chart:
    """Draw points joined by lines, a line per group: for sensitivity (Fig. 4) and compression (Fig. 7).

    Args:
        rows: with the keys below.
        x: key of what goes to the right; where some are texts, all stand beside each other in the order of the rows.
        y: the column that goes up; shares are drawn in percent.
        title: title of the axis to the right.
        group: key of what tells lines apart.
        order: key by which the points of a line follow each other.
        log_x: whether x grows by factors.
        points: whether points are marked.
    """
    factor, titles = _SCALES.get(y.kind, (1.0, ""))[0], (title, _title(y))
    texts = any(isinstance(row[x], str) for row in rows)
    values = [
        {
            "x": str(row[x]) if texts else row[x],
            "y": digits(factor * row[y.key]),
            "group": str(row[group]),
            "order": row[order],
        }
        for row in rows
    ]
    spreads = [
        {
            "x": str(row[x]) if texts else row[x],
            "group": str(row[group]),
            **{end: digits(factor * (row[y.key] + sign * sd)) for end, sign in ENDS},
        }
        for row in rows
        if (sd := row.get(f"{y.key}_sd")) is not None
    ]
    groups = list(dict.fromkeys(value["group"] for value in values))
    legend = line_legend(group, len(groups))
    drawn = _scale(y, [*spreads, *({end: value["y"] for end, _ in ENDS} for value in values)])
    across = _across([value["x"] for value in values], title, log_x)
    mark = chart_of(values).mark_line(point=alt.OverlayMarkDef(size=40) if points else False, strokeWidth=2)
    lines = mark.encode(
        x=across,
        y=alt.Y("y:Q", title=_axis_title(y), scale=drawn),
        order="order:Q",
        color=alt.Color("group:N", scale=alt.Scale(domain=groups), legend=legend),
        strokeDash=alt.StrokeDash("group:N", scale=dashes(groups), legend=legend),
        tooltip=_tooltip("group:N", ("x:N" if texts else "x:Q", titles[0]), ("y:Q", titles[1])),
    )
    if not spreads:
        return lines
    bars_of_spread = chart_of(spreads).mark_rule(strokeWidth=1.2, opacity=0.7)
    return alt.layer(bars_of_spread.encode(x=across, y="low:Q", y2="high:Q", color="group:N"), lines)


def _across(values: Sequence[Any], title: str, by_factors: bool) -> Any:
    """Return the axis to the right for numbers, or for texts in their order."""
    if any(isinstance(value, str) for value in values):
        return alt.X("x:O", title=title, sort=list(dict.fromkeys(values)), axis=alt.Axis(labelAngle=0))
    if by_factors:
        axis = alt.Axis(values=sorted(set(values)), format="~g")
        return alt.X("x:Q", title=title, scale=alt.Scale(type="log"), axis=axis)
    return alt.X("x:Q", title=title, scale=alt.Scale(zero=False))


def _spreads(rows: Sequence[Row], figure: TableColumn, *keys: str, floor: float = -math.inf) -> list[dict[str, Any]]:
    """Return the values of a column that are known, as drawn, with their spread and the values of other keys.

    No spread is shown below ``floor``, nor beyond the bounds of the column's kind.
    """
    scale, _ = _SCALES.get(figure.kind, (1.0, ""))
    least, most = _BOUNDS.get(figure.kind, (floor, math.inf))
    values = []
    for row in rows:
        value, sd = row.get(figure.key), row.get(f"{figure.key}_sd")
        if value is not None:
            ends = {end: digits(min(most, max(least, scale * (value + sign * (sd or 0.0))))) for end, sign in ENDS}
            said = number(value, figure.kind) + (f" ± {number(sd, figure.kind)}" if sd else "")
            said += f" {figure.unit}" if figure.unit else ""
            shown = {"value": digits(scale * value), **ends, "sd": None if sd is None else digits(scale * sd)}
            values.append({**{key: row[key] for key in keys}, **shown, "said": said})
    return values


def _title(figure: TableColumn) -> str:
    """Return the title of a column with the unit in which it is drawn."""
    return figure.title + _SCALES.get(figure.kind, (1.0, ""))[1]


def _axis_title(figure: TableColumn) -> list[str]:
    """Return the lines of the title of an axis, each short enough for a small chart."""
    return textwrap.wrap(_title(figure), 30)


def _tooltip(*fields: str | tuple[str, str]) -> list[Any]:
    """Return the tooltip of some fields, those that are pairs with titles."""
    return [alt.Tooltip(field) if isinstance(field, str) else alt.Tooltip(field[0], title=field[1]) for field in fields]


def heat_map(rows: Sequence[Row], x: TableColumn, y: TableColumn, value: TableColumn, *, bottom: float = 50.0) -> Chart:
    """Draw a matrix, shares in percent, with its numbers written in (Figs. 6 and 1 of most papers).

    Where values or ``bottom`` are below zero, colours diverge from zero.

    Args:
        rows: the cells.
        x: column of the place to the right.
        y: column of the place down.
        value: the column that is drawn.
        bottom: value of the lowest colour, in percent, unless a cell is lower; of shares alone.
    """
    share = value.kind in _SCALES
    values = [
        {"x": row[x.key], "y": row[y.key], "value": round(100 * row[value.key], 1) if share else digits(row[value.key])}
        for row in rows
        if row.get(value.key) is not None
    ]
    size = max(1, len({row["x"] for row in values}))
    base = chart_of(values).encode(
        x=alt.X("x:O", title=x.title, axis=alt.Axis(labelAngle=0)), y=alt.Y("y:O", title=y.title)
    )
    low = min((row["value"] for row in values), default=0.0)
    whole = value.kind is Kind.PERCENT
    high = 100.0 if whole else max((row["value"] for row in values), default=1.0)
    floor, title = min(low, bottom) if whole else low, _title(value)
    if not share:  # hardly any difference is no reason for all the colours
        floor = min(floor, high - (abs(high) / 10 or 1.0))
    signed = floor < 0
    if signed:  # zero in the middle, and as much colour for what is below as for what is above
        high = max(-floor, high)
        floor = -high
    shades = alt.Scale(domain=[floor, high], domainMid=0 if signed else alt.Undefined, interpolate="rgb")
    cells = base.mark_rect().encode(
        color=alt.Color("value:Q", title=title, scale=shades),
        tooltip=_tooltip(("y:O", y.title), ("x:O", x.title), ("value:Q", title)),
    )
    middle, below = (
        next((sign * s / 100 for s in range(101) if dark_cell(sign * s / 100, "light")), 2.0 * sign) for sign in (1, -1)
    )
    place = f"(datum.value - {0 if signed else floor}) / {high - (0 if signed else floor) or 1}"
    numbers = base.mark_text(fontSize=11).encode(
        text=alt.Text("value:Q", format=".1f" if share else ".3f"),
        color=alt.condition(f"{place} > {middle} || {place} < {below}", alt.value("white"), alt.value("black")),
    )
    return alt.layer(cells, numbers).properties(width=46 * size, height=34 * len({row["y"] for row in values}))


def pictures(names: Sequence[str], values: Sequence[Tensor], *, columns: int = 6, side: int = 112) -> Chart:
    """Draw small grey pictures side by side, each in a frame: white is 1, black is 0.

    Args:
        names: texts above the pictures.
        values: the pictures, ``(H, W)`` each, in [0, 1].
        columns: number of pictures beside each other.
        side: width and height on the page.
    """
    rows = [
        {"name": name, "number": number, "url": _png(value)}
        for number, (name, value) in enumerate(zip(names, values, strict=True))
    ]
    image = (
        chart_of(rows)
        .mark_image(width=side - 1, height=side - 1, x=1, y=1, align="left", baseline="top")  # inside of its frame
        .encode(url="url:N")
    )
    header = alt.Header(title=None, labelFontSize=12, labelLimit=side)
    facet = alt.Facet("name:N", sort=list(names), header=header)
    framed = image.properties(width=side, height=side, view=alt.ViewBackground(stroke=PAPER.muted))
    return framed.facet(facet, columns=columns, spacing=12)


def _png(value: Tensor) -> str:
    """Return a picture as a data address, every value a square of several pixels, so that no viewer blurs it."""
    grey = (255 * value.clamp(0, 1)).round().to(torch.uint8).repeat_interleave(4, 0).repeat_interleave(4, 1)
    content = io.BytesIO()
    Image.fromarray(grey.cpu().numpy()).save(content, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
