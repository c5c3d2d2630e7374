"""Charts as SVG elements inside a page, which need no script and follow the page's colours."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from hatrack.errors import InputError
from hatrack.report.canvas import PAGE, VEGA_LITE, Chart, alt, style

try:
    import vl_convert
except ImportError as error:  # pragma: no cover - the extra is installed wherever tests run
    raise InputError("charts need altair and vl-convert: pip install 'hatrack[report]'") from error

__all__ = ["inline_svg"]

_NAMESPACE = "http://www.w3.org/2000/svg"
_OF_VIEWERS = ("role", "aria-roledescription", "aria-hidden", "aria-label", "class", "font-family", "pointer-events")
"""Attributes of Vega's SVG without use in a page, whose style sheet has the font and whose text says what is drawn."""
_FRAMES = ("background", "foreground")
_GUIDES = ("axis", "legend", "title")
"""Parts of a chart beside its marks, in the words of Vega."""


def inline_svg(chart: Chart, methods: Sequence[str], *, width: int, height: int) -> str:
    """Draw a chart as an SVG element, in the colours of a page's style sheet.

    A mark's description becomes its ``data-tip``, the text beside the pointer. A description that is a method's label,
    or begins with one and a colon, gives the mark a ``data-method``, by which the page hides it.

    Args:
        chart: an altair chart of one panel.
        methods: labels of methods.
        width: width in pixels, axes included.
        height: height in pixels, likewise.
    """
    fitted = chart.properties(width=width, height=height, autosize=alt.AutoSizeParams(type="fit", contains="padding"))
    spec = {**fitted.to_dict(validate=False), "config": style(PAGE)}  # altair knows no variables of CSS
    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE))
    for element in root.iter():
        for frame in [child for child in element if child.get("class") in _FRAMES]:
            element.remove(frame)
        _name(element, methods)
        for attribute in (*_OF_VIEWERS, *(["opacity"] if element.get("opacity") == "1" else [])):
            element.attrib.pop(attribute, None)
    for size in ("width", "height"):
        root.attrib.pop(size)  # as wide as the page has room
    ElementTree.register_namespace("", _NAMESPACE)
    return ElementTree.tostring(root, encoding="unicode")


def _name(element: ElementTree.Element, methods: Sequence[str]) -> None:
    """Give a mark its text and its method."""
    tip = element.get("aria-label")
    if tip is None or element.get("role") != "graphics-symbol" or element.get("aria-roledescription") in _GUIDES:
        return
    element.set("data-tip", tip)
    for method in methods:
        if f"{tip}: ".startswith(f"{method}: "):
            element.set("data-method", method)
