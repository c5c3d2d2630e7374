"""Parts that all charts share: colours for any colour vision, scales that show something, and writing to files."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatrack.errors import InputError
from hatrack.storage.atomic import require_place

try:
    import altair as alt
except ImportError as error:  # pragma: no cover - the extra is installed wherever tests run
    raise InputError("charts need altair and vl-convert: pip install 'hatrack[report]'") from error

__all__ = [
    "DARK",
    "LIGHT",
    "MOST_ROWS",
    "PAGE",
    "PAPER",
    "VEGA_LITE",
    "Chart",
    "Inks",
    "alt",
    "chart_of",
    "color",
    "dark_cell",
    "dash",
    "dash_of",
    "dashes",
    "digits",
    "line_legend",
    "save",
    "span",
    "style",
]

LIGHT = ("#0072b2", "#d55e00", "#007d5c", "#b3548b", "#8a6d00", "#56606b")
"""Colours on white: Okabe and Ito's, darkened where they would be hard to see."""

DARK = ("#5ab4f0", "#ff8b4d", "#3dd6a3", "#e79ac6", "#e8c547", "#b4bec9")
"""The same colours on black."""

_DASHES = (
    *((1, 0), (7, 3), (2, 2), (9, 3, 2, 3)),  # full, dashed, dotted, dash and dot
    *((15, 4), (9, 3, 2, 3, 2, 3), (2, 7), (15, 3, 5, 3)),
)
_SAMPLE = "M-1,0L7.5,0"
"""Path of a line's sample in a legend, in halves of a symbol's width: about 46 pixels, twice the longest dashes."""
_BESIDE_SAMPLE = 42
"""Distance in pixels of a label from where a symbol of usual width would end."""
MOST_ROWS = 16
"""Largest number of names below each other in a legend."""
_HEAT = {"light": ("#f4f7fb", "#0b4f8a"), "dark": ("#1c2733", "#7cc4ff")}
_MINUS = {"light": "#a84300", "dark": "#ff9a66"}
"""Colours of the lowest values in heat maps of signed ones; zero has the low end of the other colours."""
_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Inks:
    """Colours of a chart, as CSS writes them.

    Attributes:
        ink: titles and texts.
        muted: labels of axes, and rules.
        grid: lines of the grid.
        categories: lines and bars, in their order.
        background: colour behind the chart; None for none.
    """

    ink: str
    muted: str
    grid: str
    categories: tuple[str, ...]
    background: str | None = None


PAPER = Inks("#1c232b", "#4a5561", "#dfe4ea", LIGHT, "white")
"""Colours on white, for files."""

PAGE = Inks("var(--ink)", "var(--muted)", "var(--line)", tuple(f"var(--c{index})" for index in range(len(LIGHT))))
"""Names of colours that a page's style sheet defines, for every theme anew."""


def style(inks: Inks = PAPER) -> dict[str, Any]:
    """Return the configuration of Vega-Lite for some colours."""
    text = {
        "labelColor": inks.muted,
        "titleColor": inks.ink,
        "labelFont": _FONT,
        "titleFont": _FONT,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": 500,
    }
    return {
        "background": inks.background,
        "view": {"stroke": None, "continuousWidth": 400, "discreteWidth": 400, "continuousHeight": 250},
        "axis": {
            **text,
            **{"gridColor": inks.grid, "domainColor": inks.grid, "tickColor": inks.grid, "titlePadding": 8},
            "labelSeparation": 6,  # else 10000 and 20000 may stand beside each other as one number
        },
        "legend": {**text, "symbolStrokeWidth": 2.5, "symbolSize": 120, "symbolLimit": 0, "labelLimit": 240},
        "header": text,
        "title": {
            "color": inks.ink,
            "font": _FONT,
            "fontSize": 14,
            "fontWeight": 600,
            "anchor": "start",
            "subtitleColor": inks.muted,
            "subtitleFont": _FONT,
        },
        "text": {"color": inks.ink, "font": _FONT},
        "range": {
            "category": list(inks.categories),
            "heatmap": list(_HEAT["light"]),
            "ramp": list(_HEAT["light"]),
            "diverging": [_MINUS["light"], *_HEAT["light"]],
        },
        "rule": {"color": inks.muted},
    }


