"""Lines and bars of tidy tables, with altair: for the HTML report, and as SVG, PDF or PNG for papers.

All of them tell methods apart by colour and by dashes, from a palette for any colour vision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hatrack.report.canvas import Chart, alt, chart_of, chosen, color, dash, dashes, digits
from hatrack.report.style import LIGHT
from hatrack.report.table import Column, Kind, Row

__all__ = ["bars", "bars_side_by_side", "curves", "layers", "lines_per_task", "ranking", "scatter", "usage"]


def curves(rows: Sequence[Row], figure: Column, methods: Sequence[str], *, legend: bool = True) -> Chart:
    """A line per method over the number of tasks learned, with a band of one standard deviation.

    Args:
        rows: of :func:`hatrack.report.tables.curves`.
        figure: what to draw.
        methods: all of them, whose places give colours and dashes.
        legend: False where the page has one for all charts.
    """
    scale, title = (
        (1.0, "") if figure.kind is Kind.RATIO else (100.0, " (%)" if figure.kind is Kind.PERCENT else " (points)")
    )
    values = []
    for row in rows:
        value, spread = row.get(figure.key), row.get(f"{figure.key}_sd")
        if value is not None:
            values.append(
                {
                    "method": row["method"],
                    "after": row["after"],
                    "value": digits(scale * value),
                    "low": digits(scale * (value - (spread or 0.0))),
                    "high": digits(scale * (value + (spread or 0.0))),
                    "sd": None if spread is None else digits(scale * spread),
                }
            )
    x = alt.X("after:O", title="tasks learned", axis=alt.Axis(labelAngle=0))
    base = chart_of(values).encode(x=x, color=color(methods, legend))
    y_title = f"{figure.title}{title}"
    band = base.mark_area(opacity=0.14 if len(methods) <= len(LIGHT) else 0.07).encode(
        y=alt.Y("low:Q", title=y_title, scale=alt.Scale(zero=False)), y2="high:Q"
    )
    line = base.mark_line(strokeWidth=2.2).encode(y=alt.Y("value:Q", title=y_title), strokeDash=dash(methods, legend))
    dots = base.mark_circle(size=46, opacity=1).encode(
        y="value:Q",
        tooltip=[
            alt.Tooltip("method:N"),
            alt.Tooltip("after:O", title="tasks learned"),
            alt.Tooltip("value:Q", title=figure.title),
            alt.Tooltip("sd:Q", title="standard deviation"),
        ],
    )
    return chosen(alt.layer(band, line, dots), methods)


def lines_per_task(rows: Sequence[Row], method: str, names: Sequence[str]) -> Chart:
    """Accuracy on every task while others follow, a line per task (Fig. 9).

    Args:
        rows: of :func:`hatrack.report.tables.accuracy`, averaged over seeds here.
        method: whose.
        names: of the tasks.
    """
    cells: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        if row["method"] == method:
            cells.setdefault((row["task"], row["after"]), []).append(row["accuracy"])
    values: list[dict[str, Any]] = [
        {"task": f"{task} {names[task - 1]}", "after": after, "value": digits(100 * sum(of) / len(of))}
        for (task, after), of in sorted(cells.items())
    ]
    tasks = list(dict.fromkeys(value["task"] for value in values))
    return (
        chart_of(values)
        .mark_line(point=alt.OverlayMarkDef(size=40), strokeWidth=2)
        .encode(
            x=alt.X("after:O", title="tasks learned", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("value:Q", title="accuracy (%)", scale=alt.Scale(zero=False)),
            color=alt.Color("task:N", scale=alt.Scale(domain=tasks), title="task"),
            strokeDash=alt.StrokeDash("task:N", title="task", scale=dashes(tasks)),
            tooltip=[
                "task:N",
                alt.Tooltip("after:O", title="tasks learned"),
                alt.Tooltip("value:Q", title="accuracy (%)"),
            ],
        )
    )


def usage(rows: Sequence[Row], tasks: int, methods: Sequence[str], *, legend: bool = True) -> Chart:
    """Share of the network in use during training, with the switches from task to task marked (Fig. 5)."""
    sums: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        sums.setdefault((row["method"], row["progress"]), []).append(row["used"])
    values = [
        {"method": method, "progress": progress, "value": digits(100 * sum(of) / len(of))}
        for (method, progress), of in sorted(sums.items())
    ]
    switches = (
        chart_of([{"at": at} for at in range(1, tasks)]).mark_rule(strokeDash=[3, 3], opacity=0.6).encode(x="at:Q")
    )
    lines = (
        chart_of(values)
        .mark_line(strokeWidth=2.2)
        .encode(
            x=alt.X("progress:Q", title="tasks learned", axis=alt.Axis(tickMinStep=1, grid=False)),
            y=alt.Y("value:Q", title="in use (%)", scale=alt.Scale(domain=[0, 100])),
            color=color(methods, legend),
            strokeDash=dash(methods, legend),
            tooltip=[
                "method:N",
                alt.Tooltip("progress:Q", title="tasks learned"),
                alt.Tooltip("value:Q", title="in use (%)"),
            ],
        )
    )
    return chosen(alt.layer(switches, lines), methods)


def layers(rows: Sequence[Row], method: str) -> Chart:
    """Share of every layer in use after every task, for one method (Fig. 8)."""
    sums: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row["method"] == method:
            sums.setdefault((row["layer"], row["after"]), []).append(row["used"])
    order = list(dict.fromkeys(layer for layer, _ in sums))
    values = [
        {"layer": layer, "after": after, "value": digits(100 * sum(of) / len(of))}
        for (layer, after), of in sums.items()
    ]
    return (
        chart_of(values)
        .mark_bar()
        .encode(
            x=alt.X("after:O", title="tasks learned", axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("layer:N", sort=order),
            y=alt.Y("value:Q", title="in use (%)", scale=alt.Scale(domain=[0, 100])),
            color=alt.Color("layer:N", sort=order, title="layer"),
            tooltip=[
                "layer:N",
                alt.Tooltip("after:O", title="tasks learned"),
                alt.Tooltip("value:Q", title="in use (%)"),
            ],
        )
    )


def bars(rows: Sequence[Row], figure: Column, *, unit: str = "") -> Chart:
    """A bar per method with its standard deviation, in the order of the rows."""
    scale = 100.0 if figure.kind in (Kind.PERCENT, Kind.POINTS) else 1.0
    values = [
        {
            "method": row["method"],
            "value": digits(scale * row[figure.key]),
            "low": digits(scale * (row[figure.key] - (row.get(f"{figure.key}_sd") or 0.0))),
            "high": digits(scale * (row[figure.key] + (row.get(f"{figure.key}_sd") or 0.0))),
        }
        for row in rows
        if row.get(figure.key) is not None
    ]
    y = alt.Y("method:N", sort=[value["method"] for value in values], title=None)
    title = f"{figure.title}{f' ({unit})' if unit else ''}"
    tooltip = ["method:N", alt.Tooltip("value:Q", title=title)]
    body = (
        chart_of(values)
        .mark_bar(color=LIGHT[0], height={"band": 0.7})
        .encode(x=alt.X("value:Q", title=title), y=y, tooltip=tooltip)
    )
    spread = chart_of(values).mark_rule(strokeWidth=1.5).encode(x="low:Q", x2="high:Q", y=y)
    return alt.layer(body, spread).properties(height=alt.Step(22))


def bars_side_by_side(rows: Sequence[Row], figures: Sequence[Column]) -> Chart:
    """A panel of bars per figure, with the methods in the order of the rows in all of them."""
    units = {Kind.PERCENT: "%", Kind.POINTS: "points"}
    panels = [bars(rows, figure, unit=units.get(figure.kind, "")).properties(width=190) for figure in figures]
    return alt.hconcat(*panels, spacing=24)


def ranking(rows: Sequence[Row], figure: Column, group: str) -> Chart:
    """A dot per row with its standard deviation, the rows below each other in their order.

    Args:
        rows: with a method and the hidden units of its network.
        figure: what goes to the right.
        group: key of what is named beside the method: who measured it.
    """
    scale, unit = (1.0, "") if figure.kind is Kind.RATIO else (100.0, " (%)")
    kinds = ("these runs", "others")
    values: list[dict[str, Any]] = []
    for row in rows:
        value, spread = row.get(figure.key), row.get(f"{figure.key}_sd") or 0.0
        if value is not None:
            parts = (row["method"], row.get("network"), row[group], row.get("differs"))
            name = " · ".join(part for part in parts if part)
            ends = {"low": digits(scale * (value - spread)), "high": digits(scale * (value + spread))}
            kind = kinds[row[group] != kinds[0]]
            values.append({"name": name, "value": digits(scale * value), "kind": kind, **ends})
    base = chart_of(values).encode(
        y=alt.Y("name:N", sort=[value["name"] for value in values], title=None, axis=alt.Axis(labelLimit=560)),
        color=alt.Color("kind:N", title=None, scale=alt.Scale(domain=kinds)),
    )
    x = alt.X("value:Q", title=f"{figure.title}{unit}", scale=alt.Scale(zero=False))
    spread_of = base.mark_rule(strokeWidth=1.5).encode(x=alt.X("low:Q", scale=alt.Scale(zero=False)), x2="high:Q")
    shape = alt.Shape("kind:N", title=None, scale=alt.Scale(domain=kinds))
    tooltip = ["name:N", alt.Tooltip("value:Q", title=figure.title)]
    dots = base.mark_point(size=90, filled=True, opacity=1).encode(x=x, shape=shape, tooltip=tooltip)
    return alt.layer(spread_of, dots).properties(height=alt.Step(22))


def scatter(
    rows: Sequence[Row],
    x: str,
    y: str,
    titles: tuple[str, str],
    group: str,
    *,
    order: str,
    log_x: bool = False,
    points: bool = True,
) -> Chart:
    """Points joined by lines, a line per group: for sensitivity (Fig. 4) and compression (Fig. 7).

    Args:
        rows: with the keys below; y is a share, and drawn in percent.
        x: key of what goes to the right.
        y: key of what goes up.
        titles: of the two axes.
        group: key of what tells lines apart.
        order: key by which the points of a line follow each other.
        log_x: whether x grows by factors.
        points: whether points are marked.
    """
    values = [{"x": row[x], "y": digits(100 * row[y]), "group": str(row[group]), "order": row[order]} for row in rows]
    spreads = [
        {
            "x": row[x],
            "group": str(row[group]),
            "low": digits(100 * (row[y] - sd)),
            "high": digits(100 * (row[y] + sd)),
        }
        for row in rows
        if (sd := row.get(f"{y}_sd")) is not None
    ]
    groups = list(dict.fromkeys(value["group"] for value in values))
    scale = alt.Scale(type="log") if log_x else alt.Scale(zero=False)
    axis = alt.Axis(values=sorted({value["x"] for value in values}), format="~g") if log_x else alt.Axis()
    mark = chart_of(values).mark_line(point=alt.OverlayMarkDef(size=40) if points else False, strokeWidth=2)
    lines = mark.encode(
        x=alt.X("x:Q", title=titles[0], scale=scale, axis=axis),
        y=alt.Y("y:Q", title=titles[1], scale=alt.Scale(zero=False)),
        order="order:Q",
        color=alt.Color("group:N", scale=alt.Scale(domain=groups), title=group),
        strokeDash=alt.StrokeDash("group:N", title=group, scale=dashes(groups)),
        tooltip=["group:N", alt.Tooltip("x:Q", title=titles[0]), alt.Tooltip("y:Q", title=titles[1])],
    )
    if not spreads:
        return lines
    bars_of_spread = chart_of(spreads).mark_rule(strokeWidth=1.2, opacity=0.7)
    return alt.layer(bars_of_spread.encode(x=alt.X("x:Q", scale=scale), y="low:Q", y2="high:Q", color="group:N"), lines)
