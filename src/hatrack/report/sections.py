"""Sections of the page of a report: plain values for its template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hatrack.experiments.statistics import LEAST_SEEDS, Interval
from hatrack.methods import METHODS
from hatrack.objectives import ACCURACY, Metric
from hatrack.report.canvas import LIGHT, dark_cell, dash_of
from hatrack.report.literature import HERE
from hatrack.report.recognition import UNNAMED, ClassShares, mean_class_shares
from hatrack.report.runs import REFERENCES, Runs
from hatrack.report.sampling import Sampling, sampling_of
from hatrack.report.table import Kind, Row, Table, TableColumn, capitalized, kinds_of, means
from hatrack.report.tables import is_constant, summary
from hatrack.report.verdict import Verdict, unforgotten
from hatrack.report.writers import display, mean_and_deviation, number

__all__ = [
    "beside",
    "cards",
    "class_matrices",
    "confusion_matrices",
    "environments",
    "explanations",
    "forest",
    "layer_matrices",
    "matrices",
    "method_list",
    "proof",
    "reuse_matrices",
    "sentences",
    "settings",
    "summary_rows",
    "title",
]


def title(runs: Runs) -> str:
    """Name the runs."""
    competing = runs.competitors
    if len(competing) == 1:
        return competing[0]
    references = [label for label in runs.labels if label not in competing]
    return f"{len(competing)} methods" + (f" and {_count(len(references), 'reference')}" if references else " compared")


def method_list(runs: Runs) -> list[dict[str, Any]]:
    """List every method with the colour and dashes of its lines, and whether they are shown at first."""
    palette = len(LIGHT)
    return [
        {
            "name": label,
            "color": index % palette,
            "shown": label != "random" or len(runs.labels) == 1,
            "dash": " ".join(map(str, dash_of(index))) if index >= palette else "none",
        }
        for index, label in enumerate(runs.labels)
    ]


def explanations(runs: Runs) -> list[dict[str, str]]:
    """Describe every method in a line, with its source."""
    names = dict.fromkeys(run.method for _, _, run in runs.each())
    known = [METHODS[name] for name in names if name in METHODS]
    return [{"name": kind.name, "text": kind.description, "source": kind.source} for kind in known]


def cards(runs: Runs, outcome: Verdict | None) -> list[dict[str, str]]:
    """Give the result in a few figures.

    Args:
        runs: the runs.
        outcome: who is best; None where tasks have different metrics, or runs different settings that are not a
            method's own, so that nobody is.
    """
    several = len(runs.competitors) > 1
    if outcome is None:
        return _as_cards([_unforgotten_card(unforgotten(runs), several)] if runs.learned > 1 else [])
    metric = runs.require_metric()
    kind, difference = kinds_of(metric)
    shown = f"{number(outcome.score, kind)}{' %' if metric.is_share else ''}"
    over = f"mean over {_count(runs.learned, 'task')} and {_count(len(runs.by_label[outcome.best]), 'seed')}"
    cards = [("", f"average {_named(metric)} in the end", shown, over)]
    if several:
        superlative = "highest" if metric.larger_is_better else "lowest"
        of_competitors = [row for row in summary(runs).rows if row["method"] in runs.competitors]
        level = [row["method"] for row in of_competitors if row[runs.average] == outcome.score]
        cards = [("", f"{superlative} {metric.name} after the last task", f"{', '.join(level)} {shown}", over)]
    best = next(row for row in summary(runs).rows if row["method"] == outcome.best)
    both, task = (best[column.key] for column in UNNAMED)
    if both is not None and task is not None:
        text = f"the task is recognised for {number(task, Kind.PERCENT)} % of the test samples"
        cards.append(("", "right with no task named", f"{number(both, Kind.PERCENT)} %", text))
    if outcome.second is not None and outcome.points is not None:
        relation = "ahead of" if outcome.points else "level with"
        points = f"{number(outcome.points, difference)}{_unit(metric)}"
        cards.append(("", f"{relation} {outcome.second}, the next", points, _certainty(runs, outcome, outcome.second)))
    kept = outcome.unforgotten
    if runs.learned > 1 and (kept or not several):
        cards.append(_unforgotten_card(kept, several))
    name, lost = outcome.most_forgetful or ("", 0.0)
    if lost > 0:
        what, figure = ("forgets most", f"{name} ") if several else ("forgetting", "")
        figure += f"{number(lost, difference)}{_unit(metric)}"
        text = f"of {metric.name} lost since a task was learned, on the average"
        text = text if metric.larger_is_better else f"more {metric.name} than when a task was learned, on the average"
        cards.append(("bad", what, figure, text))
    return _as_cards(cards)


def _certainty(runs: Runs, outcome: Verdict, second: str) -> str:
    """Say the interval of the lead over the second, and whether it is more than luck.

    The mean of the interval is said, too, where one of both has further seeds: the lead in the headline is over all.
    """
    lead, difference = outcome.lead, kinds_of(runs.metric)[1]
    if lead is None:
        return "one seed in common: no telling whether that is luck"
    text = f"95 % interval {number(lead.low, difference)} to {number(lead.high, difference)}: {_luck(lead)}"
    if all(len(runs.by_label[label]) == lead.n for label in (outcome.best, second)):
        return text
    mean = f"{number(lead.mean, difference)}{_unit(runs.require_metric())}"
    return f"{mean} over the {lead.n} seeds that both have, {text}"


def _luck(lead: Interval) -> str:
    """Say whether a lead is more than luck, as far as that can be told."""
    if lead.n < LEAST_SEEDS:
        return "two seeds are too few to tell that from luck"
    if lead.is_significant is None:
        return "the error by the choice of the test samples is not known, so that there is no telling that from luck"
    if not lead.has_width:
        return "all seeds differ by the same, which does not tell it from luck"
    return "more than luck" if lead.is_significant else "may well be luck"


def _unforgotten_card(kept: Sequence[str], several: bool) -> tuple[str, str, str, str]:
    """Name the methods of which no output ever changed."""
    names = ", ".join(kept) if len(kept) <= 6 else f"{', '.join(kept[:5])} and {len(kept) - 5} more"
    figure = (names or "none") if several else "yes" if kept else "no"
    text = "identical to the bit, shown by fingerprints"
    return "good" if kept else "bad", "no output on an old task ever changed", figure, text


def _as_cards(cards: Sequence[tuple[str, str, str, str]]) -> list[dict[str, str]]:
    return [dict(zip(("tone", "what", "figure", "text"), card, strict=True)) for card in cards]


def sentences(runs: Runs, outcome: Verdict | None) -> list[str]:
    """Say more about the result: the distance from joint training, the lack of seeds, or why there is no winner.

    Args:
        runs: the runs.
        outcome: who is best; None as for :func:`cards`.
    """
    if runs.metric is not None and runs.unequal_settings:
        return [f"{capitalized(runs.note_on_conditions)}. Make the runs with the same settings to rank them."]
    if outcome is None:
        why = runs.different
        return [
            f"{why[:1].upper()}{why[1:]}: methods are not ranked, and averages, forgetting, ρ, transfer and "
            "differences are left out. What each task reached and kept is below, in its own metric."
        ]
    said = [f"{capitalized(runs.note_on_conditions)}."] if runs.note_on_conditions else []
    if "joint" in runs.labels and runs.learned > 1 and outcome.best != "joint":
        metric = runs.require_metric()
        kind, difference = kinds_of(metric)
        joint = next(row for row in summary(runs).rows if row["method"] == "joint")[runs.average]
        gap = outcome.score - joint
        relation = "below" if gap < 0 else "above"
        reached = f"{number(joint, kind)} %" if metric.is_share else f"{metric.name} {number(joint, kind)}"
        said.append(
            f"Learning all tasks at once, with all the data in hand, reaches {reached}: the best "
            f"method is {number(abs(gap), difference)}{_unit(metric)} {relation} that."
        )
    if outcome.second is not None and (outcome.lead is None or outcome.lead.is_significant is None):
        said.append(
            f"With fewer than {LEAST_SEEDS} seeds in common, differences cannot be told from luck; run more seeds."
        )
    return said


def _named(metric: Metric) -> str:
    """Return the name of a metric, with its direction where that could be doubted."""
    return metric.name if metric.is_share else f"{metric.name} ({metric.direction})"


def _unit(metric: Metric) -> str:
    return " points" if metric.is_share else ""


def summary_rows(table: Table) -> dict[str, Any]:
    """Make the table of all methods, for the page."""
    shown = [column for column in table.columns if column.key not in ("backward_transfer", "seeds")]  # said otherwise
    rows = []
    for row in table.rows:
        cells = [_cell(row, column) for column in shown]
        rows.append({"method": row["method"], "reference": row["method"] in REFERENCES, "cells": cells})
    return {"columns": shown, "rows": rows, "note": f"{capitalized(table.note)}." if table.note else ""}


def _cell(row: Mapping[str, Any], column: TableColumn) -> dict[str, Any]:
    value, spread = row[column.key], row.get(f"{column.key}_sd")
    barred = column.key == "used" or (column.key.startswith("average_") and column.kind is Kind.PERCENT)
    share = round(float(value), 4) if barred and value is not None else None
    text = f"{value} of {row['seeds']}" if column.key == "unchanged" else display({column.key: value}, column)
    deviation = None
    if spread is not None and value is not None:
        text, deviation = mean_and_deviation(value, spread, column.kind)
    return {
        "text": text,
        "kind": column.kind.value,
        "share": share,
        "spread": deviation,
    }


def forest(table: Table, reference: str, runs: Runs) -> dict[str, Any]:
    """Place differences and their intervals between the lowest and the highest end."""
    metric, key = runs.require_metric(), runs.average
    kind = kinds_of(metric)[1]
    rows = [row for row in table.rows if row["method"] != "random"]
    if not rows:
        return {"rows": []}
    low = min(0.0, *(row[f"{key}_low"] for row in rows))
    high = max(0.0, *(row[f"{key}_high"] for row in rows))
    width: float = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * float(value - low) / float(width), 2)

    return {
        "reference": reference,
        "unit": "points" if metric.is_share else metric.name,
        "samples": _ON_SAMPLES[sampling_of((run for _, _, run in runs.each()), runs.learned)],
        "zero": place(0.0),
        "low": number(low, kind),
        "high": number(high, kind),
        "rows": [
            {
                "method": row["method"],
                "mean": number(row[key], kind),
                "interval": f"{number(row[f'{key}_low'], kind)} to {number(row[f'{key}_high'], kind)}",
                "left": place(row[f"{key}_low"]),
                "at": place(row[key]),
                "width": place(row[f"{key}_high"]) - place(row[f"{key}_low"]),
                "word": _word(row, key, metric),
            }
            for row in rows
        ],
    }


_ON_SAMPLES: Mapping[Sampling, str] = MappingProxyType(
    {
        Sampling.KNOWN: "it is never narrower than the test samples allow",
        Sampling.DRAWN: "each seed drew its own test samples, and it is wider for those that several drew",
        Sampling.UNKNOWN: "the error by the choice of test samples, which seeds share, is not known and not in it",
    }
)
"""Words of the page on the error by the choice of the test samples, as part of a sentence on the interval."""


def _word(row: Row, key: str, metric: Metric) -> str:
    """Return the verdict on a difference in a word or two."""
    if row[f"{key}_significant"] is None:
        return "too few seeds" if row["pairs"] < LEAST_SEEDS else "cannot be told"
    if row[f"{key}_significant"]:
        return "better" if metric.gain(row[key], 0.0) > 0 else "worse"
    return "may be luck" if row[f"{key}_high"] > row[f"{key}_low"] else "no spread"


def beside(table: Table) -> tuple[Row, ...]:
    """Return the rows of these runs among those that others published, guessing left out; none without any of ours."""
    rows = tuple(row for row in table.rows if row["by"] != HERE or row["method"] != "random")
    return rows if any(row["by"] == HERE for row in rows) else ()


def proof(runs: Runs) -> dict[str, Any]:
    """Give the first digits of the hashes, when a task was learned and at the end."""
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


def settings(runs: Runs) -> dict[str, Any]:
    """Divide the settings into those that all methods share, and those of single ones."""
    first = {label: next(iter(of.values())).config for label, of in runs.by_label.items()}
    everywhere = [key for key in runs.any.config if all(key in config for config in first.values())]
    shared = [key for key in everywhere if len({repr(config[key]) for config in first.values()}) == 1]
    own = [
        (label, ", ".join(f"{key} = {_text(value)}" for key, value in first[label].items() if key not in shared))
        for label in runs.labels
    ]
    return {"shared": [(key, _text(runs.any.config[key])) for key in shared], "own": [pair for pair in own if pair[1]]}


def environments(runs: Runs) -> list[list[tuple[str, str]]]:
    """List every different environment of the runs."""
    different: dict[str, list[tuple[str, str]]] = {}
    for of in runs.by_label.values():
        for run in of.values():
            pairs = [(key, _text(value)) for key, value in run.environment.items()]
            different.setdefault(repr(pairs), pairs)
    return list(different.values())


def _count(number_of: int, what: str) -> str:
    return f"{number_of} {what}{'' if number_of == 1 else 's'}"


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def matrices(table: Table, by_task: Table, runs: Runs) -> dict[str, Any]:
    """Return matrices of scores as heat maps, means over seeds, with what every task lost and was given.

    Every metric has colours of its own.

    Args:
        table: :func:`hatrack.report.tables.accuracy` of the runs.
        by_task: :func:`hatrack.report.over_time.by_task` of them.
        runs: the runs.
    """
    cells = means(table.rows, ("method", "after", "task"), "accuracy" if runs.metric == ACCURACY else "score")
    changes = {
        key: {(row["method"], row["task"]): row.get(key) for row in by_task.rows}
        for key in ("backward_transfer", "forward_transfer")
    }
    scales = {metric: _Scale.of(metric, cells, changes, runs.tasks_of(metric)) for metric in runs.metrics}
    of_task = {task: scale for metric, scale in scales.items() for task in runs.tasks_of(metric)}
    tasks = range(1, runs.learned + 1)

    def cell(label: str, after: int, task: int) -> dict[str, Any]:
        value, scale = cells[label, after, task], of_task[task]
        heat = _heat(value, scale.low, scale.high, say=scale.say, metric=scale.metric)
        said = f"{heat['text']}{' %' if scale.metric.is_share else ''}"
        return {**heat, "tip": f"{_task(runs, task)} after {_task(runs, after)}: {said}"}

    matrices = []
    for label in runs.labels:
        rows = [[cell(label, after, task) if task <= after else None for task in tasks] for after in tasks]
        lost = {task: changes["backward_transfer"][label, task] for task in tasks}
        ahead = {task: changes["forward_transfer"][label, task] for task in tasks}
        feet = [{"name": "lost", "cells": [of_task[task].signed(value, -1.0) for task, value in lost.items()]}]
        if label != "independent" and any(value is not None for value in ahead.values()):
            feet.append({"name": "ahead", "cells": [of_task[task].signed(value) for task, value in ahead.items()]})
        matrices.append({"method": label, "rows": rows, "feet": feet if runs.learned > 1 else []})
    return {
        "matrices": matrices,
        "ahead": any(len(matrix["feet"]) > 1 for matrix in matrices),
        "heats": [
            {"metric": metric, "low": scale.say(scale.low), "high": scale.say(scale.high)}
            for metric, scale in scales.items()
        ],
    }


@dataclass(frozen=True)
class _Scale:
    """Colours of the scores of one metric.

    Attributes:
        metric: the metric.
        low: score of the one end.
        high: score of the other.
        widest: largest size of a gain.
    """

    metric: Metric
    low: float
    high: float
    widest: float

    @classmethod
    def of(
        cls,
        metric: Metric,
        cells: Mapping[tuple[Any, ...], float],
        changes: Mapping[str, Mapping[tuple[Any, ...], float | None]],
        tasks: Sequence[int],
    ) -> _Scale:
        """Find the ends for scores and gains of the tasks that have a metric.

        Args:
            metric: the metric.
            cells: scores by method, task learned last, and task.
            changes: gains by what they are, then by method and task.
            tasks: numbers of the tasks.
        """
        own = {key: value for key, value in cells.items() if key[-1] in tasks}
        shown = [value for (method, _, _), value in own.items() if method != "random"] or list(own.values())
        high = max(shown)
        low = min([*shown, high - 0.1])  # a few points are no reason for all the colours
        low = max(0.0, low) if metric.is_share else low
        pairs = (pair for of in changes.values() for pair in of.items())
        known = [value for (method, task), value in pairs if method != "random" and task in tasks and value]
        return cls(metric, low, high, max([high - low, *map(abs, known)]))

    def say(self, value: float) -> str:
        """Return a score or a gain as it stands in a cell."""
        text = f"{100 * value:.1f}" if self.metric.is_share else number(value, kinds_of(self.metric)[0])
        return text.replace("-0.0", "0.0").replace("-", "−")

    def signed(self, value: float | None, sign: float = 1.0) -> dict[str, Any] | None:
        """Return a cell of a gain, whose text is the gain times a sign."""
        return _signed(value, self.widest, lambda gain: self.say(0.0 + sign * gain))


def layer_matrices(table: Table, runs: Runs) -> list[dict[str, Any]]:
    """Return layers in use as heat maps, means over seeds."""
    shares = means(table.rows, ("method", "layer", "after"), "used")
    layers: dict[str, dict[str, list[Any]]] = {}
    for (method, layer, after), share in sorted(shares.items(), key=lambda cell: int(cell[0][2])):
        cell = _heat(share, 0.0, 1.0)
        tip = f"{layer} after {_task(runs, after)}: {cell['text']} % in use"
        layers.setdefault(method, {}).setdefault(layer, []).append({**cell, "tip": tip})
    return [
        {"method": method, "rows": [{"name": layer, "task": "", "cells": cells} for layer, cells in of.items()]}
        for method, of in layers.items()
    ]


def reuse_matrices(table: Table, runs: Runs) -> list[dict[str, Any]]:
    """Return reuse between tasks as heat maps."""
    shares = {(row["method"], row["of"], row["by"]): row["share"] for row in table.rows}
    tasks = range(1, runs.learned + 1)

    def cell(label: str, i: int, j: int) -> dict[str, Any]:
        cell = _heat(shares[label, i, j], 0.0, 1.0)
        return {**cell, "tip": f"{cell['text']} % of the weights of {_task(runs, i)} are used by {_task(runs, j)}"}

    return [
        {
            "method": label,
            "rows": [
                {"name": str(i), "task": runs.task_names[i - 1], "cells": [cell(label, i, j) for j in tasks]}
                for i in tasks
            ],
        }
        for label in runs.labels
        if (label, 1, 1) in shares
    ]


def confusion_matrices(confusion: Table, recognition: Table, runs: Runs) -> list[dict[str, Any]]:
    """Return the tasks that test samples are taken for as heat maps, means over seeds, with the tasks' AUROC below.

    Args:
        confusion: :func:`hatrack.report.recognition.task_confusion` of the runs.
        recognition: :func:`hatrack.report.recognition.recognition` of them.
        runs: the runs.
    """
    shares = means(confusion.rows, ("method", "task", "taken_for"), "share")
    known = [row for row in recognition.rows if row["auroc"] is not None]
    areas = means(known, ("method", "task"), "auroc")
    tasks = range(1, runs.learned + 1)

    def cell(label: str, task: int, other: int) -> dict[str, Any]:
        cell = _heat(shares[label, task, other], 0.0, 1.0, say=lambda share: f"{100 * share:.1f}")
        of = f"{cell['text']} % of the samples of {_task(runs, task)}"
        return {**cell, "tip": f"{of} are {'recognised' if task == other else f'taken for {_task(runs, other)}'}"}

    return [
        {
            "method": label,
            "rows": [
                {"name": str(task), "task": runs.task_names[task - 1], "cells": [cell(label, task, o) for o in tasks]}
                for task in tasks
            ],
            "feet": [
                {
                    **_heat(areas[label, task], 0.5, 1.0, say=lambda area: f"{area:.3f}"),
                    "tip": f"AUROC of {_task(runs, task)} against all others",
                }
                for task in tasks
            ]
            if (label, 1) in areas
            else [],
        }
        for label in runs.labels
        if (label, 1, 1) in shares
    ]


def class_matrices(runs: Runs) -> list[dict[str, Any]]:
    """Return the classes that test samples are taken for as heat maps, means over seeds.

    Where they are more than :data:`MOST_WRITTEN`, cells are small and hold no numbers; where they are more than
    :data:`MOST_CLASSES`, there are no rows.
    """
    found = []
    for label in runs.labels:
        shares = mean_class_shares(runs, label)
        classes = shares.classes
        if not classes:
            continue
        written = len(classes) <= MOST_WRITTEN
        begins = [index > 0 and classes[index - 1][0] != task for index, (task, _) in enumerate(classes)]

        def cell(row: int, column: int, shares: ClassShares = shares, written: bool = written) -> dict[str, Any]:
            share = shares.rows[row][column]
            heat = _heat(share, 0.0, 1.0)
            names = [f"{name} (task {task})" for task, name in shares.classes]
            taken = "recognised" if row == column else f"taken for {names[column]}"
            tip = f"{100 * share:.1f} % of {names[row]} are {taken}" if share or row == column else ""
            return {**heat, "text": heat["text"] if written else "", "tip": tip}

        size = len(classes) if len(classes) <= MOST_CLASSES else 0
        found.append(
            {
                "method": label,
                "count": len(classes),
                "seeds": shares.seeds if len(shares.seeds) < len(runs.by_label[label]) else (),
                "written": written,
                "columns": [{"number": i + 1, "name": classes[i][1], "begins": begins[i]} for i in range(size)],
                "rows": [
                    {
                        "number": row + 1,
                        "name": classes[row][1],
                        "task": classes[row][0],
                        "begins": begins[row],
                        "cells": [{**cell(row, column), "begins": begins[column]} for column in range(size)],
                    }
                    for row in range(size)
                ],
            }
        )
    return found


MOST_WRITTEN = 20
"""Largest number of classes whose confusion is written in numbers."""

MOST_CLASSES = 120
"""Largest number of classes whose confusion is drawn; a page of more cells would be slow."""


def _task(runs: Runs, number_of: int) -> str:
    """Return a task's name with its number, which some names are."""
    name = runs.task_names[number_of - 1]
    return name if name == f"task {number_of}" else f"task {number_of} ({name})"


def _signed(value: float | None, widest: float, say: Callable[[float], str]) -> dict[str, Any] | None:
    """Return a cell of a gain: its colour diverges from that of zero."""
    if value is None:
        return None
    share = max(-1.0, min(1.0, value / widest)) if widest else 0.0
    return {
        "text": say(value),
        "tip": "",
        "v": round(abs(share), 3),
        "ink": " ".join(["minus"] * (share < 0) + _inks(share)),
    }


def _heat(
    value: float,
    low: float,
    high: float,
    *,
    say: Callable[[float], str] = lambda value: f"{100 * value:.0f}",
    metric: Metric = ACCURACY,
) -> dict[str, Any]:
    v = (value - low) / (high - low) if high > low else 1.0
    v = v if metric.larger_is_better else 1.0 - v
    v = min(1.0, max(0.0, v))
    return {"text": say(value), "v": round(v, 3), "ink": " ".join(_inks(v))}


def _inks(share: float) -> list[str]:
    """Return the classes of a cell whose text is white, by theme."""
    return [name for name, theme in (("on-light", "light"), ("on-dark", "dark")) if dark_cell(share, theme)]