def dark_cell(share: float, theme: str) -> bool:
    """Return whether a cell of a heat map is so dark that white on it can be read better than black.

    Args:
        share: place between the two ends of the theme's colours, in [0, 1]; in [-1, 0] between that of zero and that of
            the lowest values where values are signed.
        theme: ``light`` or ``dark``.
    """
    zero, high = _HEAT[theme]
    colours = (zero, high if share >= 0 else _MINUS[theme])
    ends = [[int(end[place : place + 2], 16) / 255 for place in (1, 3, 5)] for end in colours]
    mixed = [low + abs(share) * (high - low) for low, high in zip(*ends, strict=True)]
    linear: list[float] = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in mixed]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.179  # where both have a contrast of 4.6


VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
"""The version of Vega-Lite that the charts are made for."""

Chart = Any
"""An altair chart, layered or not."""


def save(chart: Chart, path: Path, title: str = "", note: str = "") -> None:
    """Write a chart as SVG, PDF or PNG, by the file's ending.

    Args:
        chart: the chart.
        path: the file.
        title: text above the chart.
        note: smaller text below the title, which must not be empty then.

    Raises:
        InputError: the ending is another one, or the file cannot be there.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("svg", "pdf", "png"):
        raise InputError(f"{path}: figures are written as .svg, .pdf or .png")
    require_place(path)
    if title:
        lines = textwrap.wrap(f"{note[:1].upper()}{note[1:]}.", 72) if note else alt.Undefined
        chart = chart.properties(title=alt.TitleParams(title, subtitle=lines))
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.configure(**style()).save(str(path), format=kind, **({"scale_factor": 2} if kind == "png" else {}))


def chart_of(values: Sequence[dict[str, Any]]) -> Any:
    """Return a chart of some values, which it carries with it."""
    return alt.Chart(alt.InlineData(values=list(values)))


def color(methods: Sequence[str], legend: bool) -> Any:
    """Return a colour for every method, by its place among all of them."""
    shown = line_legend("method", len(methods)) if legend else None
    return alt.Color("method:N", scale=alt.Scale(domain=list(methods)), legend=shown)


def dash(methods: Sequence[str], legend: bool) -> Any:
    """Return dashes for every method, for where colours begin anew."""
    shown = line_legend("method", len(methods)) if legend else None
    return alt.StrokeDash("method:N", scale=dashes(methods), legend=shown)


def line_legend(title: str, lines: int) -> Any:
    """Return a legend of lines, with samples so long that dashes can be told apart; many names stand in columns."""
    return alt.Legend(
        title=title,
        symbolType=_SAMPLE,
        symbolFillColor="transparent",
        symbolOpacity=1.0,
        labelOffset=_BESIDE_SAMPLE,
        columns=1 + (lines - 1) // MOST_ROWS,
        columnPadding=24,
    )


def dashes(names: Sequence[str]) -> Any:
    """Give full lines to as many names as there are colours, then another kind of dashes for as many again."""
    return alt.Scale(domain=list(names), range=[list(dash_of(index)) for index in range(len(names))])


def dash_of(index: int) -> tuple[int, ...]:
    """Return the dashes of a line, on and off by turns in pixels: no two lines have both colour and dashes in common.

    Args:
        index: place of the line among all, from 0; colours are taken by turns.
    """
    kind = index // len(LIGHT)
    if kind < len(_DASHES):
        return _DASHES[kind]
    return (15 + 6 * (kind - len(_DASHES) + 1), 4)  # beyond 48 lines: longer and longer dashes


def span(values: Iterable[float], least: float, floor: float | None = None, ceiling: float | None = None) -> Any:
    """Return a scale over some values that is never so narrow that its axis has a single tick.

    Args:
        values: all that is drawn.
        least: smallest width of the scale, above 0, in the unit of the values.
        floor: value that the scale does not go below to become wide enough; none of the values does either.
        ceiling: value that it does not go above, likewise.
    """
    known = [*values] or [0.0]
    low, high = min(known), max(known)
    missing = max(0.0, least - (high - low))
    low, high = low - missing / 2, high + missing / 2
    if floor is not None and missing and low < floor:
        low, high = floor, high + floor - low
    if ceiling is not None and missing and high > ceiling:
        low, high = low + ceiling - high, ceiling
    return alt.Scale(domain=[low, high], nice=True, zero=False)


def digits(value: float) -> float:
    """Return a number with as many digits as a picture can show."""
    return float(f"{value:.5g}")
