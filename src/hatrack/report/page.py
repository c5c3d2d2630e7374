"""The report as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from hatrack import __version__
from hatrack.errors import InputError
from hatrack.experiments import EXPERIMENTS
from hatrack.objectives import ACCURACY
from hatrack.report import canvas, charts, sections
from hatrack.report.inside import capacity, mean_usage, reuse
from hatrack.report.literature import HERE, has_published, published
from hatrack.report.runs import REFERENCES, Runs
from hatrack.report.table import Table
from hatrack.report.tables import accuracy, curves, data, summary
from hatrack.report.verdict import differences, verdict
from hatrack.report.writers import display

__all__ = ["html_report"]

_RATIO = (
    "forgetting_ratio",
    "Forgetting ratio ρ",
    "0 is as good as learning all tasks at once, −1 as bad as guessing.",
)

_BANDS = " Bands are one standard deviation over seeds."


def html_report(runs: Runs) -> str:
    """Write the report on some runs, readable by people who have never heard of continual learning.

    Args:
        runs: at least one.

    Raises:
        InputError: the extra ``report`` is not installed, or tasks have different metrics.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False, "allow_nan": False}
    metric = runs.require_metric()
    makers = (summary, curves, accuracy, capacity, reuse, data, differences, mean_usage)
    tables = {table.name: table for table in (make(runs) for make in makers)}
    others = Table("published", "", (), ())
    if has_published(runs):
        others = tables["published"] = published(runs)
    outcome = verdict(runs)
    drawn = _charts(runs, tables)
    context = {
        "title": f"{runs.any.experiment}: {sections.title(runs)}",
        "experiment": runs.any.experiment,
        "metric": metric.name,
        "share": metric.is_share,
        "direction": metric.direction,
        "plain": metric == ACCURACY,
        "description": EXPERIMENTS[runs.any.experiment].description if runs.any.experiment in EXPERIMENTS else "",
        "tasks": runs.task_names,
        "named": not runs.task_names[0].startswith("task "),
        "seeds": runs.seeds,
        "methods": sections.method_list(runs),
        "references": [(name, text) for name, text in REFERENCES.items() if name in runs.labels],
        "left_out": runs.left_out,
        "explanations": sections.explanations(runs),
        "beside": {"columns": others.columns, "rows": sections.beside(others)},
        "here": HERE,
        "cards": sections.cards(runs, outcome),
        "sentences": sections.sentences(runs, outcome),
        "summary": sections.summary_rows(tables["summary"]),
        "differences": sections.forest(tables["differences"], outcome.best, runs),
        **sections.matrices(tables["accuracy"], runs),
        "layers": sections.layer_matrices(tables["capacity"]),
        "reuse": sections.reuse_matrices(tables["reuse"], runs),
        "proof": sections.proof(runs),
        "data": tables["data"],
        "display": display,
        "origins": runs.any.data,
        "settings": sections.settings(runs),
        "environments": sections.environments(runs),
        "commands": [run.command for _, _, run in runs.each()],
        "version": __version__,
        "tables": {name: _compact(table) for name, table in tables.items()},
        "charts": [{key: value for key, value in chart.items() if key != "chart"} for chart in drawn],
        "specs": {chart["name"]: chart["chart"].properties(description=chart["alt"]).to_dict() for chart in drawn},
        "styles": {theme: canvas.style(theme) for theme in ("light", "dark")},
        "bundle": Markup(_bundle()),
        "css": Markup(_css()),
        "script": Markup(_file("report.js")),
        "downloads": _downloads,
    }
    return environment.from_string(_file("report.html")).render(context)


def _file(name: str) -> str:
    return resources.files("hatrack.report").joinpath("template").joinpath(name).read_text(encoding="utf-8")


def _css() -> str:
    text = _file("report.css")
    for theme, palette in (("light", canvas.LIGHT), ("dark", canvas.DARK)):
        colours = "".join(f"--c{index}:{colour};" for index, colour in enumerate(palette))
        text = text.replace("{{ palette_" + theme + " }}", colours)
    return text


@cache
def _bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed, as one script that vl-convert ships."""
    try:
        import vl_convert
    except ImportError as error:  # pragma: no cover - the extra is installed wherever tests run
        raise InputError("the report needs altair and vl-convert: pip install 'hatrack[report]'") from error
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=canvas.VEGA_LITE)
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _downloads(table: str) -> Markup:
    buttons = [
        Markup(
            '<button type="button" data-table="{0}" data-kind="{1}" aria-label="Download {0} as {2}">{2}</button>'
        ).format(table, kind, kind.upper())
        for kind in ("csv", "json")
    ]
    return Markup('<p class="downloads">the data behind it: {}</p>').format(Markup("").join(buttons))


def _charts(runs: Runs, tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    columns = {column.key: column for column in tables["curves"].columns}
    rows, used = tables["curves"].rows, tables["mean-usage"].rows
    drawn = []
    metric = runs.require_metric()
    direction = "" if metric == ACCURACY else f" {metric.direction.capitalize()}."
    lost = "in points lost" if metric.is_share else f"what got worse of {metric.name}"
    lost = f"{lost} since a task was learned, mean over the tasks so far. Lower is better."
    shown = (
        (runs.average, f"Average {metric.name}", f"of all the tasks so far.{direction}"),
        ("forgetting", "Forgetting", lost),
        _RATIO,
    )
    for key, title, text in shown if runs.learned > 1 else ():
        if any(row[key] is not None for row in rows):
            bands = _BANDS * (key == runs.average and len(runs.seeds) > 1)
            drawn.append(
                (key, title, text + bands, "curves", charts.curves(rows, columns[key], runs.labels, legend=False))
            )
    if used:
        text = "while tasks are in training; dashed lines are switches to the next task."
        usage = charts.usage(used, runs.learned, runs.labels, legend=False)
        drawn.append(("usage", "Network in use", text, "mean-usage", usage))
    return [
        {
            **{"name": name, "title": title, "text": text, "table": table, "chart": chart},
            "alt": f"Line chart: {title} by number of tasks learned, {text} Its data follow below.",
        }
        for name, title, text, table, chart in drawn
    ]


def _compact(table: Table) -> dict[str, Any]:
    keys = list(dict.fromkeys([*(c.key for c in table.columns), *(key for row in table.rows[:1] for key in row)]))
    return {"columns": keys, "rows": [[_rounded(row.get(key)) for key in keys] for row in table.rows]}


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
