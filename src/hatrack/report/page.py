"""The report as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from hatrack import __version__
from hatrack.errors import InputError
from hatrack.experiments import EXPERIMENTS
from hatrack.report import charts
from hatrack.report.runs import REFERENCES, Runs
from hatrack.report.tables import (
    Column,
    Kind,
    Table,
    accuracy,
    capacity,
    curves,
    data,
    is_constant,
    mean_usage,
    reuse,
    summary,
)
from hatrack.report.verdict import Verdict, differences, verdict
from hatrack.report.writers import display, number

__all__ = ["html_report"]

_UNITS = {Kind.PERCENT: "%", Kind.POINTS: "points", Kind.SECONDS: "seconds"}
_CURVES = (
    ("average_accuracy", "Average accuracy", "of all the tasks so far. Bands are one standard deviation over seeds."),
    (
        "forgetting",
        "Forgetting",
        "in points lost since a task was learned, mean over the tasks so far. Lower is better.",
    ),
    ("forgetting_ratio", "Forgetting ratio ρ", "0 is as good as learning all tasks at once, −1 as bad as guessing."),
)


def html_report(runs: Runs) -> str:
    """The report on some runs, readable by people who have never heard of continual learning.

    Args:
        runs: at least one.

    Raises:
        InputError: the extra ``report`` is not installed.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False, "allow_nan": False}
    tables = {
        table.name: table
        for table in (
            summary(runs),
            curves(runs),
            accuracy(runs),
            capacity(runs),
            reuse(runs),
            data(runs),
            differences(runs),
            mean_usage(runs),
        )
    }
    drawn = _charts(runs, tables)
    context = {
        "title": f"{runs.any.experiment}: {_title(runs)}",
        "experiment": runs.any.experiment,
        "description": EXPERIMENTS[runs.any.experiment].description if runs.any.experiment in EXPERIMENTS else "",
        "tasks": runs.task_names,
        "seeds": runs.seeds,
        "methods": _methods(runs),
        "references": [(name, text) for name, text in REFERENCES.items() if name in runs.labels],
        "left_out": runs.left_out,
        "cards": _cards(runs, verdict(runs)),
        "sentences": _sentences(runs, verdict(runs)),
        "summary": _summary(tables["summary"]),
        "differences": _forest(tables["differences"], verdict(runs).best),
        **_matrices(tables["accuracy"], runs),
        "layers": _layers(tables["capacity"], runs),
        "reuse": _reuse(tables["reuse"], runs),
        "proof": _proof(runs),
        "data": {
            "columns": tables["data"].columns,
            "rows": [
                [{"kind": c.kind.value, "text": display(row, c)} for c in tables["data"].columns]
                for row in tables["data"].rows
            ],
        },
        "origins": runs.any.data,
        "settings": _settings(runs),
        "environments": _environments(runs),
        "commands": [run.command for of in (runs.by_label[label] for label in runs.labels) for run in of.values()],
        "version": __version__,
        "tables": {name: _compact(table) for name, table in tables.items()},
        "charts": [{key: value for key, value in chart.items() if key != "chart"} for chart in drawn],
        "specs": {chart["name"]: chart["chart"].properties(description=chart["alt"]).to_dict() for chart in drawn},
        "styles": {theme: charts.style(theme) for theme in ("light", "dark")},
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
    for theme, palette in (("light", charts.LIGHT), ("dark", charts.DARK)):
        colours = "".join(f"--c{index}:{colour};" for index, colour in enumerate(palette))
        text = text.replace("{{ palette_" + theme + " }}", colours)
    return text


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed, as one script that vl-convert ships."""
    try:
        import vl_convert
    except ImportError as error:  # pragma: no cover - the extra is installed wherever tests run
        raise InputError("the report needs altair and vl-convert: pip install 'hatrack[report]'") from error
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=charts.VEGA_LITE)
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _downloads(table: str) -> Markup:
    buttons = [
        Markup(
            '<button type="button" data-table="{0}" data-kind="{1}" aria-label="Download {0} as {2}">{2}</button>'
        ).format(table, kind, kind.upper())
        for kind in ("csv", "json")
    ]
    return Markup('<p class="downloads">the data behind it: {}</p>').format(Markup("").join(buttons))


def _title(runs: Runs) -> str:
    competing = runs.competitors
    if len(competing) == 1:
        return competing[0]
    references = [label for label in runs.labels if label not in competing]
    return f"{len(competing)} methods" + (f" and {_count(len(references), 'reference')}" if references else " compared")


def _methods(runs: Runs) -> list[dict[str, Any]]:
    palette = len(charts.LIGHT)
    return [
        {
            "name": label,
            "color": index % palette,
            "shown": label != "random" or len(runs.labels) == 1,
            "dash": " ".join(map(str, charts.DASHES[index // palette % len(charts.DASHES)]))
            if index >= palette
            else "none",
        }
        for index, label in enumerate(runs.labels)
    ]


def _cards(runs: Runs, outcome: Verdict) -> list[dict[str, str]]:
    several = len(runs.competitors) > 1
    cards = [
        {
            "tone": "",
            "what": "highest accuracy after the last task" if several else "average accuracy in the end",
            "figure": f"{outcome.best} {100 * outcome.accuracy:.1f} %"
            if several
            else f"{100 * outcome.accuracy:.1f} %",
            "text": f"mean over {_count(runs.learned, 'task')} and {_count(len(runs.by_label[outcome.best]), 'seed')}",
        }
    ]
    if outcome.second is not None and outcome.points is not None:
        lead = outcome.lead
        text = "one seed in common: no telling whether that is luck"
        if lead is not None:
            text = f"95 % interval {number(lead.low, Kind.POINTS)} to {number(lead.high, Kind.POINTS)}: "
            text += "more than luck" if lead.excludes_zero else "may well be luck"
        cards.append(
            {
                "tone": "",
                "what": f"ahead of {outcome.second}, the next",
                "figure": f"{number(outcome.points, Kind.POINTS)} points",
                "text": text,
            }
        )
    kept = outcome.unforgotten
    if kept or not several:
        figure = ", ".join(kept[:4]) + (f" and {len(kept) - 4} more" if len(kept) > 4 else "")
        cards.append(
            {
                "tone": "good" if kept else "bad",
                "what": "no output on an old task ever changed",
                "figure": figure if several else "yes" if kept else "no",
                "text": "identical to the bit, shown by fingerprints",
            }
        )
    name, lost = outcome.most_forgetful
    if lost > 0:
        cards.append(
            {
                "tone": "bad",
                "what": "forgets most" if several else "forgetting",
                "figure": f"{name} {100 * lost:.1f} points" if several else f"{100 * lost:.1f} points",
                "text": "of accuracy lost since a task was learned, on the average",
            }
        )
    return cards


def _sentences(runs: Runs, outcome: Verdict) -> list[str]:
    sentences = []
    if "joint" in runs.labels and runs.learned > 1 and outcome.best != "joint":
        joint = next(row for row in summary(runs).rows if row["method"] == "joint")["average_accuracy"]
        gap = outcome.accuracy - joint
        relation = "below" if gap < 0 else "above"
        sentences.append(
            f"Learning all tasks at once, with all the data in hand, reaches {100 * joint:.1f} %: the best "
            f"method is {abs(100 * gap):.1f} points {relation} that."
        )
    if outcome.lead is None and outcome.second is not None:
        sentences.append("With fewer than two seeds in common, differences cannot be told from luck; run more seeds.")
    return sentences


def _summary(table: Table) -> dict[str, Any]:
    shown = [column for column in table.columns if column.key not in ("backward_transfer", "seeds")]  # said otherwise
    columns = [{"title": c.title, "help": c.help, "kind": c.kind, "unit": _UNITS.get(c.kind, "")} for c in shown]
    rows = []
    for row in table.rows:
        cells = [_cell(row, column) for column in shown]
        rows.append({"method": row["method"], "reference": row["method"] in REFERENCES, "cells": cells})
    return {"columns": columns, "rows": rows}


def _cell(row: Mapping[str, Any], column: Column) -> dict[str, Any]:
    value, spread = row[column.key], row.get(f"{column.key}_sd")
    share = round(float(value), 4) if column.key in ("average_accuracy", "used") and value is not None else None
    text = f"{value} of {row['seeds']}" if column.key == "unchanged" else display({column.key: value}, column)
    return {
        "text": text,
        "kind": column.kind.value,
        "share": share,
        "spread": None if spread is None or value is None else number(spread, column.kind),
    }


def _forest(table: Table, reference: str) -> dict[str, Any]:
    rows = [row for row in table.rows if row["method"] != "random"]
    if not rows:
        return {"rows": []}
    low = min(0.0, *(row["average_accuracy_low"] for row in rows))
    high = max(0.0, *(row["average_accuracy_high"] for row in rows))
    width: float = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * float(value - low) / float(width), 2)

    return {
        "reference": reference,
        "zero": place(0.0),
        "low": number(low, Kind.POINTS),
        "high": number(high, Kind.POINTS),
        "rows": [
            {
                "method": row["method"],
                "mean": number(row["average_accuracy"], Kind.POINTS),
                "interval": f"{number(row['average_accuracy_low'], Kind.POINTS)} to "
                f"{number(row['average_accuracy_high'], Kind.POINTS)}",
                "left": place(row["average_accuracy_low"]),
                "at": place(row["average_accuracy"]),
                "width": place(row["average_accuracy_high"]) - place(row["average_accuracy_low"]),
                "word": "may be luck"
                if not row["average_accuracy_significant"]
                else "better"
                if row["average_accuracy"] > 0
                else "worse",
            }
            for row in rows
        ],
    }


def _matrices(table: Table, runs: Runs) -> dict[str, Any]:
    sums: dict[tuple[str, int, int], list[float]] = {}
    for row in table.rows:
        sums.setdefault((row["method"], row["after"], row["task"]), []).append(row["accuracy"])
    means = {key: sum(values) / len(values) for key, values in sums.items()}
    shown = [value for (method, _, _), value in means.items() if method != "random"] or list(means.values())
    low, high = min(shown), max(shown)
    tasks = range(1, runs.learned + 1)
    matrices = []
    for label in runs.labels:
        rows = [
            [_heat(means[label, after, task], low, high) if task <= after else None for task in tasks]
            for after in tasks
        ]
        lost = [means[label, task, task] - means[label, runs.learned, task] for task in tasks]
        tones = [
            "" if task == runs.learned else "bad" if drop > 0.01 else "good" if drop <= 0 else ""
            for task, drop in zip(tasks, lost, strict=True)
        ]
        texts = [f"{100 * drop:.1f}".replace("-0.0", "0.0").replace("-", "−") for drop in lost]
        matrices.append(
            {
                "method": label,
                "rows": rows,
                "lost": [{"text": text, "tone": tone} for text, tone in zip(texts, tones, strict=True)],
            }
        )
    return {"matrices": matrices, "heat": {"low": f"{100 * low:.1f}", "high": f"{100 * high:.1f}"}}


def _layers(table: Table, runs: Runs) -> list[dict[str, Any]]:
    sums: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in table.rows:
        sums.setdefault((row["method"], row["layer"]), {}).setdefault(row["after"], []).append(row["used"])
    by_method: dict[str, list[dict[str, Any]]] = {}
    for (method, layer), cells in sums.items():
        values = [_heat(sum(of) / len(of), 0.0, 1.0, digits=0) for _, of in sorted(cells.items())]
        by_method.setdefault(method, []).append({"name": layer, "cells": values})
    return [{"method": method, "rows": rows} for method, rows in by_method.items()]


def _reuse(table: Table, runs: Runs) -> list[dict[str, Any]]:
    shares = {(row["method"], row["of"], row["by"]): row["share"] for row in table.rows}
    tasks = range(1, runs.learned + 1)
    return [
        {
            "method": label,
            "rows": [
                {"name": str(i), "cells": [_heat(shares[label, i, j], 0.0, 1.0, digits=0) for j in tasks]}
                for i in tasks
            ],
        }
        for label in runs.labels
        if (label, 1, 1) in shares
    ]


def _heat(value: float, low: float, high: float, *, digits: int = 1) -> dict[str, Any]:
    v = (value - low) / (high - low) if high > low else 1.0
    v = min(1.0, max(0.0, v))
    inks = [name for name, theme in (("on-light", "light"), ("on-dark", "dark")) if charts.dark_cell(v, theme)]
    return {"text": f"{100 * value:.{digits}f}", "v": round(v, 3), "ink": " ".join(inks)}


def _proof(runs: Runs) -> dict[str, Any]:
    rows = []
    seed = runs.seeds[0]
    for label in runs.labels:
        of = runs.by_label[label]
        run = of.get(seed) or next(iter(of.values()))
        cells = []
        for task in range(runs.learned):
            first, last = (run.scores[row][task].logits_sha256[:7] for row in (task, -1))
            same, new = is_constant(run, task), task == runs.learned - 1
            tone, mark, word = (
                ("", "·", "just learned") if new else ("good", "✓", "same") if same else ("bad", "✗", "changed")
            )
            cells.append({"tone": tone, "mark": mark, "word": word, "first": first, "last": last})
        whole = sum(all(is_constant(one, task) for task in range(runs.learned)) for one in of.values())
        rows.append({"method": label, "cells": cells, "runs": f"{whole} of {len(of)}"})
    return {"seed": seed, "rows": rows}


def _settings(runs: Runs) -> dict[str, Any]:
    first = {label: next(iter(of.values())).config for label, of in runs.by_label.items()}
    everywhere = [key for key in runs.any.config if all(key in config for config in first.values())]
    shared = [key for key in everywhere if len({repr(config[key]) for config in first.values()}) == 1]
    own = [
        (label, ", ".join(f"{key} = {_text(value)}" for key, value in first[label].items() if key not in shared))
        for label in runs.labels
    ]
    return {"shared": [(key, _text(runs.any.config[key])) for key in shared], "own": [pair for pair in own if pair[1]]}


def _environments(runs: Runs) -> list[list[tuple[str, str]]]:
    different: dict[str, list[tuple[str, str]]] = {}
    for of in runs.by_label.values():
        for run in of.values():
            pairs = [(key, _text(value)) for key, value in run.environment.items()]
            different.setdefault(repr(pairs), pairs)
    return list(different.values())


def _charts(runs: Runs, tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    methods = runs.labels
    columns = {column.key: column for column in tables["curves"].columns}
    drawn = []
    for key, title, text in _CURVES if runs.learned > 1 else ():
        if any(row[key] is not None for row in tables["curves"].rows):
            drawn.append(
                {
                    "name": key,
                    "title": title,
                    "text": text,
                    "table": "curves",
                    "chart": charts.curves(tables["curves"].rows, columns[key], methods, legend=False),
                }
            )
    if tables["mean-usage"].rows:
        drawn.append(
            {
                "name": "usage",
                "title": "Network in use",
                "table": "mean-usage",
                "text": "while tasks are in training; dashed lines are switches to the next task.",
                "chart": charts.usage(tables["mean-usage"].rows, runs.learned, methods, legend=False),
            }
        )
    for chart in drawn:
        chart["alt"] = (
            f"Line chart: {chart['title']} by number of tasks learned, {chart['text']} Its data follow below."
        )
    return drawn


def _compact(table: Table) -> dict[str, Any]:
    keys = list(dict.fromkeys([*(c.key for c in table.columns), *(key for row in table.rows[:1] for key in row)]))
    return {"columns": keys, "rows": [[_rounded(row.get(key)) for key in keys] for row in table.rows]}


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _count(number_of: int, what: str) -> str:
    return f"{number_of} {what}{'' if number_of == 1 else 's'}"


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
