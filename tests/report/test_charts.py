"""Charts say something whatever the values are."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import vl_convert
from hypothesis import given
from hypothesis import strategies as st

from hatrack.report import charts
from hatrack.report.canvas import LIGHT, VEGA_LITE, dash_of, span, style
from hatrack.report.inline_svg import inline_svg
from hatrack.report.table import Kind, TableColumn

SIZES = st.floats(-1e6, 1e6)


@given(st.lists(SIZES, min_size=1, max_size=5), st.floats(1e-3, 1e3))
def test_a_scale_holds_all_values_and_is_wide_enough(values: list[float], least: float) -> None:
    low, high = span(values, least).domain
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert low <= min(values) + slack
    assert high >= max(values) - slack
    assert high - low >= least - slack
    assert high - low <= max(least, max(values) - min(values)) + slack


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5), st.floats(1e-3, 100))
def test_a_scale_is_widened_within_its_bounds(values: list[float], least: float) -> None:
    low, high = span(values, least, 0.0, 100.0).domain
    assert -1e-9 <= low <= min(values) + 1e-9
    assert max(values) - 1e-9 <= high <= 100 + 1e-9
    assert high - low >= least - 1e-9


def y_labels(svg: str) -> list[str]:
    """Return the labels beside the axis that goes up; they end where the axis begins."""
    texts = [part for part in ElementTree.fromstring(svg).iter() if part.tag.endswith("}text")]
    return [text.text or "" for text in texts if text.get("text-anchor") == "end"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Kind.POINTS, 0.0),
        *(
            pytest.param(kind, value, marks=pytest.mark.slow)
            for kind, value in (
                *((Kind.PERCENT, 1.0), (Kind.PERCENT, 0.0), (Kind.RATIO, 0.0), (Kind.SECONDS, 0.0)),
                *((Kind.SCORE, 0.0), (Kind.SCORE, 796.2), (Kind.SCORE, -1e-4)),
            )
        ),
    ],
)
def test_no_axis_has_a_single_tick(kind: Kind, value: float) -> None:
    column = kind.column("figure")
    rows = [{"method": "hat", "after": after, "figure": value, "figure_sd": None} for after in (1, 2)]
    labels = y_labels(inline_svg(charts.curves(rows, column, ["hat"], legend=False), ["hat"], width=372, height=250))
    assert len(set(labels)) > 1
    epochs = [{**row, "task": 1, "epoch": row["after"], "progress": row["after"] / 2} for row in rows]
    labels = y_labels(inline_svg(charts.epochs(epochs, column, ["hat"], legend=False), ["hat"], width=372, height=250))
    assert len(set(labels)) > 1


@pytest.mark.parametrize("tasks", [1, 2, 3, 20])
def test_every_label_of_an_axis_is_another_number(tasks: int) -> None:
    used = [{"method": "hat", "progress": task + half, "used": 0.5} for task in range(tasks) for half in (0.5, 1.0)]
    rows = [{"method": "hat", "after": after + 1, "figure": 0.5, "figure_sd": None} for after in range(tasks)]
    column = Kind.PERCENT.column("figure")
    curve = charts.curves(rows, column, ["hat"], legend=False)
    for chart in (charts.usage(used, tasks, ["hat"], legend=False), curve):
        root = ElementTree.fromstring(inline_svg(chart, ["hat"], width=372, height=250))
        axes = [[text.text for text in group if text.tag.endswith("}text")] for group in root.iter()]
        axes = [labels for labels in axes if len(labels) > 1]
        assert len(axes) == (1 if chart is curve and tasks == 1 else 2)
        assert all(len(labels) == len(set(labels)) <= 12 for labels in axes)


def test_spreads_end_where_values_must() -> None:
    def drawn(kind: Kind, value: float, sd: float) -> list[dict[str, float]]:
        rows = [{"method": "hat", "after": 1, "figure": value, "figure_sd": sd}]
        spec = charts.curves(rows, kind.column("figure"), ["hat"]).to_dict()
        found = re.findall(r"'low': ([-.\d]+), 'high': ([-.\d]+)", str(spec))
        return [{"low": float(low), "high": float(high)} for low, high in found]

    assert drawn(Kind.PERCENT, 0.98, 0.05)[0] == {"low": 93.0, "high": 100.0}
    assert drawn(Kind.SECONDS, 3.0, 4.0)[0] == {"low": 0.0, "high": 7.0}
    assert drawn(Kind.POINTS, 0.01, 0.02)[0] == {"low": -1.0, "high": 3.0}


@pytest.mark.parametrize("lowest", [-0.25, 0.25])
def test_colours_of_signed_values_diverge_from_zero(lowest: float) -> None:
    x, y, value = Kind.NUMBER.column("x"), Kind.NUMBER.column("y"), Kind.POINTS.column("value")
    rows = [{"x": 1, "y": 1, "value": lowest}, {"x": 2, "y": 1, "value": 0.75}]
    scale = charts.heat_map(rows, x, y, value).to_dict()["layer"][0]["encoding"]["color"]["scale"]
    diverging = {"domain": [-75.0, 75.0], "domainMid": 0}
    assert scale == {**(diverging if lowest < 0 else {"domain": [25.0, 75.0]}), "interpolate": "rgb"}


def test_no_two_lines_have_both_colour_and_dashes_in_common() -> None:
    looks = {(index % len(LIGHT), dash_of(index)) for index in range(500)}
    assert len(looks) == 500


def samples(svg: str) -> list[tuple[float, float]]:
    """Return of every line in a legend how long its sample is, and one period of its dashes."""
    found = []
    for part in ElementTree.fromstring(svg).iter():
        line = re.fullmatch(r"M(-?[\d.]+),0L(-?[\d.]+),0", part.get("d", ""))
        if line is not None and part.get("stroke-dasharray"):
            dashes = [float(length) for length in part.get("stroke-dasharray", "").split(",")]
            found.append((float(line[2]) - float(line[1]), sum(dashes)))
    return found


@pytest.mark.parametrize("kind", ["method", "task", "group"])
def test_samples_in_legends_are_long_enough_to_tell_dashes_apart(kind: str) -> None:
    names = [f"n{index:02d}" for index in range(40)]
    column = Kind.PERCENT.column("figure")
    rows = [
        {"method": name, "task": index, "after": after, "figure": 0.5, "figure_sd": None}
        for index, name in enumerate(names, 1)
        for after in (1, 2)
    ]
    chart = {
        "method": lambda: charts.curves(rows, column, names),
        "task": lambda: charts.lines_per_task([{**row, "method": "hat"} for row in rows], "hat", names, column),
        "group": lambda: charts.scatter(rows, "after", column, "tasks", "method", order="after"),
    }[kind]()
    svg = vl_convert.vegalite_to_svg({**chart.to_dict(), "config": style()}, vl_version=VEGA_LITE)
    of = samples(svg)
    assert len(of) == 40
    assert all(length > 1.5 * period for length, period in of)


def test_more_layers_than_colours_have_those_of_a_scale() -> None:
    rows = [{"method": "hat", "layer": f"layer{index}", "after": 1, "used": 0.5} for index in range(7)]
    colours = [charts.layers(rows[:count], "hat").to_dict()["encoding"]["color"]["scale"] for count in (6, 7)]
    assert ["scheme" in scale for scale in colours] == [False, True]


def test_marks_have_their_method_and_their_text() -> None:
    names = ("a & b", '<img src="x">')
    methods = ["hat (s_max=50)", "hat"]
    rows = [
        {"method": method, "after": after, "figure": 0.5, "figure_sd": 0.1} for method in methods for after in (1, 2)
    ]
    column = TableColumn("figure", "accuracy", Kind.PERCENT)
    chart = charts.curves(rows, column, methods, names=names, legend=False)
    root = ElementTree.fromstring(inline_svg(chart, methods, width=372, height=250))
    marks = [(part.get("data-method"), part.get("data-tip")) for part in root.iter() if part.get("data-tip")]
    assert {method for method, _ in marks} == set(methods)
    assert ("hat", "hat: 50.00 ± 10.00 %, after task 1 a & b") in marks
    assert ("hat (s_max=50)", 'hat (s_max=50): 50.00 ± 10.00 %, after task 2 <img src="x">') in marks
    assert len(marks) == 2 * (1 + 2 + 2), "of every method a line, two dots and two error bars"
