"""The report as one HTML file that needs no network."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from hatrack import __version__
from hatrack.experiments import EXPERIMENTS
from hatrack.objectives import ACCURACY
from hatrack.report import canvas, sections
from hatrack.report.inside import capacity, mean_usage, reuse
from hatrack.report.literature import HERE, has_published, published
from hatrack.report.over_time import by_task, mean_learning
from hatrack.report.panels import epoch_panels, task_panels
from hatrack.report.recognition import class_confusion, recognition, task_confusion
from hatrack.report.runs import REFERENCES, Runs
from hatrack.report.table import Table, capitalized
from hatrack.report.tables import accuracy, curves, data, summary
from hatrack.report.verdict import differences, verdict
from hatrack.report.writers import display
from hatrack.support.names import joined_with_and

__all__ = ["html_report"]

_OF_RECOGNITION = (recognition, task_confusion, class_confusion)
"""Tables of runs that recognised tasks, of which others have no rows."""

_POINTS = 120
"""Number of points in a learning curve that can be told apart on a page."""


def html_report(runs: Runs) -> str:
    """Write the report on some runs, readable by people who have never heard of continual learning.

    Where tasks have different metrics, what averages over tasks is left out, and the page says why.

    Args:
        runs: at least one.

    Raises:
        InputError: the extra ``report`` is not installed.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False, "allow_nan": False}
    metric = runs.metric
    makers = (summary, curves, by_task, _learning, accuracy, capacity, reuse, data, mean_usage)
    tables = {table.name: table for table in (make(runs) for make in makers)}
    outcome = None if metric is None or runs.unequal_settings else verdict(runs)
    if outcome is not None:
        tables["differences"] = differences(runs)
    tables |= {table.name: table for make in _OF_RECOGNITION if (table := make(runs)).rows}
    others = Table("published", "", (), ())
    if has_published(runs):
        others = tables["published"] = published(runs)
    panels = [*task_panels(runs, tables), *epoch_panels(runs, tables["mean-learning"])]
    context = {
        "title": f"{runs.any.experiment}: {sections.title(runs)}",
        "experiment": runs.any.experiment,
        "metric": "score" if metric is None else metric.name,
        "metric_heading": capitalized(joined_with_and(each.name for each in runs.metrics)),
        "metrics": runs.metrics,
        "of_metric": {each.name: runs.tasks_of(each) for each in runs.metrics},
        "plain": metric == ACCURACY,
        "description": EXPERIMENTS[runs.any.experiment].description if runs.any.experiment in EXPERIMENTS else "",
        "tasks": runs.task_names,
        "named": not runs.task_names[0].startswith("task "),
        "seeds": runs.seeds,
        "methods": sections.method_list(runs),
        "references": [(name, text) for name, text in REFERENCES.items() if name in runs.labels],
        "left_out": runs.left_out,
        "conditions": f"{capitalized(runs.note_on_conditions)}." if runs.note_on_conditions else "",
        "tests": f"{capitalized(runs.note_on_tests)}." if runs.note_on_tests else "",
        "losses": f"{capitalized(runs.note_on_losses)}." if runs.note_on_losses else "",
        "explanations": sections.explanations(runs),
        "beside": {"columns": others.columns, "rows": sections.beside(others)},
        "here": HERE,
        "cards": sections.cards(runs, outcome),
        "sentences": sections.sentences(runs, outcome),
        "summary": sections.summary_rows(tables["summary"]),
        "differences": {"rows": []} if outcome is None else sections.forest(tables["differences"], outcome.best, runs),
        **sections.matrices(tables["accuracy"], tables["by-task"], runs),
        "confusions": sections.confusion_matrices(tables["task-confusion"], tables["recognition"], runs)
        if "task-confusion" in tables
        else [],
        "class_confusions": sections.class_matrices(runs),
        "layers": sections.layer_matrices(tables["capacity"], runs),
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
        "panels": panels,
        "css": Markup(environment.from_string(_file("report.css")).render(themes=_themes(), tasks=runs.learned)),
        "script": Markup(_file("report.js")),
        "downloads": _downloads,
    }
    return environment.from_string(_file("report.html")).render(context)


def _learning(runs: Runs) -> Table:
    return mean_learning(runs, max(2, min(30, _POINTS // runs.learned)))


def _file(name: str) -> str:
    return resources.files("hatrack.report").joinpath("template").joinpath(name).read_text(encoding="utf-8")


def _themes() -> dict[str, str]:
    """Return the colours of lines as variables of CSS, by theme."""
    palettes = {"light": canvas.LIGHT, "dark": canvas.DARK}
    return {
        theme: "".join(f"--c{index}:{colour};" for index, colour in enumerate(palette))
        for theme, palette in palettes.items()
    }


def _downloads(table: str, chart: str = "") -> Markup:
    """Return buttons that show a table and save it, and the chart above them if there is one."""
    kinds = {
        "table": f"Show {table} as a table",
        "csv": f"Download {table} as CSV",
        "json": f"Download {table} as JSON",
    }
    if chart:
        kinds |= {kind: f"Download the chart {chart} as {kind.upper()}" for kind in ("svg", "png")}
    buttons = [
        Markup('<button type="button" data-table="{}" data-kind="{}" aria-label="{}"{}>{}</button>').format(
            table,
            kind,
            label,
            Markup(' aria-expanded="false"') if kind == "table" else "",
            kind if kind == "table" else kind.upper(),
        )
        for kind, label in kinds.items()
    ]
    return Markup('<div class="downloads"><span>data</span> {}</div>').format(Markup("").join(buttons))


def _compact(table: Table) -> dict[str, Any]:
    keys = list(dict.fromkeys([*(c.key for c in table.columns), *(key for row in table.rows[:1] for key in row)]))
    return {"columns": keys, "rows": [[_rounded(row.get(key)) for key in keys] for row in table.rows]}


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
