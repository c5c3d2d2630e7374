"""Charts of tidy tables, with altair: for the HTML report, and as SVG, PDF or PNG for papers.

All of them tell methods apart by colour and by dashes, from a palette for any colour vision.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hatrack.errors import InputError
from hatrack.report.style import DASHES, LIGHT, dark_cell, style
from hatrack.report.tables import Column, Kind, Row

try:
    import altair as alt
except ImportError as error:  # pragma: no cover - the extra is installed wherever tests run
    raise InputError("charts need altair and vl-convert: pip install 'hatrack[report]'") from error

__all__ = [
    "VEGA_LITE",
    "bars",
    "curves",
    "heat_map",
    "layers",
    "lines_per_task",
    "pictures",
    "save",
    "scatter",
    "usage",
]

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
"""The version of Vega-Lite that the charts are made for."""

Chart = Any
"""An altair chart, layered or not."""


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
                    "value": _digits(scale * value),
                    "low": _digits(scale * (value - (spread or 0.0))),
                    "high": _digits(scale * (value + (spread or 0.0))),
                    "sd": None if spread is None else _digits(scale * spread),
                }
            )
    x = alt.X("after:O", title="tasks learned", axis=alt.Axis(labelAngle=0))
    base = _chart(values).encode(x=x, color=_color(methods, legend))
    y_title = f"{figure.title}{title}"
    band = base.mark_area(opacity=0.14).encode(
        y=alt.Y("low:Q", title=y_title, scale=alt.Scale(zero=False)), y2="high:Q"
    )
    line = base.mark_line(strokeWidth=2.2).encode(y=alt.Y("value:Q", title=y_title), strokeDash=_dash(methods, legend))
    dots = base.mark_circle(size=46, opacity=1).encode(
        y="value:Q",
        tooltip=[
            alt.Tooltip("method:N"),
            alt.Tooltip("after:O", title="tasks learned"),
            alt.Tooltip("value:Q", title=figure.title),
            alt.Tooltip("sd:Q", title="standard deviation"),
        ],
    )
    return _chosen(alt.layer(band, line, dots), methods)


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
        {"task": f"{task} {names[task - 1]}", "after": after, "value": _digits(100 * sum(of) / len(of))}
        for (task, after), of in sorted(cells.items())
    ]
    tasks = list(dict.fromkeys(value["task"] for value in values))
    return (
        _chart(values)
        .mark_line(point=alt.OverlayMarkDef(size=40), strokeWidth=2)
        .encode(
            x=alt.X("after:O", title="tasks learned", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("value:Q", title="accuracy (%)", scale=alt.Scale(zero=False)),
            color=alt.Color("task:N", scale=alt.Scale(domain=tasks), title="task"),
            strokeDash=alt.StrokeDash("task:N", title="task", scale=_dashes(tasks)),
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
        {"method": method, "progress": progress, "value": _digits(100 * sum(of) / len(of))}
        for (method, progress), of in sorted(sums.items())
    ]
    switches = _chart([{"at": at} for at in range(1, tasks)]).mark_rule(strokeDash=[3, 3], opacity=0.6).encode(x="at:Q")
    lines = (
        _chart(values)
        .mark_line(strokeWidth=2.2)
        .encode(
            x=alt.X("progress:Q", title="tasks learned", axis=alt.Axis(tickMinStep=1, grid=False)),
            y=alt.Y("value:Q", title="in use (%)", scale=alt.Scale(domain=[0, 100])),
            color=_color(methods, legend),
            strokeDash=_dash(methods, legend),
            tooltip=[
                "method:N",
                alt.Tooltip("progress:Q", title="tasks learned"),
                alt.Tooltip("value:Q", title="in use (%)"),
            ],
        )
    )
    return _chosen(alt.layer(switches, lines), methods)


def layers(rows: Sequence[Row], method: str) -> Chart:
    """Share of every layer in use after every task, for one method (Fig. 8)."""
    sums: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row["method"] == method:
            sums.setdefault((row["layer"], row["after"]), []).append(row["used"])
    order = list(dict.fromkeys(layer for layer, _ in sums))
    values = [
        {"layer": layer, "after": after, "value": _digits(100 * sum(of) / len(of))}
        for (layer, after), of in sums.items()
    ]
    return (
        _chart(values)
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


def heat_map(
    rows: Sequence[Row], x: Column, y: Column, value: Column, *, bottom: float = 50.0, top: float = 100.0
) -> Chart:
    """A matrix, in percent, with its numbers written in (Figs. 6 and 1 of most papers)."""
    values = [
        {"x": row[x.key], "y": row[y.key], "value": round(100 * row[value.key], 1)}
        for row in rows
        if row.get(value.key) is not None
    ]
    size = max(1, len({row["x"] for row in values}))
    base = _chart(values).encode(
        x=alt.X("x:O", title=x.title, axis=alt.Axis(labelAngle=0)), y=alt.Y("y:O", title=y.title)
    )
    low = min((row["value"] for row in values), default=0.0)
    cells = base.mark_rect().encode(
        color=alt.Color("value:Q", title=f"{value.title} (%)", scale=alt.Scale(domain=[min(low, bottom), top])),
        tooltip=[
            alt.Tooltip("y:O", title=y.title),
            alt.Tooltip("x:O", title=x.title),
            alt.Tooltip("value:Q", title=f"{value.title} (%)"),
        ],
    )
    floor = min(low, bottom)
    middle = next((floor + share / 100 * (top - floor) for share in range(101) if dark_cell(share / 100, "light")), top)
    numbers = base.mark_text(fontSize=11).encode(
        text=alt.Text("value:Q", format=".1f"),
        color=alt.condition(f"datum.value > {middle}", alt.value("white"), alt.value("black")),
    )
    return alt.layer(cells, numbers).properties(width=46 * size, height=34 * len({row["y"] for row in values}))


def bars(rows: Sequence[Row], figure: Column, *, unit: str = "") -> Chart:
    """A bar per method with its standard deviation, in the order of the rows."""
    scale = 100.0 if figure.kind in (Kind.PERCENT, Kind.POINTS) else 1.0
    values = [
        {
            "method": row["method"],
            "value": _digits(scale * row[figure.key]),
            "low": _digits(scale * (row[figure.key] - (row.get(f"{figure.key}_sd") or 0.0))),
            "high": _digits(scale * (row[figure.key] + (row.get(f"{figure.key}_sd") or 0.0))),
        }
        for row in rows
        if row.get(figure.key) is not None
    ]
    y = alt.Y("method:N", sort=[value["method"] for value in values], title=None)
    title = f"{figure.title}{f' ({unit})' if unit else ''}"
    tooltip = ["method:N", alt.Tooltip("value:Q", title=title)]
    body = (
        _chart(values)
        .mark_bar(color=LIGHT[0], height={"band": 0.7})
        .encode(x=alt.X("value:Q", title=title), y=y, tooltip=tooltip)
    )
    spread = _chart(values).mark_rule(strokeWidth=1.5).encode(x="low:Q", x2="high:Q", y=y)
    return alt.layer(body, spread).properties(height=alt.Step(22))


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
    values = [{"x": row[x], "y": _digits(100 * row[y]), "group": str(row[group]), "order": row[order]} for row in rows]
    spreads = [
        {
            "x": row[x],
            "group": str(row[group]),
            "low": _digits(100 * (row[y] - sd)),
            "high": _digits(100 * (row[y] + sd)),
        }
        for row in rows
        if (sd := row.get(f"{y}_sd")) is not None
    ]
    groups = list(dict.fromkeys(value["group"] for value in values))
    scale = alt.Scale(type="log") if log_x else alt.Scale(zero=False)
    axis = alt.Axis(values=sorted({value["x"] for value in values}), format="~g") if log_x else alt.Axis()
    mark = _chart(values).mark_line(point=alt.OverlayMarkDef(size=40) if points else False, strokeWidth=2)
    lines = mark.encode(
        x=alt.X("x:Q", title=titles[0], scale=scale, axis=axis),
        y=alt.Y("y:Q", title=titles[1], scale=alt.Scale(zero=False)),
        order="order:Q",
        color=alt.Color("group:N", scale=alt.Scale(domain=groups), title=group),
        strokeDash=alt.StrokeDash("group:N", title=group, scale=_dashes(groups)),
        tooltip=["group:N", alt.Tooltip("x:Q", title=titles[0]), alt.Tooltip("y:Q", title=titles[1])],
    )
    if not spreads:
        return lines
    bars_of_spread = _chart(spreads).mark_rule(strokeWidth=1.2, opacity=0.7)
    return alt.layer(bars_of_spread.encode(x=alt.X("x:Q", scale=scale), y="low:Q", y2="high:Q", color="group:N"), lines)


def pictures(names: Sequence[str], values: Sequence[Tensor], *, columns: int = 6, side: int = 112) -> Chart:
    """Small grey pictures side by side: white is 1, black is 0.

    Args:
        names: above the pictures.
        values: in [0, 1], ``(H, W)`` each.
        columns: how many pictures beside each other.
        side: width and height on the page.
    """
    rows = [
        {"name": name, "number": number, "url": _png(value)}
        for number, (name, value) in enumerate(zip(names, values, strict=True))
    ]
    image = _chart(rows).mark_image(width=side, height=side, x=0, y=0, align="left", baseline="top").encode(url="url:N")
    header = alt.Header(title=None, labelFontSize=12, labelLimit=side)
    facet = alt.Facet("name:N", sort=list(names), header=header)
    return image.properties(width=side, height=side).facet(facet, columns=columns, spacing=12)


def save(chart: Chart, path: Path, title: str = "") -> None:
    """Write a chart as SVG, PDF or PNG, by the file's ending.

    Raises:
        InputError: the ending is another one.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("svg", "pdf", "png"):
        raise InputError(f"{path}: figures are written as .svg, .pdf or .png")
    chart = chart.properties(title=title) if title else chart
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.configure(**style("light")).save(str(path), format=kind, **({"scale_factor": 2} if kind == "png" else {}))


