"""Look of charts and heat maps: colours for any colour vision, on white and on black."""

from __future__ import annotations

from typing import Any

__all__ = ["DARK", "DASHES", "LIGHT", "dark_cell", "style"]

LIGHT = ("#0072b2", "#d55e00", "#007d5c", "#b3548b", "#8a6d00", "#56606b")
"""Colours on white: Okabe and Ito's, darkened where they would be hard to see."""

DARK = ("#5ab4f0", "#ff8b4d", "#3dd6a3", "#e79ac6", "#e8c547", "#b4bec9")
"""The same colours on black."""

DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3))
_HEAT = {"light": ("#f4f7fb", "#0b4f8a"), "dark": ("#1c2733", "#7cc4ff")}


def style(theme: str) -> dict[str, Any]:
    """Return the configuration of Vega-Lite for a theme, ``light`` or ``dark``."""
    ink, muted, grid = ("#1c232b", "#4a5561", "#dfe4ea") if theme == "light" else ("#e8edf2", "#aab4bf", "#333d48")
    font = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
    text = {
        "labelColor": muted,
        "titleColor": ink,
        "labelFont": font,
        "titleFont": font,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": 500,
    }
    return {
        "background": None if theme == "dark" else "white",
        "view": {"stroke": None, "continuousWidth": 400, "discreteWidth": 400, "continuousHeight": 250},
        "axis": {**text, "gridColor": grid, "domainColor": grid, "tickColor": grid, "titlePadding": 8},
        "legend": {**text, "symbolStrokeWidth": 2.5, "symbolSize": 120, "labelLimit": 240},
        "header": text,
        "title": {"color": ink, "font": font, "fontSize": 14, "fontWeight": 600, "anchor": "start"},
        "text": {"color": ink, "font": font},
        "range": {
            "category": list(LIGHT if theme == "light" else DARK),
            "heatmap": list(_HEAT[theme]),
            "ramp": list(_HEAT[theme]),
        },
        "rule": {"color": muted},
    }


def dark_cell(share: float, theme: str) -> bool:
    """Return whether a cell of a heat map is so dark that white on it can be read better than black.

    Args:
        share: place between the two ends of the theme's colours, in [0, 1].
        theme: ``light`` or ``dark``.
    """
    ends = [[int(end[place : place + 2], 16) / 255 for place in (1, 3, 5)] for end in _HEAT[theme]]
    mixed = [low + share * (high - low) for low, high in zip(*ends, strict=True)]
    linear: list[float] = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in mixed]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.179  # where both have a contrast of 4.6
