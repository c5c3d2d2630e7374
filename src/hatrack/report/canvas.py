"""Parts that all charts share: colours and dashes of methods, the choice of methods on a page, and writing to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatrack.errors import InputError
from hatrack.report.style import DASHES, LIGHT, style

try:
    import altair as alt
except ImportError as error:  # pragma: no cover - the extra is installed wherever tests run
    raise InputError("charts need altair and vl-convert: pip install 'hatrack[report]'") from error

__all__ = ["VEGA_LITE", "Chart", "alt", "chart_of", "chosen", "color", "dash", "dashes", "digits", "save"]

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
"""The version of Vega-Lite that the charts are made for."""

Chart = Any
"""An altair chart, layered or not."""


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


def chart_of(values: Sequence[dict[str, Any]]) -> Any:
    """Return a chart of some values, which it carries with it."""
    return alt.Chart(alt.InlineData(values=list(values)))


def color(methods: Sequence[str], legend: bool) -> Any:
    """Return a colour for every method, by its place among all of them."""
    shown = alt.Legend(title="method", symbolType="stroke", symbolOpacity=1.0) if legend else None
    return alt.Color("method:N", scale=alt.Scale(domain=list(methods)), legend=shown)


def dash(methods: Sequence[str], legend: bool) -> Any:
    """Return dashes for every method, for where colours begin anew."""
    shown = alt.Legend(title="method", symbolType="stroke", symbolOpacity=1.0) if legend else None
    return alt.StrokeDash("method:N", scale=dashes(methods), legend=shown)


def dashes(names: Sequence[str]) -> Any:
    """Give full lines to as many names as there are colours, then another kind of dashes for as many again."""
    ranks = [DASHES[index // len(LIGHT) % len(DASHES)] for index in range(len(names))]
    return alt.Scale(domain=list(names), range=[list(dash) for dash in ranks])


def chosen(chart: Any, methods: Sequence[str]) -> Any:
    """Let a page choose the methods, through the parameter ``chosen``."""
    chosen = alt.param(name="chosen", value=list(methods))
    return chart.add_params(chosen).transform_filter("!isValid(datum.method) || indexof(chosen, datum.method) >= 0")


def digits(value: float) -> float:
    """Return a number with as many digits as a picture can show."""
    return float(f"{value:.5g}")
