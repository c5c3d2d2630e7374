"""Matrices with their numbers, and small pictures side by side, with altair."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from hatrack.report.canvas import Chart, alt, chart_of
from hatrack.report.style import dark_cell
from hatrack.report.table import Row, TableColumn

__all__ = ["heat_map", "pictures"]


def heat_map(rows: Sequence[Row], x: TableColumn, y: TableColumn, value: TableColumn, *, bottom: float = 50.0) -> Chart:
    """Draw a matrix, in percent, with its numbers written in (Figs. 6 and 1 of most papers)."""
    values = [
        {"x": row[x.key], "y": row[y.key], "value": round(100 * row[value.key], 1)}
        for row in rows
        if row.get(value.key) is not None
    ]
    size = max(1, len({row["x"] for row in values}))
    base = chart_of(values).encode(
        x=alt.X("x:O", title=x.title, axis=alt.Axis(labelAngle=0)), y=alt.Y("y:O", title=y.title)
    )
    low = min((row["value"] for row in values), default=0.0)
    cells = base.mark_rect().encode(
        color=alt.Color("value:Q", title=f"{value.title} (%)", scale=alt.Scale(domain=[min(low, bottom), 100.0])),
        tooltip=[
            alt.Tooltip("y:O", title=y.title),
            alt.Tooltip("x:O", title=x.title),
            alt.Tooltip("value:Q", title=f"{value.title} (%)"),
        ],
    )
    floor = min(low, bottom)
    middle = next((floor + s / 100 * (100 - floor) for s in range(101) if dark_cell(s / 100, "light")), 100.0)
    numbers = base.mark_text(fontSize=11).encode(
        text=alt.Text("value:Q", format=".1f"),
        color=alt.condition(f"datum.value > {middle}", alt.value("white"), alt.value("black")),
    )
    return alt.layer(cells, numbers).properties(width=46 * size, height=34 * len({row["y"] for row in values}))


def pictures(names: Sequence[str], values: Sequence[Tensor], *, columns: int = 6, side: int = 112) -> Chart:
    """Draw small grey pictures side by side: white is 1, black is 0.

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
        chart_of(rows).mark_image(width=side, height=side, x=0, y=0, align="left", baseline="top").encode(url="url:N")
    )
    header = alt.Header(title=None, labelFontSize=12, labelLimit=side)
    facet = alt.Facet("name:N", sort=list(names), header=header)
    return image.properties(width=side, height=side).facet(facet, columns=columns, spacing=12)


def _png(value: Tensor) -> str:
    """Return a picture as a data address, every value a square of several pixels, so that no viewer blurs it."""
    grey = (255 * value.clamp(0, 1)).round().to(torch.uint8).repeat_interleave(4, 0).repeat_interleave(4, 1)
    content = io.BytesIO()
    Image.fromarray(grey.cpu().numpy()).save(content, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