def _chart(values: Sequence[dict[str, Any]]) -> Any:
    return alt.Chart(alt.InlineData(values=list(values)))


def _color(methods: Sequence[str], legend: bool) -> Any:
    shown = alt.Legend(title="method", symbolType="stroke", symbolOpacity=1.0) if legend else None
    return alt.Color("method:N", scale=alt.Scale(domain=list(methods)), legend=shown)


def _dash(methods: Sequence[str], legend: bool) -> Any:
    shown = alt.Legend(title="method", symbolType="stroke", symbolOpacity=1.0) if legend else None
    return alt.StrokeDash("method:N", scale=_dashes(methods), legend=shown)


def _dashes(names: Sequence[str]) -> Any:
    ranks = [DASHES[index // len(LIGHT) % len(DASHES)] for index in range(len(names))]
    return alt.Scale(domain=list(names), range=[list(dash) for dash in ranks])


def _chosen(chart: Any, methods: Sequence[str]) -> Any:
    """Let a page choose the methods, through the parameter ``chosen``."""
    chosen = alt.param(name="chosen", value=list(methods))
    return chart.add_params(chosen).transform_filter("!isValid(datum.method) || indexof(chosen, datum.method) >= 0")


def _png(value: Tensor) -> str:
    """A picture as a data address, every value a square of several pixels, so that no viewer blurs it."""
    grey = (255 * value.clamp(0, 1)).round().to(torch.uint8).repeat_interleave(4, 0).repeat_interleave(4, 1)
    content = io.BytesIO()
    Image.fromarray(grey.cpu().numpy()).save(content, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _digits(value: float) -> float:
    return float(f"{value:.5g}")
